"""`flowers-torch combine RUN RUN ...`: do several runs together do better than the best of them?"""

import argparse
from pathlib import Path

from flowers_torch.errors import UsageError, printable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of combination."""
    parser.description = (
        "Average the answers of runs (an ensemble) and, where they are of one network, their weights (a "
        "soup). Validation chooses; the test of each is shown."
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders, two or more")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the best averaged weights there")
    parser.add_argument("--no-weights", action="store_true", help="average answers only, which takes no time")
    parser.add_argument("--device", default="auto", help="auto | cpu | cuda | cuda:1 | mps")


def run(args: argparse.Namespace) -> int:
    """Prints a row for each combination, best on validation last."""
    if len(args.runs) < 2:
        raise UsageError("combine needs two runs or more", "name another run folder")
    if args.out and args.no_weights:
        raise UsageError("--out needs averaged weights", "leave out --no-weights")

    import dataclasses

    import torch

    from flowers_torch.evaluation.answers import load_predictions
    from flowers_torch.evaluation.combine import Logits, State, choose, judge, mean_answer, soups
    from flowers_torch.evaluation.compare import common_photos, select
    from flowers_torch.evaluation.evaluate import answer_photos
    from flowers_torch.files import safe_load
    from flowers_torch.models.classifier import read_record, save_classifier
    from flowers_torch.results import open_run

    folders = [Path(name).expanduser() for name in args.runs]
    runs = [load_predictions(folder) for folder in folders]
    names = [folder.name for folder in folders]
    paths = {part: common_photos(runs, part) for part in ("val", "test")}
    parts = [{part: select(run, part, paths[part]) for part in paths} for run in runs]
    labels = (parts[0]["val"][1], parts[0]["test"][1])

    singles = [
        judge(name, (part["val"][0], part["test"][0]), labels)
        for name, part in zip(names, parts, strict=True)
    ]
    val, test = (mean_answer([part[p][0] for part in parts]) for p in ("val", "test"))
    candidates = [*singles, judge("answers: mean of all", (val, test), labels)]

    files = [safe_load(folder / "model.safetensors") for folder in folders]
    records = [read_record(metadata, folder) for (_, metadata), folder in zip(files, folders, strict=True)]
    alike = (
        len({(r.arch, r.head_hidden, r.head, str(r.model_options), r.preprocessing) for r in records}) == 1
    )
    if alike and not args.no_weights:
        opened = open_run(folders[0], args.device)
        place = {path: i for i, path in enumerate(opened.photos.paths)}

        def predict(state: State) -> Logits:
            opened.model.load_state_dict(state)
            found = []
            for part in ("val", "test"):
                rows = [place[path] for path in paths[part]]
                answers = answer_photos(
                    opened.model,
                    opened.record.preprocessing,
                    [opened.photos.root / opened.photos.paths[i] for i in rows],
                    [opened.photos.labels[i] for i in rows],
                    opened.runtime,
                )
                found.append(answers.logits)
            return found[0], found[1]

        states = [state for state, _ in files]
        candidates += soups(names, states, singles, labels, predict)
    best = choose(candidates)
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
        chosen = choose(averaged)
        # The limits of what the model knows belong to one network's features, not to an average of several.
        record = dataclasses.replace(records[0], temperature=chosen.temperature, trust={})
        state = {name: torch.as_tensor(value) for name, value in (chosen.state or {}).items()}
        save_classifier(state, record, args.out, combined=names)
        print(f"model    {printable(args.out)}: {chosen.name}")
    return 0
