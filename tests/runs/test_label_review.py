"""Decisions on label issues: labels.csv, undo, and a review that resumes."""

import csv
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from flowers_torch.config import Config
from flowers_torch.data.sources.folders import find_images
from flowers_torch.data.sources.tables import read_table
from flowers_torch.errors import DataError, UsageError
from flowers_torch.runs.label_review import SIMILAR, LabelReview
from flowers_torch.runs.review_page import review_page

ISSUES = [("blue/0.png", "red"), ("red/1.png", "green"), ("green/2.png", "blue"), ("red/19.png", "blue")]


@pytest.fixture
def experiment(photo_folder: Path, tmp_path: Path) -> Any:
    """What a review needs of a run: its photos with their splits, configuration and folder."""
    dataset = find_images(photo_folder)
    splits = {"train": list(range(0, 60, 2)), "val": list(range(1, 60, 4)), "test": list(range(3, 60, 4))}
    return SimpleNamespace(dataset=dataset, splits=splits, config=Config(), folder=tmp_path)


def make(experiment: Any, issues: list[tuple[str, str]] = ISSUES) -> LabelReview:
    found = [
        {
            "file": file,
            "label": file.split("/")[0],
            "looks_like": other,
            "probability": 0.9,
            "probability_of_label": 0.1,
        }
        for file, other in issues
    ]
    features = torch.randn(60, 8, generator=torch.Generator().manual_seed(0))
    return LabelReview(experiment, found, features)


def rows_of(review: LabelReview) -> dict[str, dict[str, str]]:
    with review.path.open(newline="") as file:
        return {"/".join(Path(row["file"]).parts[-2:]): row for row in csv.DictReader(file)}


def test_decisions_make_a_table_that_training_takes(experiment: Any) -> None:
    review = make(experiment)
    assert not review.path.exists()  # nothing was decided
    review.decide(0, "relabel", review.dataset.classes.index("red"))
    review.decide(1, "keep")
    saved = review.decide(2, "exclude")["saved"]
    assert (saved["keep"], saved["relabel"], saved["exclude"]) == (1, 1, 1)
    rows = rows_of(review)
    assert len(rows) == 60 and set(rows) == set(review.dataset.paths)
    changed = {name: (row["label"], row["old_label"], row["exclude"], row["decision"]) for name, row in rows.items()}
    assert changed["blue/0.png"] == ("red", "blue", "", "relabel")
    assert changed["red/1.png"] == ("red", "red", "", "keep")
    assert changed["green/2.png"] == ("green", "green", "yes", "exclude")
    assert sum(row["decision"] == "" for row in rows.values()) == 57
    read = read_table(review.path)
    labels = {Path(path).parts[-2:]: read.classes[label] for path, label in zip(read.paths, read.labels, strict=True)}
    assert len(read) == 59 and ("green", "2.png") not in labels and labels["blue", "0.png"] == "red"
    assert any("1 photo left out by column exclude" in note and "green/2.png" in note for note in read.notes)
    before = {path: split for split, members in experiment.splits.items() for path in members}
    of_read = {"/".join(Path(path).parts[-2:]): split for path, split in read.split.items()}
    assert all(before[review.index[path]] == split for path, split in of_read.items())


def test_a_split_that_loses_a_class_ends_the_column_of_the_splits(experiment: Any) -> None:
    """`read_table` refuses splits with different classes."""
    index = {path: i for i, path in enumerate(experiment.dataset.paths)}
    only = index["blue/0.png"]
    reds = [i for path, i in index.items() if path.startswith("red")]
    test = [only, *reds[:2], *(i for path, i in index.items() if path.startswith("green/1"))]
    experiment.splits = {"train": [i for i in index.values() if i not in test], "test": test}
    review = make(experiment)
    review.decide(1, "keep")
    assert "split" in rows_of(review)["red/1.png"] and read_table(review.path).split
    review.decide(0, "exclude")
    assert "split" not in rows_of(review)["red/1.png"] and not read_table(review.path).split
    review.undo()
    assert read_table(review.path).split


def test_undo_takes_back_the_latest_decision_or_that_of_an_issue(experiment: Any) -> None:
    review = make(experiment)
    for number in range(3):
        review.decide(number, "exclude")
    review.decide(0, "keep")  # now the latest
    assert review.undo()["issue"] == 0 and review.undo()["issue"] == 2 and review.undo(1)["issue"] == 1
    assert review.undo() == {"issue": None, "decision": None, "saved": review.summary()}
    assert review.undo(3)["issue"] is None
    rows = rows_of(review)
    assert all(row["label"] == row["old_label"] and not row["exclude"] + row["decision"] for row in rows.values())


