"""What the tutorials' mistakes do to their numbers, measured on Flowers-17; for docs/tutorial-bugs.md.

    python benchmarks/tutorial_bugs.py 17flowers.tgz [--signs train_signs.h5] [--happy RUN]

A linear head is fitted, the same way each time, on the features of EfficientNet-Lite0 (ImageNet weights
from pip). The nearest neighbor among the training images stands for a network that knows its images by
heart. --signs takes the HDF5 pair or its substitute, --happy a finished run of the recipe happy_house.
"""

import argparse
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from flowers_torch.config_file import load_config
from flowers_torch.data.augment.keras import preprocess_input
from flowers_torch.data.splits.assign import exact_split
from flowers_torch.evaluation.metrics import wilson
from flowers_torch.models.freeze import apply_rules, rules_for
from flowers_torch.runs.experiment import Experiment
from flowers_torch.runs.prediction import predict_indices
from flowers_torch.runs.stage import make_train_state
from flowers_torch.training.linear_probe import fit_logistic_regression
from flowers_torch.training.step import train_step

SEEDS = range(5)
SIGNS_STEPS = 68  # two epochs of 1080 photos, 32 at a time
L2 = 30.0  # of the linear head; what validation chooses most often
Splits = tuple[Sequence[int], Sequence[int], Sequence[int]]


def main() -> None:
    """Prints a line for each mistake."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="17flowers.tgz, or anything else that is Flowers-17")
    parser.add_argument("--signs", default="", help="train_signs.h5")
    parser.add_argument("--happy", type=Path, help="finished run of happy_house")
    args = parser.parse_args()

    settings = {"weights": "offline", "workers": 0}
    experiment, model = Experiment.new(load_config("tf_efficientnet_lite0", args.data, overrides=settings))
    dataset = experiment.dataset
    labels = torch.tensor(dataset.labels)
    features = compute(experiment, model, range(len(labels)), "none")

    trials = [the_tutorials_splits(len(labels), seed) for seed in SEEDS]
    shared = [len(set(train) & set(test)) / len(test) for train, _, test in trials]
    print(f"test photos that are training photos too: {statistics.fmean(shared):.3f}")
    report("splits that overlap", features, labels, trials)
    counts, duplicates = (800, 280, 280), experiment.filtered.duplicates
    disjoint = [exact_split(dataset, counts, seed, duplicates) for seed in SEEDS]
    honest = [(split["train"], split["val"], split["test"]) for split in disjoint]
    report("disjoint, duplicates together", features, labels, honest)
    listed = [torch.tensor(np.random.RandomState(seed).permutation(labels.numpy())) for seed in SEEDS]
    found = [accuracies(features, scrambled, splits) for scrambled, splits in zip(listed, honest, strict=True)]
    print(f"files in another order than their names: linear {spread([linear for linear, _ in found])}")

    probe = fit_logistic_regression(features[honest[0][0]], labels[honest[0][0]], 17, L2)
    for augmentation in ("none", "keras"):
        val = compute(experiment, model, honest[0][1], augmentation)
        right = int((probe.logits(val).argmax(1) == labels[honest[0][1]]).sum())
        print(f"validation photos augmented by {augmentation}: {right / len(val):.4f} of {len(val)}")
    print(f"62 of 64 right, 95% interval: {wilson(62, 64)[0]:.3f} .. {wilson(62, 64)[1]:.3f}")

    uniform = -(0.2 * math.log(0.2) + 0.8 * math.log(0.8))
    print(f"5 outputs of 0.2: binary accuracy 0.8, binary cross-entropy {uniform:.4f}")
    overwritten(features, labels)
    if args.signs:
        for momentum in (0.01, 0.1):
            print(f"SIGNS, batch norm's averages follow with {momentum}: {signs(args.signs, momentum)}")
    if args.happy:
        happy(args.happy)


def compute(experiment: Experiment, model: nn.Module, images: Sequence[int], augmentation: str) -> Tensor:
    """Features of augmented images in front of the head."""
    apply_rules(model, rules_for(model, "head"))
    split = experiment.features.split(model)
    features = experiment.features.features(split, images, augmentation) if split else None
    if features is None:
        raise SystemExit("the network cannot be split in front of its head")
    return features


def the_tutorials_splits(images: int, seed: int) -> Splits:
    """Its three calls each shuffle all photos and take 800, 260 and 260 from different places."""
    random = np.random.RandomState(seed)
    train, val, test = (random.permutation(images).tolist() for _ in range(3))
    return train[:800], val[800:1060], test[1060:1320]


def report(name: str, features: Tensor, labels: Tensor, trials: Sequence[Splits]) -> None:
    """A line with both classifiers' test accuracies."""
    found = [accuracies(features, labels, splits) for splits in trials]
    linear, nearest = zip(*found, strict=True)
    print(f"{name}: linear {spread(linear)}, nearest neighbor {spread(nearest)}")


