"""How many labeled photos a linear head needs, if `next` chooses them or chance does.

    python benchmarks/label_next.py 17flowers.tgz

The features of all photos are computed once and cached. For each seed, a quarter of each class is the test, and 5
photos of each class are labeled at first. In each round a head is fitted to the labeled photos and tested, and 34 more
of the others are labeled: chosen by `next`, by chance, or by one half of the method of `next`, the margin or the
k-center alone. Near-duplicates are never in both the test and the rest. The number of photos needed is that of the
first round whose accuracy reaches the target.
"""

import argparse
import statistics
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from flowers_torch.config import Config
from flowers_torch.data.splits.assign import group_units
from flowers_torch.evaluation.label_next import choose_next, uncertainty
from flowers_torch.runs.experiment import Experiment
from flowers_torch.training.linear_probe import fit_logistic_regression

Strategy = Callable[[Tensor, Tensor, Tensor, int, torch.Generator], list[int]]
TEST_FRACTION = 0.25
FIRST = 5  # labeled photos of each class at the beginning
L2 = 10.0  # penalty of the heads


def by_next(known: Tensor, pool: Tensor, probabilities: Tensor, count: int, generator: torch.Generator) -> list[int]:
    return [choice.index for choice in choose_next(known, pool, probabilities, count)]


def by_chance(known: Tensor, pool: Tensor, probabilities: Tensor, count: int, generator: torch.Generator) -> list[int]:
    chosen: list[int] = torch.randperm(len(pool), generator=generator)[:count].tolist()
    return chosen


def by_margin(known: Tensor, pool: Tensor, probabilities: Tensor, count: int, generator: torch.Generator) -> list[int]:
    chosen: list[int] = uncertainty(probabilities).argsort(descending=True)[:count].tolist()
    return chosen


def by_distance(
    known: Tensor, pool: Tensor, probabilities: Tensor, count: int, generator: torch.Generator
) -> list[int]:
    equal = torch.full_like(probabilities, 1 / probabilities.shape[1])
    return [choice.index for choice in choose_next(known, pool, equal, count)]


STRATEGIES: dict[str, Strategy] = {
    "next": by_next,
    "random order": by_chance,
    "margin alone": by_margin,
    "k-center alone": by_distance,
}


def main() -> None:
    """Runs every strategy with every seed, and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="anything that `train --data` takes")
    parser.add_argument("--arch", default="tf_efficientnet_lite0")
    parser.add_argument("--weights", default="offline")
    parser.add_argument("--size", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--round", type=int, default=34, help="photos labeled in each round")
    parser.add_argument("--rounds", type=int, default=23, help="at most")
    parser.add_argument("--target", type=float, default=0.95, help="accuracy")
    parser.add_argument("--only", default=",".join(STRATEGIES), help="strategies, with commas")
    args = parser.parse_args()
    torch.set_num_threads(1)
    config = Config(arch=args.arch, data=args.data, weights=args.weights, size=args.size, precision="fp32")
    experiment, model = Experiment.new(config)
    data = experiment.dataset
    features = experiment.features.of_frozen(model, range(len(data)))
    labels, units = torch.tensor(data.labels), group_units(data, experiment.filtered.duplicates)
    curves: dict[str, list[dict[int, float]]] = {name: [] for name in args.only.split(",")}
    for seed in range(args.seeds):
        for name, runs in curves.items():
            runs.append(simulate(STRATEGIES[name], features, labels, units, seed, args))
            print(f"  seed {seed}, {name}: {needed(runs[-1], args.target)} photos", flush=True)
    print_needed(curves, args.target)
    print_curves(curves)


def draw_test(labels: Tensor, units: Sequence[int], seed: int) -> Tensor:
    """A random mask (N,) of the test photos; the photos of a unit, such as near-duplicates, go together."""
    members: dict[int, list[int]] = {}
    for index, unit in enumerate(units):
        members.setdefault(unit, []).append(index)
    wanted = (torch.bincount(labels) * TEST_FRACTION).round().tolist()
    order, test = list(members.values()), torch.zeros(len(labels), dtype=torch.bool)
    for position in torch.randperm(len(order), generator=torch.Generator().manual_seed(seed)).tolist():
        label = int(labels[order[position][0]])
        if wanted[label] > 0:
            test[order[position]] = True
            wanted[label] -= len(order[position])
    return test


def simulate(
    strategy: Strategy, features: Tensor, labels: Tensor, units: Sequence[int], seed: int, args: argparse.Namespace
) -> dict[int, float]:
    """The test accuracy by the number of labeled photos."""
    classes, generator = int(labels.max()) + 1, torch.Generator().manual_seed(seed)
    test = draw_test(labels, units, seed)
    rest = (~test).nonzero()[:, 0]
    rest = rest[torch.randperm(len(rest), generator=generator)]
    first = torch.cat([rest[labels[rest] == label][:FIRST] for label in range(classes)])
    labeled = torch.zeros(len(labels), dtype=torch.bool)
    labeled[first] = True
    curve: dict[int, float] = {}
    while True:
        head = fit_logistic_regression(features[labeled], labels[labeled], classes, L2)
        correct = head.logits(features[test]).argmax(1) == labels[test]
        curve[int(labeled.sum())] = float(correct.double().mean())
        pool = (~labeled & ~test).nonzero()[:, 0]
        if not len(pool) or len(curve) > args.rounds:
            return curve
        probabilities = head.logits(features[pool]).softmax(1)
        labeled[pool[strategy(features[labeled], features[pool], probabilities, args.round, generator)]] = True


def needed(curve: dict[int, float], target: float) -> int | None:
    """The number of labeled photos of the first round that reaches the target."""
    return next((images for images, accuracy in curve.items() if accuracy >= target), None)


def print_needed(curves: dict[str, list[dict[int, float]]], target: float) -> None:
    print(f"\n| strategy | photos for {target} by seed | mean | standard deviation |\n|---|---|---|---|")
    for name, runs in curves.items():
        counts = [needed(curve, target) for curve in runs]
        reached = [count for count in counts if count is not None]
        complete = len(reached) == len(counts)
        cells = [", ".join("not reached" if count is None else str(count) for count in counts)]
        cells.append(f"{statistics.mean(reached):.0f}" if complete else "")
        cells.append(f"{statistics.stdev(reached):.0f}" if complete and len(reached) > 1 else "")
        print(f"| {name} | {' | '.join(cells)} |")


def print_curves(curves: dict[str, list[dict[int, float]]]) -> None:
    steps = list(next(iter(curves.values()))[0])
    print(f"\n| labeled photos | {' | '.join(curves)} |\n|---{'|---' * len(curves)}|")
    for images in steps:
        means = [[curve[images] for curve in runs if images in curve] for runs in curves.values()]
        print(f"| {images} | {' | '.join(f'{statistics.mean(row):.4f}' if row else '' for row in means)} |")


if __name__ == "__main__":
    main()