def test_a_review_resumes_with_the_order_and_with_changes_by_hand(experiment: Any) -> None:
    review = make(experiment)
    review.decide(2, "exclude")
    review.decide(0, "relabel", review.dataset.classes.index("green"))
    text = review.path.read_text().splitlines()
    hand = next(i for i, line in enumerate(text) if "red/5.png" in line)
    text[hand] = text[hand].replace("red,", "Rose à fleurs,", 1)
    review.path.write_text("\n".join(text))
    again = make(experiment)
    decisions = [row["decision"] for row in again.state()["issues"]]
    green = again.dataset.classes.index("green")
    assert decisions[0] == {"action": "relabel", "label": green, "name": "green"}
    assert decisions[1] is None and decisions[2]["action"] == "exclude"
    assert again.undo()["issue"] == 0  # the latest of the earlier session
    again.decide(1, "keep")
    row = rows_of(again)["red/5.png"]
    assert (row["label"], row["old_label"], row["decision"]) == ("Rose à fleurs", "red", "relabel")


def test_relabeling_with_the_own_label_keeps_it(experiment: Any) -> None:
    review = make(experiment)
    assert review.decide(0, "relabel", 0)["decision"] == {"action": "keep", "label": 0, "name": "blue"}


@pytest.mark.parametrize(
    "arguments", [(4, "keep"), (-1, "keep"), (0, "delete"), (0, "relabel"), (0, "relabel", 3), (0, "relabel", -1)]
)
def test_invalid_decisions_change_nothing(experiment: Any, arguments: tuple[Any, ...]) -> None:
    review = make(experiment)
    with pytest.raises(UsageError):
        review.decide(*arguments)
    assert not review.decisions and not review.path.exists()


def test_a_damaged_table_is_an_error_with_a_fix(experiment: Any) -> None:
    make(experiment).decide(0, "keep")
    path = experiment.folder / "labels.csv"
    path.write_text(path.read_text().replace(",keep,", ",maybe,"))
    with pytest.raises(DataError, match="no valid decision on .*blue/0.png; fix: correct it, or move it away"):
        make(experiment)
    path.write_text(path.read_text().replace(",maybe,", ",keep,").replace(",blue,keep,", ",red,keep,"))
    with pytest.raises(DataError, match="another label of .*blue/0.png; fix: move it away"):
        make(experiment)
    path.write_text("file\n")
    with pytest.raises(DataError, match="labels.csv.*fix: correct it"):
        make(experiment)


def test_similar_photos_are_of_the_two_classes(experiment: Any) -> None:
    review = make(experiment)
    found = review.similar(0)
    assert (
        len(found["label"]) == len(found["looks_like"]) == SIMILAR and review.index["blue/0.png"] not in found["label"]
    )
    names = {key: {review.dataset.classes[review.dataset.labels[i]] for i in found[key]} for key in found}
    assert names == {"label": {"blue"}, "looks_like": {"red"}}
    cosine = review.units @ review.units[review.index["blue/0.png"]]
    values = [float(cosine[i]) for i in found["looks_like"]]
    members = [i for i, label in enumerate(review.dataset.labels) if review.dataset.classes[label] == "red"]
    assert values == sorted((float(cosine[i]) for i in members), reverse=True)[:SIMILAR]


def test_the_command_resets_what_names_files_of_the_old_data(experiment: Any) -> None:
    words = shlex.split(make(experiment).command())
    assert words[:3] == ["flowers-torch", "train", "--config"] and "--set" not in words
    experiment.config = Config(exclude="check/exclude.csv", groups="groups.csv", split="oxford1", classes="leaf")
    words = shlex.split(make(experiment).command())
    assert words[words.index("--groups") + 1] == "duplicates" and words[words.index("--split") + 1] == Config.split
    assert [words[i + 1] for i, word in enumerate(words) if word == "--set"] == ["classes=", "exclude="]


def test_photos_in_tar_archives_are_refused(experiment: Any, tmp_path: Path) -> None:
    experiment.dataset = SimpleNamespace(root=tmp_path / "a.tar", paths=("x.png",), classes=("a",), labels=(0,))
    (tmp_path / "a.tar").write_bytes(b"")
    with pytest.raises(UsageError, match="unpack them"):
        make(experiment)


def test_the_page_sends_what_was_decided(experiment: Any) -> None:
    review = make(experiment)
    with review_page(review) as page:
        assert page.decide({"action": "exclude", "issue": 1})["decision"]["action"] == "exclude"
        assert page.decide({"action": "undo"})["issue"] == 1 and page.decide({"action": "undo"})["issue"] is None
        for request in ({}, {"action": "keep"}, {"action": "keep", "issue": "0"}, {"action": "keep", "issue": True}):
            with pytest.raises(UsageError):
                page.decide(request)
        html = page.files[""][0].decode()
        assert "review.js" in html and set(page.files) == {"", "review.css", "review.js", "icon.svg"}
