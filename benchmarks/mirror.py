"""What `mirror = "auto"` decides on drawn sets whose classes a mirror exchanges or not, and what it costs.

    python benchmarks/mirror.py --photos 20 --photos 150
    python benchmarks/mirror.py --photos 60 --data 17flowers.tgz

Classes have neutral names, so only the measurement decides. The test accuracies are those of a fitted head on each
photo and its mirror image, and on the photo alone. Seconds are those of the test alone, on features that are not in the
cache.
"""

import argparse
import dataclasses
import os
import tempfile
import time
from pathlib import Path

from mirror_sets import EXCHANGED, UNCHANGED, Drawing

from flowers_torch.config import HEAD_ONLY, Config
from flowers_torch.config_file import load_config
from flowers_torch.runs import recipe
from flowers_torch.runs.experiment import Experiment
from flowers_torch.runs.mirroring import measure_mirror

HEAD = {"stages.head.cached_views": 2, "stages.head.augment": "mirror"}
HEADING = "| set | photos of a class | features | recognized | changed | pair exchanged | p | mirror | seconds |"


def draw_set(root: Path, classes: int, draw: Drawing, count: int) -> None:
    """Writes a folder of each class."""
    for label in range(classes):
        folder = root / f"class_{label}"
        folder.mkdir(parents=True)
        for index in range(count):
            draw(index, label).save(folder / f"{index}.png")


def measure(root: Path, weights: str, count: int, args: argparse.Namespace) -> None:
    """Prints a row: what the test says, and test accuracies with and without mirroring."""
    overrides = {"weights": weights, "size": args.size, "groups": "none", "mirror": "yes", "seed": args.seed}
    config = load_config(args.arch, str(root), overrides=overrides | HEAD_ONLY | HEAD)
    with tempfile.TemporaryDirectory() as cache:
        os.environ["FLOWERS_TORCH_CACHE"] = cache
        experiment, model = Experiment.new(config)
        started = time.perf_counter()
        found, kind = measure_mirror(experiment.filtered, experiment.splits, experiment.features, model)
        seconds = time.perf_counter() - started
    decision = "no" if found.exchanges_classes else "yes" if found.is_conclusive else "yes (too few)"
    row = [root.name, count, kind, f"{found.recognized} of {found.images}", found.changed]
    row += [f"{found.exchanged} of {found.of_pair}", f"{found.p_value:.1g}", decision, f"{seconds:.1f}"]
    if args.train and weights != "none":
        row += [f"{accuracy(config, mirror, root.parent):.3f}" for mirror in ("yes", "no")]
    print("|", " | ".join(map(str, row)), "|", flush=True)


def accuracy(config: Config, mirror: str, folder: Path) -> float:
    """Test accuracy of a run."""
    return recipe.train(dataclasses.replace(config, mirror=mirror), folder / "run", overwrite=True).test.accuracy


def main() -> None:
    """Prints one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, action="append", help="of each class [20]")
    parser.add_argument("--arch", default="tf_efficientnet_lite0")
    parser.add_argument("--weights", action="append", help="offline, imagenet or none [offline]")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train", action="store_true", help="train with mirroring and without it too")
    parser.add_argument("--only", default="", help="names that contain this")
    parser.add_argument("--data", default="", help="measure these photos instead")
    args = parser.parse_args()
    tested = " with | without |" if args.train else ""
    print(HEADING + tested + "\n" + "|---" * (HEADING.count("|") - 1 + tested.count("|")) + "|")
    for weights in args.weights or ["offline"]:
        if args.data:
            measure(Path(args.data), weights, 0, args)
            continue
        for count in args.photos or [20]:
            for name, (classes, draw) in (EXCHANGED | UNCHANGED).items():
                if args.only in name:
                    with tempfile.TemporaryDirectory() as temporary:
                        draw_set(Path(temporary) / name, classes, draw, count)
                        measure(Path(temporary) / name, weights, count, args)


if __name__ == "__main__":
    main()
