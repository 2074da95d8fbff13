"""`flowers-torch combine RUN RUN ...`: do several runs together do better than the best of them?"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flowers_torch.commands import add_data
from flowers_torch.errors import DataError, UsageError, printable

if TYPE_CHECKING:
    from torch import Tensor

    from flowers_torch.models.checkpoint import ModelInfo


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of combination."""
    parser.description = (
        "Average the answers of runs (an ensemble) and, where they are of one network, their weights (a "
        "soup). Validation chooses; the test of each is shown."
    )
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="run folders, two or more; or that of a cross-validation"
    )
    parser.add_argument("--data", metavar="DATA", help="labelled photos that no run has seen, to try it on")
    add_data(parser, "--run-data")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the best averaged weights there")
    parser.add_argument("--no-weights", action="store_true", help="average answers only, which takes no time")
    parser.add_argument("--device", default="auto", help="auto | cpu | cuda | cuda:1 | mps")


def run(args: argparse.Namespace) -> int:
    """Prints a row for each combination, best on validation last."""
    folders = [folder for name in args.runs for folder in _run_folders(Path(name).expanduser())]
    if len(folders) < 2:
        raise UsageError("combine needs two runs or more", "name another run folder")
    if args.out and (args.no_weights or args.data):
        raise UsageError("--out needs averaged weights, chosen on validation", "leave out the other flags")
    if args.data:
        return _try_on(folders, args.data, not args.no_weights, args.device)

    import dataclasses

    import torch

    from flowers_torch.evaluation.comparison import common_images, select
    from flowers_torch.evaluation.ensembles import (
        State,
        ValAndTest,
        best_candidate,
        mean_prediction,
        model_soups,
        score_candidate,
    )
    from flowers_torch.evaluation.evaluate import predict_images
    from flowers_torch.evaluation.predictions import load_predictions
    from flowers_torch.files.tensors import safe_load
    from flowers_torch.models.checkpoint import read_model_info, save_classifier
    from flowers_torch.runs.experiment import Experiment

    runs = [load_predictions(folder) for folder in folders]
    names = [folder.name for folder in folders]
    paths = {part: common_images(runs, part) for part in ("val", "test")}
    parts = [{part: select(run, part, paths[part]) for part in paths} for run in runs]
    labels = (parts[0]["val"][1], parts[0]["test"][1])

    singles = [
        score_candidate(name, (part["val"][0], part["test"][0]), labels)
        for name, part in zip(names, parts, strict=True)
    ]
    val, test = (mean_prediction([part[p][0] for part in parts]) for p in ("val", "test"))
    candidates = [*singles, score_candidate("answers: mean of all", (val, test), labels)]

    files = [safe_load(folder / "model.safetensors") for folder in folders]
    records = [
        read_model_info(metadata, folder) for (_, metadata), folder in zip(files, folders, strict=True)
    ]
    alike = _are_alike(records)
    if alike and not args.no_weights:
        opened, network = Experiment.open(folders[0], args.device, args.moved)
        place = {path: i for i, path in enumerate(opened.dataset.paths)}

        def predict(state: State) -> ValAndTest:
            network.load_state_dict(state)
            found = []
            for part in ("val", "test"):
                rows = [place[path] for path in paths[part]]
                answers = predict_images(
                    network,
                    opened.info.preprocessing,
                    [opened.dataset.root / opened.dataset.paths[i] for i in rows],
                    [opened.dataset.labels[i] for i in rows],
                    opened.runtime,
                )
                found.append(answers.logits)
            return found[0], found[1]

        states = [state for state, _ in files]
        candidates += model_soups(names, states, singles, labels, predict)
    best = best_candidate(candidates)
    print(f"{len(paths['val'])} validation and {len(paths['test'])} test photos in common")
    width = max(len(printable(c.name, 70)) for c in candidates)
    print(f"  {'':{width}}  val loss      acc  test loss      acc")
    for c in candidates:
        mark = "*" if c is best else " "
        print(
            f"{mark} {printable(c.name, 70):{width}}  {c.val.loss:8.4f} {c.val.accuracy:8.4f}"
            f"   {c.test.loss:8.4f} {c.test.accuracy:8.4f}"
        )
    print("* best on validation" + ("" if alike else "; the networks differ, so weights were not averaged"))
    if args.out:
        averaged = [c for c in candidates if c.state is not None]
        if not averaged:
            raise UsageError("the networks differ, so there are no averaged weights", "leave out --out")
        chosen = best_candidate(averaged)
        # The limits of what the model knows belong to one network's features, not to an average of several.
        info = dataclasses.replace(records[0], temperature=chosen.temperature, selective={})
        state = {name: torch.as_tensor(value) for name, value in (chosen.state or {}).items()}
        save_classifier(state, info, args.out, combined=names)
        print(f"model    {printable(args.out)}: {chosen.name}")
    return 0


