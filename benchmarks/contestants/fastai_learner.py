"""A contestant: fastai's `vision_learner(...).fine_tune(...)`, as its book shows it, with its defaults.

Its own mixed precision is for CUDA only (`autocast("cuda")` in 2.8), so --bf16 brings a callback.
"""

import json

import pandas as pd
import torch
from fastai.callback.channelslast import ChannelsLast
from fastai.vision.all import (
    Callback,
    CategoryBlock,
    ColReader,
    ColSplitter,
    DataBlock,
    ImageBlock,
    Normalize,
    Resize,
    accuracy,
    aug_transforms,
    set_seed,
    vision_learner,
)
from protocol import arguments, logits_of, pair, print_progress, print_rate

args = arguments(__doc__).parse_args()
set_seed(args.seed)
splits = json.load(open(args.photos))
rows = pd.DataFrame(
    [(path, label, split) for split in ("train", "val", "test") for path, label in splits[split]],
    columns=["path", "label", "split"],
)
rows["is_valid"] = rows["split"] == "val"
block = DataBlock(
    (ImageBlock, CategoryBlock(vocab=list(range(len(splits["classes"]))))),
    get_x=ColReader("path"),
    get_y=ColReader("label"),
    splitter=ColSplitter(),
    item_tfms=Resize(int(args.size / 0.875)),
    batch_tfms=[
        *aug_transforms(size=args.size, min_scale=0.75),
        Normalize.from_stats(
            [0.5] * 3, [0.5] * 3, cuda=args.device != "cpu"
        ),  # of the weights; fastai's is for its own
    ],
)
how = {"bs": args.batch_size, "num_workers": args.workers, "device": torch.device(args.device)}
loaders = block.dataloaders(rows[rows["split"] != "test"], **how)
learner = vision_learner(loaders, args.arch, pretrained=False, metrics=accuracy, normalize=False, cbs=ChannelsLast())
if args.weights:  # of the body, which fastai keeps as timm made it
    body = learner.model[0].model
    known = body.state_dict()
    state = torch.load(args.weights, weights_only=True)
    state = {name: value for name, value in state.items() if name in known}
    body.load_state_dict(state)
learner.freeze()


def autocast():
    return torch.autocast(args.device, torch.bfloat16, enabled=args.bf16)


if args.steps:
    learner.unfreeze()
    learner.create_opt()
    place = {"device": args.device, "memory_format": torch.channels_last}
    learner.model.to(**place)
    images = torch.randn(args.batch_size, 3, args.size, args.size).to(**place)
    labels = torch.arange(args.batch_size, device=args.device) % len(splits["classes"])
    learner.model.train(not args.forward)

    def train():
        with autocast():
            logits = learner.model(images).float()
        learner.loss_func(logits, labels).backward()
        learner.opt.step()
        learner.opt.zero_grad()

    def predict():
        with torch.inference_mode(), autocast():
            learner.model(images)

    print_rate(predict if args.forward else train, args.batch_size, args.steps)
    raise SystemExit


class HalfPrecision(Callback):
    """The network's forward pass in bfloat16."""

    def before_batch(self):
        self.context = autocast()
        self.context.__enter__()

    def after_pred(self):
        self.context.__exit__(None, None, None)
        self.learn.pred = self.pred.float()


class Teller(Callback):
    """Tells each epoch, once the recorder has its numbers."""

    order = 90

    def before_validate(self):
        self.logits = []

    def after_pred(self):
        if not self.training:
            self.logits.append(self.pred.float().cpu())

    def after_epoch(self):
        logits = logits_of(args, torch.cat(self.logits))
        print_progress(epoch=self.epoch + 1, val_accuracy=float(self.recorder.values[-1][-1]), **logits)


frozen, free = pair(args.epochs, int)
with learner.no_bar(), learner.no_logging():
    learner.fine_tune(free, freeze_epochs=frozen, cbs=[HalfPrecision(), Teller()])
    test = learner.dls.test_dl(rows[rows["split"] == "test"], with_labels=True)
    print_progress(test_accuracy=float(learner.validate(dl=test)[1]))
