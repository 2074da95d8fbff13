"""A contestant: fastai's `vision_learner(...).fine_tune(...)`, as its book shows it."""

import json

import torch
from fastai.vision.all import (
    Callback,
    CategoryBlock,
    DataBlock,
    ImageBlock,
    LabelSmoothingCrossEntropy,
    Resize,
    accuracy,
    aug_transforms,
    set_seed,
    vision_learner,
)
from told import arguments, pair, tell, tell_rate

args = arguments(__doc__).parse_args()
set_seed(args.seed)
told = json.load(open(args.photos))
rows = [(path, label, part) for part in ("train", "val") for path, label in told[part]]
block = DataBlock(
    (ImageBlock, CategoryBlock(vocab=list(range(len(told["classes"]))))),
    get_x=lambda row: row[0],
    get_y=lambda row: row[1],
    splitter=lambda rows: tuple(
        [i for i, row in enumerate(rows) if row[2] == part] for part in ("train", "val")
    ),
    item_tfms=Resize(int(args.size / 0.875)),
    batch_tfms=aug_transforms(size=args.size, min_scale=0.3),
)
loaders = block.dataloaders(rows, bs=args.batch_size, num_workers=0)
learner = vision_learner(
    loaders,
    args.arch,
    pretrained=False,
    loss_func=LabelSmoothingCrossEntropy(),
    metrics=accuracy,
    normalize=False,
)
if args.weights:  # of the body, which fastai keeps as timm made it
    body = learner.model[0].model
    known = body.state_dict()
    state = torch.load(args.weights, weights_only=True)
    state = {name: value for name, value in state.items() if name in known}
    body.load_state_dict(state)
learner.freeze()

if args.steps:
    learner.unfreeze()
    learner.create_opt()
    images = torch.randn(args.batch_size, 3, args.size, args.size)
    labels = torch.arange(args.batch_size) % len(told["classes"])
    learner.model.train(not args.forward)

    def train():
        learner.loss_func(learner.model(images), labels).backward()
        learner.opt.step()
        learner.opt.zero_grad()

    def predict():
        with torch.inference_mode():
            learner.model(images)

    tell_rate(predict if args.forward else train, args.batch_size, args.steps)
    raise SystemExit


class Teller(Callback):
    """Tells each epoch, once the recorder has its numbers."""

    order = 90

    def after_epoch(self):
        tell(epoch=self.epoch + 1, val_accuracy=float(self.recorder.values[-1][-1]))


frozen, free = pair(args.epochs, int)
with learner.no_bar(), learner.no_logging():
    learner.fine_tune(free, base_lr=pair(args.lr)[0], freeze_epochs=frozen, cbs=Teller())
    test = learner.dls.test_dl([(path, label, "test") for path, label in told["test"]], with_labels=True)
    tell(test_accuracy=float(learner.validate(dl=test)[1]))