def accuracies(features: Tensor, labels: Tensor, splits: Splits) -> tuple[float, float]:
    """Test accuracy of a linear head and of the nearest neighbor."""
    train, _, test = (torch.tensor(split) for split in splits)
    probe = fit_logistic_regression(features[train], labels[train], 17, L2)
    linear = probe.logits(features[test]).argmax(1) == labels[test]
    units = nn.functional.normalize(features - features[train].mean(0))
    nearest = labels[train][(units[test] @ units[train].T).argmax(1)] == labels[test]
    return float(linear.float().mean()), float(nearest.float().mean())


def spread(values: Sequence[float]) -> str:
    """Mean and range."""
    return f"{statistics.fmean(values):.4f} ({min(values):.4f} .. {max(values):.4f})"


def overwritten(features: Tensor, labels: Tensor) -> None:
    """Labels of 500 training photos put on the features of 100 others, which come round five times."""
    five = [[i for i, label in enumerate(labels.tolist()) if label == kind] for kind in range(5)]
    train, val = ([i for kind in five for i in part(kind)] for part in (lambda k: k[:60], lambda k: k[60:]))
    truth = labels[val]
    for name, source in (("of the training photos", train), ("of the others, as printed", val)):
        shown = [source[i % len(source)] for i in range(len(train))]
        probe = fit_logistic_regression(features[shown], labels[train], 5, L2)
        right = float((probe.logits(features[val]).argmax(1) == truth).float().mean())
        print(f"five classes, features {name}: {right:.4f} of {len(val)} validation photos")


def signs(data: str, momentum: float) -> str:
    """The recipe signs_resnet50 for the tutorial's 68 steps, with another momentum of batch norm."""
    experiment, model = Experiment.new(load_config(data=data, file="signs_resnet50"))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = momentum
    stage, splits = experiment.config.stages[0], experiment.splits
    train = make_train_state(experiment, model, stage, 0)
    batches = experiment.loaders.training(splits["train"], stage.augment)
    for epoch in range(round(SIGNS_STEPS / len(batches.order))):
        batches.order.epoch = epoch
        model.train()
        right = sum(train_step(train, images, labels, 1e-3).correct for images, labels, _ in batches)
    test = predict_indices(experiment, model, splits["test"])
    accuracy = float((test.logits.argmax(1) == test.labels).float().mean())
    return f"{right / len(splits['train']):.4f} in the last epoch of training, {accuracy:.4f} on the test"


def happy(folder: Path) -> None:
    """Test photos prepared as in training, and as ImageNet's networks want them."""
    experiment, model = Experiment.open(folder, "cpu")
    runtime, test = experiment.runtime, experiment.splits["test"]
    for name in ("as in training", "by preprocess_input"):
        right = 0
        for images, labels, _ in experiment.loaders.in_order(test):
            if name == "by preprocess_input":
                levels = preprocess_input((255 * images).permute(0, 2, 3, 1).numpy(), "caffe")
                images = torch.from_numpy(np.ascontiguousarray(levels)).permute(0, 3, 1, 2)
            with torch.inference_mode(), runtime.autocast():
                right += int((model(runtime.images(images)).argmax(1) == labels).sum())
        print(f"HappyModel, photos prepared {name}: {right} of {len(test)} right")


if __name__ == "__main__":
    main()