def _run_folders(folder: Path) -> list[Path]:
    """The run itself, or the runs of a cross-validation."""
    from flowers_torch.runs.crossval import SUMMARY_FILE

    if not (folder / SUMMARY_FILE).is_file():
        return [folder]
    return [folder / run["folder"] for run in json.loads((folder / SUMMARY_FILE).read_text())["runs"]]


def _try_on(folders: list[Path], data: str, with_weights: bool, device: str) -> int:
    """What runs come to together on other photos; runs of other folds share no validation photos."""
    import torch

    from flowers_torch.commands.evaluate import trained_on, translate_labels
    from flowers_torch.data.sources.open import open_dataset
    from flowers_torch.evaluation.ensembles import average_weights, mean_prediction
    from flowers_torch.evaluation.evaluate import predict_images
    from flowers_torch.evaluation.metrics import score
    from flowers_torch.models.checkpoint import load_classifier
    from flowers_torch.training.device import choose_runtime

    runtime = choose_runtime(device, "fp32")
    models = [load_classifier(folder) for folder in folders]
    classes = models[0][1].classes
    if any(info.classes != classes for _, info in models):
        raise DataError("the runs know different classes", "combine runs of the same data")
    photos = open_dataset(data)
    labels = translate_labels(photos, classes)
    known = max(trained_on(folder, photos, list(range(len(photos)))) for folder in folders)
    if known:
        print(
            f"flowers-torch: {known} of these {len(photos)} photos trained a run or chose its weights, "
            "so the numbers flatter it",
            file=sys.stderr,
        )
    paths = [photos.root / path for path in photos.paths]
    rows: dict[str, Tensor] = {}
    for folder, (model, info) in zip(folders, models, strict=True):
        network = runtime.place(model)
        found = predict_images(network, info.preprocessing, paths, labels, runtime)
        rows[printable(folder.name, 70)] = found.logits / info.temperature
    rows["answers: mean of all"] = mean_prediction(list(rows.values()))
    if with_weights and _are_alike([info for _, info in models]):
        model, info = models[0]
        model.load_state_dict(
            average_weights([m.state_dict() for m, _ in models], [1 / len(models)] * len(models))
        )
        found = predict_images(model, info.preprocessing, paths, labels, runtime)
        rows["weights: mean of all"] = found.logits / info.temperature
    width = max(map(len, rows))
    print(f"{len(photos)} photos\n{'':{width}}    loss      acc   95% interval")
    for name, logits in rows.items():
        scores = score(logits, torch.tensor(labels))
        low, high = scores.interval()
        print(f"{name:{width}}  {scores.loss:6.4f}   {scores.accuracy:.4f}   {low:.3f} .. {high:.3f}")
    return 0


def _are_alike(records: "Sequence[ModelInfo]") -> bool:
    """Whether the networks are one and the same but for their weights."""
    kinds = {(r.arch, r.head_hidden, r.head, str(r.model_options), r.preprocessing) for r in records}
    return len(kinds) == 1
