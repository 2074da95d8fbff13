"""`flowers-torch evaluate RUN|WEIGHTS [DATA]`: how good a trained model is on labelled photos."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowers_torch.commands import add_data
from flowers_torch.errors import DataError, UsageError, printable

if TYPE_CHECKING:
    from flowers_torch.data.dataset import ImageDataset
    from flowers_torch.evaluation.metrics import Scores
    from flowers_torch.evaluation.predictions import Predictions

EXAMPLES = """examples:
  flowers-torch evaluate runs/photos-inception_v3-1                   its own test photos, once more
  flowers-torch evaluate runs/photos-inception_v3-1 other_photos/     folders named as the classes
  flowers-torch evaluate runs/photos-inception_v3-1 --tta auto        do several views of a photo help?
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of evaluation."""
    parser.description = "Accuracy and more, with intervals, of a trained model on labelled photos."
    parser.epilog = EXAMPLES
    parser.add_argument("model", help="run folder or model.safetensors")
    parser.add_argument("data", nargs="?", help="labelled photos; of a run folder also: its own test photos")
    add_data(parser)
    parser.add_argument(
        "--part", default="", metavar="P", help="train | val | test: photos of that part only"
    )
    parser.add_argument(
        "--tta", default="none", metavar="V", help="views of a photo: flip | scales | crop5 ..."
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for metrics.json and predictions.csv")
    parser.add_argument("--save", action="store_true", help="test a run anew and replace its results")
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    parser.add_argument("--batch-size", type=int, default=32, metavar="N", help="photos computed at once")
    parser.add_argument("--device", default="auto", help="auto | cpu | cuda | cuda:1 | mps")


def run(args: argparse.Namespace) -> int:
    """Prints accuracy with its interval, averages, each class; with --json all of it."""
    from flowers_torch.evaluation.tta import VIEWS
    from flowers_torch.files.atomic import to_json, write_csv, write_json
    from flowers_torch.log import console

    model = Path(args.model).expanduser()
    if args.batch_size < 1:
        raise UsageError("--batch-size must be 1 or more", "give a positive number")
    if args.tta not in (*VIEWS, "auto"):
        raise UsageError(f"--tta {printable(args.tta)} is unknown", f"use auto, {', '.join(VIEWS)}")
    if args.part not in ("", "train", "val", "test"):
        raise UsageError(f"--part {printable(args.part)} is unknown", "use train, val or test")
    if args.save:
        if args.data or args.part or args.tta != "none" or args.out or args.json:
            raise UsageError("--save tests the run as training does", "give --save and the run alone")
        with console():
            return _save(model, args.device, args.moved)
    if args.moved and args.data:
        raise UsageError("--data is where the photos of a run are; others stand alone", "give one of them")
    if args.data is None and not model.is_dir():
        raise UsageError("a weights file alone has no test photos", "name labelled photos after it")
    scores, choice, rows = _evaluate(args, model)
    classes = tuple(scores["classes"])
    result: Scores = scores["scores"]
    report: dict[str, Any] = {"model": str(model), **choice, **result.to_dict(classes)}
    if args.out:
        write_json(args.out / "metrics.json", report)
        write_csv(args.out / "predictions.csv", rows)
    if args.json:
        print(to_json(report, indent=1))
    else:
        _print(result, classes, choice)
    return 0


def _save(folder: Path, device: str, data: str) -> int:
    from flowers_torch.files.tensors import safe_load
    from flowers_torch.report.run_summary import read_history
    from flowers_torch.runs.experiment import Experiment
    from flowers_torch.runs.results import write_results
    from flowers_torch.training.checkpoint import RunState

    experiment, network = Experiment.open(folder, device, data)
    best = safe_load(folder / "model.safetensors")[1].get("best", {})
    old = json.loads((folder / "metrics.json").read_text()) if (folder / "metrics.json").is_file() else {}
    state = RunState(history=read_history(folder), best=best, changes=old.get("changes", []))
    write_results(experiment, network, state)
    return 0


def _evaluate(args: argparse.Namespace, model: Path) -> tuple[dict[str, Any], dict[str, Any], list[Any]]:
    """The scores with their classes, how they were got, and a row for each photo."""
    from flowers_torch.data.sources.open import open_dataset
    from flowers_torch.evaluation.calibration import fit_temperature
    from flowers_torch.evaluation.metrics import score
    from flowers_torch.evaluation.summary import prediction_rows
    from flowers_torch.evaluation.tta import VIEWS
    from flowers_torch.models.checkpoint import load_classifier
    from flowers_torch.runs.experiment import Experiment
    from flowers_torch.training.device import choose_runtime

    own = None
    if args.data is None:
        own, network = Experiment.open(model, args.device, args.moved)
        info, runtime, photos = own.info, own.runtime, own.dataset
        chosen = own.splits[args.part or "test"]
    else:
        runtime = choose_runtime(args.device, "fp32")
        network, info = load_classifier(model)
        network = runtime.place(network)
        photos = open_dataset(args.data)
        chosen = [i for i, path in enumerate(photos.paths) if args.part in ("", photos.split.get(path))]
        if not chosen:
            raise DataError(f"{printable(args.data)} has no {args.part} photos", "leave out --part")
        if known := trained_on(model, photos, chosen):
            print(
                f"flowers-torch: {known} of these {len(chosen)} photos trained the model or chose its "
                "weights, "
                "so the numbers flatter it",
                file=sys.stderr,
            )
    labels = translate_labels(photos, info.classes)

    def answers(indices: list[int], views: str) -> "Predictions":
        from flowers_torch.evaluation.evaluate import predict_images

        paths = [photos.root / photos.paths[i] for i in indices]
        return predict_images(
            network,
            info.preprocessing,
            paths,
            [labels[i] for i in indices],
            runtime,
            views,
            args.batch_size,
        )

    plain = answers(chosen, "none")
    choice: dict[str, Any] = {"views": args.tta}
    final, temperature = plain, info.temperature
    if args.tta != "none":
        if own is None:
            if args.tta == "auto":
                raise UsageError(
                    "--tta auto chooses on the validation photos of a run", "name a run, no data"
                )
            final = answers(chosen, args.tta)
        else:
            tried = {}
            for name in VIEWS if args.tta == "auto" else ("none", args.tta):
                val = answers(own.splits["val"], name)
                heat = fit_temperature(val.logits, val.labels)
                tried[name] = (score(val.logits / heat, val.labels), heat)
            best = min(tried, key=lambda name: tried[name][0].loss) if args.tta == "auto" else args.tta
            temperature = tried[best][1]
            final = plain if best == "none" else answers(chosen, best)
            choice["views"] = best
            choice["validation"] = {
                name: {"accuracy": scores.accuracy, "loss": scores.loss}
                for name, (scores, _) in tried.items()
            }
        without = score(plain.logits / info.temperature, plain.labels)
        choice["one_view"] = {"accuracy": without.accuracy, "loss": without.loss}
    logits = final.logits / temperature
    rows = prediction_rows([photos.paths[i] for i in chosen], logits, final.labels, info.classes)
    return {"scores": score(logits, final.labels), "classes": info.classes}, choice, rows


def trained_on(model: Path, photos: "ImageDataset", chosen: list[int]) -> int:
    """How many of the chosen photos the run saw before its test, by path and content; 0 for a bare file."""
    from flowers_torch.data.splits.split_file import fingerprint

    path = (model if model.is_dir() else model.parent) / "split.json"
    if not path.is_file():
        return 0
    parts = json.loads(path.read_text(encoding="utf-8"))["splits"]
    seen = parts["train"] | parts["val"]
    names = [photos.paths[i] for i in chosen]
    return sum(fingerprint(photos.root / name) == seen[name] for name in names if name in seen)


def translate_labels(photos: "ImageDataset", classes: tuple[str, ...]) -> list[int]:
    """The model's label of each photo, by the names of the classes.

    Raises:
        DataError: the photos have classes that the model does not know.
    """
    unknown = [name for name in photos.classes if name not in classes]
    if unknown:
        named = ", ".join(printable(name, 40) for name in unknown[:5])
        raise DataError(
            f"the model knows no class {named}" + (" ..." if len(unknown) > 5 else ""),
            f"name the class folders as the model does: {printable(', '.join(classes), 300)}",
        )
    return [classes.index(photos.classes[label]) for label in photos.labels]


def _print(scores: "Scores", classes: tuple[str, ...], choice: dict[str, Any]) -> None:
    from flowers_torch.evaluation.summary import describe_scores, describe_small_classes

    print(describe_scores(scores, classes, "result"))
    for name, values in choice.get("validation", {}).items():
        print(f"views    {name}: validation accuracy {values['accuracy']:.4f}, loss {values['loss']:.4f}")
    if "one_view" in choice:
        before = choice["one_view"]
        print(f"views    {choice['views']}: accuracy {scores.accuracy:.4f}, loss {scores.loss:.4f}; with one")
        print(f"         view {before['accuracy']:.4f}, {before['loss']:.4f}")
    top = scores.in_top[min(len(scores.in_top), 3) - 1] / scores.images
    macro = scores.averages()["macro"]
    print(
        f"more     top-{min(len(scores.in_top), 3)} {top:.4f}, macro F1 {macro['f1']:.4f}, "
        f"Brier {scores.brier:.4f}, calibration error {scores.calibration_error:.4f}"
    )
    width = min(40, max(len(printable(name, 40)) for name in classes))
    print(f"  {'class':{width}} photos precision recall    F1")
    rows = zip(classes, scores.supports(), scores.precisions(), scores.recalls(), scores.f1s(), strict=True)
    for name, photos, precision, recall, f1 in rows:
        if photos:
            print(
                f"  {printable(name, 40):{width}} {int(photos):6} {float(precision):9.3f} "
                f"{float(recall):6.3f} {float(f1):5.3f}"
            )
    if warning := describe_small_classes(scores, classes):
        print(f"note     {warning}")
