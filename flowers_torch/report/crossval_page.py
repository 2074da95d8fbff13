"""`report.html` of a cross-validation: the folds together, each class, and the photos that are wrong most often."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flowers_torch.data.dataset import ImageDataset
from flowers_torch.evaluation.metrics import wilson
from flowers_torch.files.atomic import write_text
from flowers_torch.report.image_sections import thumbnails
from flowers_torch.report.templating import render

CONFUSIONS = 20  # commonest ones that are listed
MISTAKES = 36  # photos shown, those that most repeats get wrong first


def write_crossval_report(
    folder: Path, summary: dict[str, Any], rows: Sequence[dict[str, Any]], dataset: ImageDataset, arch: str
) -> Path:
    """Writes the page into the folder of a cross-validation.

    Args:
        summary: The content of `crossval.json`.
        rows: The rows of `predictions.csv`: each photo once for each repeat.
        dataset: Where the photos are.
    """
    repeats = len({row["seed"] for row in rows})
    correct = sum(map(is_correct, rows))
    images = len(rows) // repeats
    values = {
        "summary": summary,
        "data": dataset.name,
        "arch": arch,
        "folder": folder.name,
        "repeats": repeats,
        "images": images,
        "accuracy": correct / len(rows),
        # Repeats test the same photos again, so they make no more photos.
        "interval": wilson(correct / repeats, images),
        "folds": [run | {"interval": wilson(run["correct"], run["images"])} for run in summary["runs"]],
        "classes": class_rows(rows, repeats),
        "confusions": confusions(rows),
        "mistakes": mistakes(rows, repeats, dataset),
    }
    write_text(folder / "report.html", render("crossval.html.jinja", values))
    return folder / "report.html"


def is_correct(row: dict[str, Any]) -> bool:
    """Whether a row of `predictions.csv`, whose values may be texts, is of a correct prediction."""
    return str(row["correct"]) == "1"


def class_rows(rows: Sequence[dict[str, Any]], repeats: int) -> list[dict[str, Any]]:
    """Name, photos, recall and its interval of each class, the lowest recall first."""
    counts: dict[str, list[bool]] = defaultdict(list)
    for row in rows:
        counts[row["label"]].append(is_correct(row))
    found = [
        {
            "name": name,
            "photos": len(own) // repeats,
            "recall": sum(own) / len(own),
            "interval": wilson(sum(own) / repeats, len(own) / repeats),
        }
        for name, own in counts.items()
    ]
    return sorted(found, key=lambda row: (row["recall"], row["name"]))


def confusions(rows: Sequence[dict[str, Any]]) -> list[tuple[str, str, int]]:
    """(label, predicted class, count) of the commonest mistakes."""
    counts = Counter((row["label"], row["predicted"]) for row in rows if not is_correct(row))
    return [(*pair, count) for pair, count in counts.most_common(CONFUSIONS)]


def mistakes(rows: Sequence[dict[str, Any]], repeats: int, dataset: ImageDataset) -> list[dict[str, Any]]:
    """The photos that most repeats get wrong first, with their pictures."""
    wrong: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        if not is_correct(row):
            wrong[row["file"]].append(row)
    worst = sorted(wrong.values(), key=lambda own: -len(own))[:MISTAKES]
    known = set(dataset.paths)
    files = [own[0]["file"] for own in worst]
    made = thumbnails([dataset.root / (file if file in known else "") for file in files])  # guard: S1 crossval
    return [
        {
            "file": own[0]["file"],
            "src": src,
            "label": own[0]["label"],
            "predicted": Counter(row["predicted"] for row in own).most_common(1)[0][0],
            "often": f"wrong in {len(own)} of {repeats} repeats" if repeats > 1 else "",
        }
        for own, src in zip(worst, made, strict=True)
    ]
