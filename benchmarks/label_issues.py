"""How many wrong labels are found: beside cleanlab and the confidence alone, and with better probabilities.

    python benchmarks/label_issues.py photos/ --truth truth.csv
    python benchmarks/label_issues.py 17flowers.tgz --planted 0.05
    python benchmarks/label_issues.py 17flowers.tgz --planted 0.05 --look-alikes

The truth is a table with the columns file and wrong, 1 for a wrong label; a file is known by its folder and name.
Without it, some labels are changed: to any other class, or to one of the two whose mean features
are nearest. The features of each network are computed once and cached. Each seed assigns other folds and plants other
mistakes.

The first table compares methods at equal probabilities, those of the first network. The second one shows what better
probabilities add to our method. AP is the average precision of the ranking, AUC its area under the ROC curve, P@100 and
P@wrong the precision of the first 100 photos and of as many as are wrong. `pip install cleanlab` adds its methods.
"""

import argparse
import csv
import functools
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from flowers_torch.config import Config
from flowers_torch.data.splits.assign import group_units
from flowers_torch.evaluation.label_issues import find_label_issues, true_class_probabilities
from flowers_torch.evaluation.out_of_fold import average_probabilities, out_of_fold_probabilities
from flowers_torch.runs.experiment import Experiment

try:
    from cleanlab.filter import find_label_issues as cleanlab_issues
except ImportError:
    cleanlab_issues = None

NETWORKS = "tf_efficientnet_lite0,tf_efficientnet_lite1,tf_efficientnet_lite2"
CLEANLAB = ("prune_by_noise_rate", "both", "confident_learning", "low_normalized_margin", "low_self_confidence")
MEASURES = ("found", "precision", "recall", "F1", "AP", "AUC", "P@100", "P@wrong")

Found = tuple[Tensor, Tensor]  # which labels are flagged (N,), and how suspicious each one is (N,)


