"""A contestant: scikit-learn's logistic regression, with its defaults, on features of timm's network."""

import json

import numpy as np
import timm
import torch
from PIL import Image
from protocol import arguments, logits_of, print_progress
from sklearn.linear_model import LogisticRegression
from torchvision.transforms import v2

args = arguments(__doc__).parse_args()
splits = json.load(open(args.photos))
model = timm.create_model(args.arch, num_classes=0)
if args.weights:
    model.load_state_dict(torch.load(args.weights, weights_only=True), strict=False)
model.eval().to(args.device, memory_format=torch.channels_last)
view = v2.Compose(
    [
        v2.Resize(int(args.size / 0.875)),
        v2.CenterCrop(args.size),
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize([0.5] * 3, [0.5] * 3),
    ]
)


def features(split):
    found = []
    with torch.inference_mode():
        for first in range(0, len(splits[split]), args.batch_size):
            rows = splits[split][first : first + args.batch_size]
            images = torch.stack([view(Image.open(path).convert("RGB")) for path, _ in rows])
            found.append(model(images.to(args.device, memory_format=torch.channels_last)).cpu())
    return torch.cat(found).numpy(), np.array([label for _, label in splits[split]])


probe = LogisticRegression(max_iter=1000).fit(*features("train"))
inputs, labels = features("val")
logits = torch.from_numpy(probe.decision_function(inputs))
if logits.ndim == 1:  # of the second of two classes
    logits = torch.stack([-logits / 2, logits / 2], 1)
shown = {"val_accuracy": float(probe.score(inputs, labels)), **logits_of(args, logits)}
print_progress(stage=0, epoch=1, **shown)
print_progress(test_accuracy=float(probe.score(*features("test"))))
