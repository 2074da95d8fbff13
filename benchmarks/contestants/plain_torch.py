"""A contestant: the loop that one writes by hand, with timm, channels_last, AdamW and a cosine."""

import json

import timm
import torch
from PIL import Image
from protocol import arguments, logits_of, pair, print_progress, print_rate
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

args = arguments(__doc__).parse_args()
torch.manual_seed(args.seed)
options = {"aux_logits": False} if args.arch == "inception_v3" else {}
layout = torch.channels_last  # a fifth faster in both precisions


def autocast():
    return torch.autocast(args.device, torch.bfloat16, enabled=args.bf16)


def network(classes):
    model = timm.create_model(args.arch, num_classes=classes, **options)
    if args.weights:
        model.load_state_dict(torch.load(args.weights, weights_only=True), strict=False)
    return model.to(args.device, memory_format=layout)


if args.steps:
    model = network(17)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
    images = torch.randn(args.batch_size, 3, args.size, args.size).to(args.device, memory_format=layout)
    labels = torch.arange(args.batch_size, device=args.device) % 17

    def train():
        with autocast():
            loss = torch.nn.functional.cross_entropy(model(images).float(), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    def predict():
        with torch.inference_mode(), autocast():
            model(images)

    model.train(not args.forward)
    print_rate(predict if args.forward else train, args.batch_size, args.steps)
    raise SystemExit

splits = json.load(open(args.photos))
to_input = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.5] * 3)]
crop = [v2.RandomResizedCrop(args.size, (0.3, 1.0)), v2.RandomHorizontalFlip(), v2.ColorJitter(0.2, 0.2, 0.2)]
middle = [v2.Resize(int(args.size / 0.875)), v2.CenterCrop(args.size)]
views = {"train": v2.Compose(crop + to_input), "val": v2.Compose(middle + to_input)}


class ImageDataset(Dataset):
    def __init__(self, split):
        self.rows, self.view = splits[split], views["train" if split == "train" else "val"]

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        path, label = self.rows[index]
        return self.view(Image.open(path).convert("RGB")), label


loaders = {
    split: DataLoader(ImageDataset(split), args.batch_size, shuffle=split == "train", num_workers=args.workers)
    for split in ("train", "val", "test")
}
model = network(len(splits["classes"]))


def predict(split):
    model.eval()
    with torch.inference_mode(), autocast():
        found = [model(images.to(args.device, memory_format=layout)).float() for images, _ in loaders[split]]
    return torch.cat(found).cpu()


def accuracy(logits, split):
    labels = torch.tensor([label for _, label in splits[split]])
    return float((logits.argmax(1) == labels).float().mean())


head = set(model.get_classifier().parameters())
for stage, (epochs, lr) in enumerate(zip(pair(args.epochs, int), pair(args.lr), strict=True)):
    for parameter in model.parameters():
        parameter.requires_grad = stage == 1 or parameter in head
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, epochs * len(loaders["train"])))
    for epoch in range(epochs):
        model.train()
        for images, labels in loaders["train"]:
            with autocast():
                logits = model(images.to(args.device, memory_format=layout)).float()
            torch.nn.functional.cross_entropy(logits, labels.to(args.device), label_smoothing=0.1).backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        logits = predict("val")
        shown = {"val_accuracy": accuracy(logits, "val"), **logits_of(args, logits)}
        print_progress(stage=stage, epoch=epoch + 1, **shown)
print_progress(test_accuracy=accuracy(predict("test"), "test"))