def main() -> None:
    """Prints the two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="anything that `train --data` takes")
    parser.add_argument("--truth", type=Path, help="table of the wrong labels")
    parser.add_argument("--planted", type=float, default=0.05, help="fraction of the labels that is changed")
    parser.add_argument("--look-alikes", action="store_true", help="change labels to similar classes")
    parser.add_argument("--networks", default=NETWORKS, help="NAME or NAME=FILE of weights, with commas")
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    features = {}
    for network in args.networks.split(","):
        name, _, weights = network.partition("=")
        config = Config(arch=name, data=args.data, weights=weights or "offline", precision="fp32", mirror="no")
        experiment, model = Experiment.new(config)
        features[name] = experiment.features.of_frozen(model, range(len(experiment.dataset)))
    data, first = experiment.dataset, next(iter(features.values()))
    folders, units = torch.tensor(data.labels), group_units(data, experiment.filtered.duplicates)
    if cleanlab_issues is None:
        print("cleanlab is not installed, so its methods are left out; to compare: pip install cleanlab")
    methods: dict[str, list[list[float]]] = {}
    sources: dict[str, list[list[float]]] = {}
    for seed in range(args.seeds):
        if args.truth:
            labels, wrong = folders, read_truth(args.truth, data.paths)
        else:
            labels, wrong = plant(folders, first, args.planted, args.look_alikes, seed)
        fit = functools.partial(out_of_fold_probabilities, classes=len(data.classes), groups=units, seed=seed)
        started = time.perf_counter()
        each = {name: fit(values, labels)[0] for name, values in features.items()}
        for name, found in judge(next(iter(each.values())), labels, units):
            methods.setdefault(name, []).append(measure(*found, wrong))
        for name, probabilities in better(features, each, labels, fit):
            sources.setdefault(name, []).append(measure(*ours(probabilities, labels, units), wrong))
        print(f"  seed {seed}: {time.perf_counter() - started:.0f} s", flush=True)
    print(f"\n{len(labels)} photos, {int(wrong.sum())} wrong labels, {args.seeds} seeds\n")
    print_table("method, at equal probabilities", methods)
    print_table("our method, probabilities of", sources)


def read_truth(path: Path, files: list[str]) -> Tensor:
    """Which of the photos have a wrong label (N,)."""
    with path.open(newline="") as table:
        wrong = {Path(row["file"]).parts[-2:]: row["wrong"] == "1" for row in csv.DictReader(table)}
    return torch.tensor([wrong[Path(file).parts[-2:]] for file in files])


def plant(labels: Tensor, features: Tensor, fraction: float, look_alikes: bool, seed: int) -> tuple[Tensor, Tensor]:
    """Labels (N,) of which a fraction is changed, and which ones these are (N,)."""
    generator, classes = torch.Generator().manual_seed(100 + seed), int(labels.max()) + 1
    chosen = torch.randperm(len(labels), generator=generator)[: round(fraction * len(labels))]
    planted = labels.clone()
    if look_alikes:
        centered = F.normalize(features - features.mean(0), dim=1)
        means = F.normalize(torch.stack([centered[labels == label].mean(0) for label in range(classes)]), dim=1)
        nearest = (means @ means.T).fill_diagonal_(-2).topk(2).indices
        planted[chosen] = nearest[labels[chosen], torch.randint(2, chosen.shape, generator=generator)]
    else:
        shift = 1 + torch.randint(classes - 1, chosen.shape, generator=generator)
        planted[chosen] = (labels[chosen] + shift) % classes
    return planted, planted != labels


def ours(probabilities: Tensor, labels: Tensor, units: list[int]) -> Found:
    flagged = torch.zeros(len(labels), dtype=torch.bool)
    flagged[[issue.index for issue in find_label_issues(probabilities, labels, units)]] = True
    return flagged, 1 - true_class_probabilities(probabilities, labels)[torch.arange(len(labels)), labels]


def judge(probabilities: Tensor, labels: Tensor, units: list[int]) -> Iterator[tuple[str, Found]]:
    """What each method finds in the same probabilities."""
    of_label = probabilities[torch.arange(len(labels)), labels].double()
    doubt, margin = 1 - of_label, probabilities.scatter(1, labels[:, None], -1.0).max(1).values - of_label
    yield "ours", ours(probabilities, labels, units)
    for name in CLEANLAB if cleanlab_issues else ():
        given = probabilities.double() / probabilities.double().sum(1, keepdim=True)
        flagged = cleanlab_issues(labels.numpy(), given.numpy(), filter_by=name, n_jobs=1)
        ranking = margin if name == "low_normalized_margin" else doubt
        yield f"cleanlab, {name}", (torch.from_numpy(flagged), ranking)
    yield "another class is predicted", (probabilities.argmax(1) != labels, doubt)
    yield "confidence below 0.5", (doubt > 0.5, doubt)


def better(
    features: dict[str, Tensor], each: dict[str, Tensor], labels: Tensor, fit: Callable[..., tuple[Tensor, int]]
) -> Iterator[tuple[str, Tensor]]:
    """Out-of-fold probabilities of a probe that memorizes wrong labels, of each network, and of all together."""
    yield "the first network, penalty 1", fit(next(iter(features.values())), labels, l2=1.0)[0]
    yield from each.items()
    if len(features) > 1:
        yield "all networks", average_probabilities(list(each.values()), labels)
        yield "their mean, not calibrated again", torch.stack(list(each.values())).mean(0)
        yield "one probe on all features", fit(join(features.values()), labels)[0]


def join(features: Iterable[Tensor]) -> Tensor:
    """Features (N, D) of several networks side by side, each centered and of the same scale."""
    centered = [values - values.mean(0) for values in features]
    return torch.cat([values / values.square().sum(1).mean().sqrt() for values in centered], 1)


def measure(flagged: Tensor, suspicion: Tensor, wrong: Tensor) -> list[float]:
    """The `MEASURES` of what a method found."""
    hits, found, number = int((flagged & wrong).sum()), int(flagged.sum()), int(wrong.sum())
    ranked = wrong[suspicion.argsort(descending=True, stable=True)].double()
    places = torch.arange(1, len(ranked) + 1)
    average = float((ranked.cumsum(0) / places)[ranked == 1].mean())
    below = (1 - ranked).flip(0).cumsum(0).flip(0)  # right labels that are ranked lower
    auc = float(below[ranked == 1].mean()) / (len(ranked) - number)
    precision, recall, f1 = hits / max(found, 1), hits / number, 2 * hits / (found + number)
    return [found, precision, recall, f1, average, auc, float(ranked[:100].mean()), float(ranked[:number].mean())]


def print_table(title: str, rows: dict[str, list[list[float]]]) -> None:
    print(f"| {title} | {' | '.join(MEASURES)} |\n|{'---|' * (1 + len(MEASURES))}")
    for name, seeds in rows.items():
        cells = [f"{statistics.mean(values):.0f}" for values in list(zip(*seeds, strict=True))[:1]]
        for values in list(zip(*seeds, strict=True))[1:]:
            spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.3f}{spread}")
        print(f"| {name} | {' | '.join(cells)} |")
    print()


if __name__ == "__main__":
    main()
