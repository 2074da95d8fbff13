"""Decisions on label issues, and `labels.csv`: all photos of a run with the labels that a person decided on.

The table holds the old label beside the new one, so every decision can be taken back. Photos are never changed,
moved or deleted.
"""

import dataclasses
import datetime
import functools
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowers_torch.config import Config, split_fractions
from flowers_torch.data.tar_members import split_path
from flowers_torch.errors import DataError, UsageError, printable
from flowers_torch.evaluation.nearest import directions, nearest
from flowers_torch.files.atomic import write_csv
from flowers_torch.files.reading import read_csv
from flowers_torch.runs.experiment import Experiment
from flowers_torch.shell import command_line

LABELS_FILE = "labels.csv"
ACTIONS = ("keep", "relabel", "exclude")
SIMILAR = 4  # photos shown of each class
COLUMNS = ("file", "label", "exclude", "split", "group", "old_label", "decision", "decided")


@dataclasses.dataclass(frozen=True)
class Decision:
    """What a person decided about a photo."""

    action: str  # one of ACTIONS
    label: str  # the new label of "relabel", else the old one
    time: str  # UTC, ISO 8601


class LabelReview:
    """The label issues of a run and the decisions on them. Each decision is written to the table immediately.

    Safe to use from several threads.

    Args:
        experiment: A finished run.
        issues: The `label_issues` of `find_run_label_issues`.
        features: (N, D) of all images, for the most similar photos.

    Raises:
        DataError: the table of an earlier review cannot be read.
        UsageError: the photos lie in tar archives, which a table cannot name.
    """

    def __init__(self, experiment: Experiment, issues: Sequence[dict[str, Any]], features: Tensor) -> None:
        self.dataset, self.splits, self.config = experiment.dataset, experiment.splits, experiment.config
        if any(split_path(self.dataset.root / path) for path in self.dataset.paths[:1]):
            raise UsageError("the photos lie in tar archives, which no table can name", "unpack them, and train again")
        self.run_folder, self.path = experiment.folder, experiment.folder / LABELS_FILE
        self.issues, self.units = list(issues), directions(features)
        self.index = {path: number for number, path in enumerate(self.dataset.paths)}
        self.labels = torch.tensor(self.dataset.labels)
        self.lock = threading.Lock()
        self.decisions = self._read()  # by path, the latest last

    def file(self, index: int) -> Path:
        """The file of an image."""
        return self.dataset.root / self.dataset.paths[index]

    def old_label(self, path: str) -> str:
        """The label that the run was trained with."""
        return self.dataset.classes[self.dataset.labels[self.index[path]]]

    def state(self) -> dict[str, Any]:
        """Everything that the page shows, as JSON values. Photos and classes are numbers; names are printable."""
        rows = [
            {
                "image": self.index[issue["file"]],
                "file": printable(issue["file"]),
                "label": self.dataset.classes.index(issue["label"]),
                "looks_like": self.dataset.classes.index(issue["looks_like"]),
                "probability": issue["probability"],
                "probability_of_label": issue["probability_of_label"],
                "decision": self._describe(issue["file"]),
            }
            for issue in self.issues
        ]
        return {"issues": rows, "classes": [printable(name) for name in self.dataset.classes], "saved": self.summary()}

    def similar(self, number: int) -> dict[str, list[int]]:
        """The images most similar to that of an issue: of the class of its label, and of the suggested class."""
        issue = self._issue(number)
        found = {}
        for key in ("label", "looks_like"):
            members = (self.labels == self.dataset.classes.index(issue[key])).nonzero()[:, 0]
            found[key] = nearest(self.units, self.index[issue["file"]], members, SIMILAR)
        return found

    def decide(self, number: int, action: str, label: int | None = None) -> dict[str, Any]:
        """Decides on an issue and writes the table. `label` is the index of the new class for "relabel".

        Raises:
            UsageError: no such issue, action or class.
        """
        path = self._issue(number)["file"]
        new = old = self.old_label(path)
        if action not in ACTIONS:
            raise UsageError(f"{printable(action, 40)} is not a valid decision", f"use {', '.join(ACTIONS)}")
        if action == "relabel":
            if label is None or not 0 <= label < len(self.dataset.classes):
                raise UsageError("relabel needs a class", "choose one of the list")
            new = self.dataset.classes[label]
            action = "keep" if new == old else action
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds")
        with self.lock:
            self.decisions.pop(path, None)
            self.decisions[path] = Decision(action, new, now)
            self._write()
        return {"issue": number, "decision": self._describe(path), "saved": self.summary()}

    def undo(self, number: int | None = None) -> dict[str, Any]:
        """Takes back the decision on an issue, or the latest one. `issue` of the result is None if there is none."""
        with self.lock:
            numbers = {issue["file"]: place for place, issue in enumerate(self.issues)}
            latest = next((path for path in reversed(self.decisions) if path in numbers), None)
            path = latest if number is None else self._issue(number)["file"]
            if path is None or self.decisions.pop(path, None) is None:
                return {"issue": None, "decision": None, "saved": self.summary()}
            self._write()
        return {"issue": numbers[path], "decision": None, "saved": self.summary()}

    def summary(self) -> dict[str, Any]:
        """What is saved: counts by action, the table, and the command that trains with it."""
        counts = Counter(decision.action for decision in list(self.decisions.values()))
        return {action: counts[action] for action in ACTIONS} | {
            "table": printable(self.path.absolute(), 1000),
            "command": self.command(),
        }

    def command(self) -> str:
        """The command that repeats the run with the table; options that name files of the old data are reset."""
        config, reset = self.config, []
        if config.classes:
            reset += ["--set", "classes="]
        if config.exclude:
            reset += ["--set", "exclude="]
        if config.groups not in ("duplicates", "none"):
            reset += ["--groups", "duplicates"]
        if split_fractions(config.split) is None:
            reset += ["--split", Config.split]
        file = (self.run_folder / "config.toml").absolute()
        return command_line("flowers-torch", "train", "--config", file, "--data", self.path.absolute(), *reset)

    def _issue(self, number: int) -> dict[str, Any]:
        if not 0 <= number < len(self.issues):
            raise UsageError(f"there is no label issue {number}", "load the page again")
        return self.issues[number]

    def _describe(self, path: str) -> dict[str, Any] | None:
        """A decision as JSON values; `label` is -1 for a class that was written by hand."""
        decision, classes = self.decisions.get(path), self.dataset.classes
        if decision is None:
            return None
        label = classes.index(decision.label) if decision.label in classes else -1
        return {"action": decision.action, "label": label, "name": printable(decision.label)}

    @functools.cached_property
    def _split_of(self) -> dict[int, str]:
        return {index: split for split, indices in self.splits.items() for index in indices}

    @functools.cached_property
    def _files(self) -> list[str]:
        """The paths of the images in the table."""
        return [self.file(index).absolute().as_posix() for index in range(len(self.dataset))]

    def _write(self) -> None:
        data, has_splits, rows = self.dataset, self._splits_remain(), []
        for index, path in enumerate(data.paths):
            old, decision = self.old_label(path), self.decisions.get(path)
            excluded = decision is not None and decision.action == "exclude"
            row = {"file": self._files[index], "label": decision.label if decision else old}
            row |= {"exclude": "yes" if excluded else "", "old_label": old}
            row |= {"split": self._split_of[index]} if has_splits else {}
            row |= {"group": data.groups.get(path, "")} if data.groups else {}
            row |= {"decision": decision.action, "decided": decision.time} if decision else {}
            rows.append(row)
        used = [name for name in COLUMNS if name not in ("split", "group")]
        used += ["split"] * has_splits + ["group"] * bool(data.groups)
        write_csv(self.path, rows, [name for name in COLUMNS if name in used])

    def _splits_remain(self) -> bool:
        """Whether every split still has photos of the same classes; a table with other splits could not be read."""
        classes: dict[str, set[str]] = {}
        for index, split in self._split_of.items():
            path = self.dataset.paths[index]
            decision = self.decisions.get(path)
            if decision is None or decision.action != "exclude":
                classes.setdefault(split, set()).add(decision.label if decision else self.old_label(path))
        return len(self._split_of) == len(self.dataset) and all(
            names == classes.get("train") for names in classes.values()
        )

    def _read(self) -> dict[str, Decision]:
        """The decisions of an earlier review; a label that was changed by hand counts as one."""
        if not self.path.exists():
            return {}
        fix = "correct it, or move it away to start again"
        rows = read_csv(self.path, "a table of labels", ["file", "label", "old_label", "decision"], fix)
        files = dict(zip(self._files, self.dataset.paths, strict=True))
        found: dict[str, Decision] = {}
        for row in rows:
            path, action, label = files.get(row["file"]), row["decision"], row["label"]
            if path is None:
                continue  # another photo than those of the run; the table does not keep it
            if not action and (label != row["old_label"] or (row.get("exclude") or "").lower() == "yes"):
                action = "relabel" if label != row["old_label"] else "exclude"
            if not action:
                continue
            if row["old_label"] != self.old_label(path):
                what = f"{printable(self.path)} is of a run with another label of {printable(row['file'])}"
                raise DataError(what, "move it away to start again")
            if action not in ACTIONS or not label:
                what = f"{printable(self.path)} has no valid decision on {printable(row['file'])}"
                raise DataError(what, fix)
            found[path] = Decision(action, label, row.get("decided") or "")
        return dict(sorted(found.items(), key=lambda pair: pair[1].time))
