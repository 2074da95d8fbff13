"""A tutorial's figure beside ours: one run as lines to read, all recorded runs as docs/reproduction.md."""

import dataclasses
import datetime
import json
import shlex
import statistics
import string
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from flowers_torch.config import Config, Stage, default_stages, load_config, toml_value
from flowers_torch.errors import DataError, UsageError, printable
from flowers_torch.files import write_text
from flowers_torch.report.run_summary import read_history
from flowers_torch.tutorials import DOCUMENTS, EXACT, TUTORIALS, Exact, Tutorial

NOT_MEASURED = "not measured"
# Chosen for the photos or the machine, or said elsewhere in a row.
NO_MATTER = set("data out seed threads workers device precision checkpoint_minutes store_gib".split())


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What one run of a recipe came to; a line of the results file."""

    recipe: str
    data: str  # name of the photos
    stand_in: bool  # other photos than the tutorial's
    seed: int
    correct: int
    photos: int
    low: float
    high: float
    train_seconds: float | None  # of the epochs; None where other work made it meaningless
    changes: tuple[str, ...]  # of the recipe's own options
    machine: str
    versions: str
    date: str

    @property
    def accuracy(self) -> float:
        return self.correct / self.photos


def find_tutorial(recipe: str) -> Tutorial:
    """What a recipe repeats.

    Raises:
        UsageError: no recipe of that name repeats a tutorial.
    """
    if recipe not in TUTORIALS:
        raise UsageError(f"no tutorial is called {printable(recipe)}", f"use one of {', '.join(TUTORIALS)}")
    return TUTORIALS[recipe]


def read_outcome(folder: Path, recipe: str, stand_in: bool = False) -> Outcome:
    """What a finished run came to.

    Args:
        folder: The run folder.
        recipe: That it ran.
        stand_in: Whether on other photos than the tutorial's.

    Raises:
        DataError: no finished run.
    """
    try:
        test = json.loads((folder / "metrics.json").read_text())["test"]
        low, high = test["interval_95"]
        environment = json.loads((folder / "environment.json").read_text())
        config = load_config(file=str(folder / "config.toml"))
        history = read_history(folder)
    except (OSError, KeyError, ValueError) as error:
        raise DataError(f"{printable(folder)} is no finished run", "name the folder of one") from error
    threads = config.threads or environment["threads"]
    place = environment["gpu"] or f"{environment['processor']}, {threads} thread{'s' * (threads > 1)}"
    return Outcome(
        recipe,
        Path(config.data).name,
        stand_in,
        config.seed,
        test["correct"],
        test["photos"],
        low,
        high,
        sum(float(row["seconds"]) for row in history),
        tuple(differences(config, load_config(file=recipe))),
        place,
        f"torch {environment['torch']}, flowers_torch {environment['flowers_torch']}",
        datetime.date.fromtimestamp((folder / "metrics.json").stat().st_mtime).isoformat(),
    )


def recipe_of(folder: Path) -> str:
    """The recipe that a run's command named.

    Raises:
        UsageError: it named none that repeats a tutorial.
    """
    try:
        words = shlex.split((folder / "command.txt").read_text())
    except (OSError, ValueError):
        words = []
    named = [after for word, after in pairwise(words) if word in ("--config", "reproduce")]
    if not named or named[0] not in TUTORIALS:
        what = f"{printable(folder)} does not say which recipe it ran"
        raise UsageError(what, f"name it before --run: one of {', '.join(TUTORIALS)}")
    return named[0]


def with_our_defaults(config: Config) -> Config:
    """A tutorial's recipe with this package's own defaults in place of its schedule.

    The network, head, photos, stages and their epochs stay; optimiser, rate, schedule, augmentation, batch
    size and weighing of classes become the default ones.
    """
    head, rest = default_stages()
    stages = [
        dataclasses.replace(
            head if stage.train == "head" else rest, name=stage.name, epochs=stage.epochs, train=stage.train
        )
        for stage in config.stages
    ]
    return dataclasses.replace(
        config, stages=stages, batch_size=Config.batch_size, class_weights=Config.class_weights
    )


def differences(config: Config, other: Config) -> list[str]:
    """Options of a configuration that differ from another's, as `--set` takes them: `stages.0.lr=0.01`.

    A table of options that lost a key (`model_options={}`), or a list of stages that has not as many, is
    given as a whole. Left out are those that change no result, and what is chosen for the machine.
    """
    ours, theirs = (_flat(dataclasses.asdict(one)) for one in (config, other))
    for values in (ours, theirs):  # a finished run has its weights resolved
        values["weights"] = Path(values["weights"] or "imagenet").name
    whole: dict[str, Any] = {}
    if set(other.model_options) - set(config.model_options):
        whole["model_options"] = config.model_options
    if len(config.stages) != len(other.stages):
        plain = dataclasses.asdict(Stage())
        stages = [dataclasses.asdict(stage) for stage in config.stages]
        whole["stages"] = [{k: v for k, v in stage.items() if v != plain[k]} for stage in stages]
    changed = {
        key: value
        for key, value in ours.items()
        if value != theirs.get(key) and key not in NO_MATTER and key.split(".")[0] not in whole
    }
    return [f"{key}={_as_typed(value)}" for key, value in (changed | whole).items()]


def _as_typed(value: Any) -> str:
    return value if isinstance(value, str) else toml_value(value)


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(values, dict):
        pairs: Iterable[tuple[Any, Any]] = values.items()
    elif prefix == "stages.":
        pairs = enumerate(values)
    else:
        return {prefix.rstrip("."): values}
    return {k: v for key, value in pairs for k, v in _flat(value, f"{prefix}{key}.").items()}


def describe(recipe: str, outcome: Outcome, recorded: Sequence[Outcome] = ()) -> str:
    """The tutorial's figure, ours, what differs on purpose, and what our defaults would change.

    Args:
        recipe: Its name.
        outcome: Of the run to describe.
        recorded: Earlier ones, of which those on the same photos are shown beside it.
    """
    tutorial, config = find_tutorial(recipe), load_config(file=recipe)
    photos = f"{outcome.photos} test photos of {outcome.data}{' (a stand-in)' if outcome.stand_in else ''}"
    ours = f"{outcome.accuracy:.4f} ({outcome.low:.3f} .. {outcome.high:.3f}) on {photos}"
    seconds = _seconds([outcome])
    lines = [
        f"recipe   {recipe}: {tutorial.title} ({tutorial.rows})",
        f"there    {tutorial.figure or 'no figure'} ({tutorial.source})",
        f"here     {ours}, seed {outcome.seed}, {seconds} on {outcome.machine}",
    ]
    if tutorial.accuracy is not None and not outcome.stand_in:
        lines.append(f"gap      {outcome.accuracy - tutorial.accuracy:+.4f}")
    lines += [f"differs  {text}" for text in tutorial.differs]
    lines += [f"changed  {text}" for text in outcome.changes]
    wanted = dict(text.split("=", 1) for text in differences(with_our_defaults(config), config))
    theirs = {key: str(value) for key, value in _flat(dataclasses.asdict(config)).items()}
    lines += [f"default  {key} {value} instead of {theirs[key]}" for key, value in wanted.items()]
    for one in recorded:
        if (one.recipe, one.data) == (recipe, outcome.data) and one != outcome:
            changes = ", ".join(one.changes) or "the recipe as it is"
            lines.append(f"recorded {one.accuracy:.4f} of {one.photos} photos, seed {one.seed}: {changes}")
    return "\n".join(lines)


def read_results(path: Path) -> list[Outcome]:
    """Outcomes of a results file, one JSON object a line; none where it is not there."""
    if not path.is_file():
        return []
    try:
        rows = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
        return [Outcome(**row | {"changes": tuple(row["changes"])}) for row in rows]
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"{printable(path)} is no results file: {printable(error)}", "name another"
        ) from error


def add_result(path: Path, outcome: Outcome) -> None:
    """Adds an outcome to a results file; the same run again replaces its line."""

    def key(one: Outcome) -> tuple[Any, ...]:
        return one.recipe, one.data, one.stand_in, one.seed, one.changes, one.machine

    kept = [one for one in read_results(path) if key(one) != key(outcome)]
    lines = [json.dumps(dataclasses.asdict(one)) for one in [*kept, outcome]]
    write_text(path, "".join(f"{line}\n" for line in lines))


def page(outcomes: list[Outcome]) -> str:
    """docs/reproduction.md: every row, its command, the tutorial's figure, ours."""
    letters = _letters(outcomes)
    trained = [row for recipe in TUTORIALS for row in _trained_rows(recipe, outcomes, letters)]
    more = []
    for group in _groups([one for one in outcomes if not _as_it_is(one)]):
        options = ", ".join(f"`{text}`" for text in group[0].changes)
        more.append(f"| `{group[0].recipe}` | {options} | {_figures(group, letters)} |")
    where = [f"- `{recipe}`: {tutorial.data}." for recipe, tutorial in TUTORIALS.items()]
    differs = [
        f"- `{recipe}`: {text}." for recipe, tutorial in TUTORIALS.items() for text in tutorial.differs
    ]
    return PAGE.format(
        documents="\n".join(f"- {letter}: {text}." for letter, text in DOCUMENTS.items()),
        trained="\n".join(trained),
        more="\n".join(more),
        exact="\n".join(_exact_row(exact) for exact in EXACT),
        where="\n".join(where),
        differs="\n".join(differs),
        machines="\n".join(f"- {letter}: {'; '.join(kind)}." for kind, letter in letters.items()),
    )


def _letters(outcomes: list[Outcome]) -> dict[tuple[str, str], str]:
    """(machine without its threads, versions) to the letter that stands for it in the tables."""
    kinds = sorted({(_place(one)[0], one.versions) for one in outcomes})
    return dict(zip(kinds, string.ascii_uppercase, strict=False))


def _place(outcome: Outcome) -> tuple[str, str]:
    """The machine and "1 thread of "; of a GPU its name and nothing."""
    name, _, threads = outcome.machine.rpartition(", ")
    return (name, f"{threads} of ") if "thread" in threads else (outcome.machine, "")


def _exact_row(exact: Exact) -> str:
    command = exact.command if exact.command.startswith("see ") else f"`{exact.command}`"
    tests = ", ".join(f"`{test}`" for test in exact.tests) + " (only with `-m slow`)" * exact.slow
    return f"| {exact.row} | {exact.what} | {command} | {exact.figure} | {tests} |"


def _trained_rows(recipe: str, outcomes: list[Outcome], letters: dict[tuple[str, str], str]) -> list[str]:
    """A row for each set of photos that the recipe ran on as it is; one that says so where there is none."""
    tutorial = TUTORIALS[recipe]
    head = f"{tutorial.rows} | {tutorial.title}"
    there = tutorial.figure or "no figure"
    own = _groups([one for one in outcomes if one.recipe == recipe and _as_it_is(one)])
    if not own:
        return [f"| {head} | `python train.py --config {recipe}` | {there} | {NOT_MEASURED} | | | |"]
    return [f"| {head} | `{_command(group[0])}` | {there} | {_figures(group, letters)} |" for group in own]


def _command(outcome: Outcome) -> str:
    """What repeats a run of a recipe as it is, but for the seed."""
    data = "" if outcome.data == load_config(file=outcome.recipe).data else f" --data {outcome.data}"
    weights = "".join(f" --{text.replace('=', ' ')}" for text in outcome.changes)
    return f"python train.py --config {outcome.recipe}{data}{weights}"


def _as_it_is(outcome: Outcome) -> bool:
    """Whether nothing but the weights was other than in the recipe."""
    return all(text.startswith("weights=") for text in outcome.changes)


def _groups(outcomes: list[Outcome]) -> list[list[Outcome]]:
    """Runs that differ in their seed alone."""
    groups: dict[tuple[Any, ...], list[Outcome]] = {}
    for one in outcomes:
        key = (one.recipe, one.data, one.stand_in, one.changes, one.machine, one.versions)
        groups.setdefault(key, []).append(one)
    return list(groups.values())


def _figures(runs: list[Outcome], letters: dict[tuple[str, str], str]) -> str:
    """Mean and range over the seeds with the photos, seeds, time, machine: four cells."""
    found = [one.accuracy for one in runs]
    spread = f" ({min(found):.3f} .. {max(found):.3f})" if len(found) > 1 else ""
    if len(found) == 1:
        spread = f" (95% interval {runs[0].low:.3f} .. {runs[0].high:.3f})"
    kind = "stand-in " if runs[0].stand_in else ""
    mean = statistics.fmean(found)
    seeds = ", ".join(str(one.seed) for one in sorted(runs, key=lambda one: one.seed))
    photos = f"{runs[0].photos} photos of {kind}`{runs[0].data}`"
    name, threads = _place(runs[0])
    machine = f"{threads}{letters[name, runs[0].versions]}"
    return f"{mean:.4f}{spread} on {photos} | {seeds} | {_seconds(runs)} | {machine}"


def _seconds(runs: list[Outcome]) -> str:
    known = [one.train_seconds for one in runs if one.train_seconds is not None]
    return f"{statistics.fmean(known):.0f} s" if known else NOT_MEASURED


PAGE = """\
# The tutorials' figures, and ours

Written by `flowers-torch reproduce --page docs/reproduction.md`; change the facts in
`flowers_torch/tutorials.py`, the figures in `benchmarks/reproduction.jsonl`, not this page.

## What the rows name

The tutorials are four texts about Keras 2; each thing that one of them builds or prints is a row here, by
the letter of the text and a number (A1, B8, ...):

{documents}

## How to run one

`flowers-torch reproduce happy_house --data train_happy.h5` runs a recipe and prints the tutorial's figure,
ours, and what differs; `--run FOLDER` reads a finished run instead; `--record` keeps the result for this
page. `--stand-in` says that the photos are others than the tutorial's: the result is then marked, and never
held against the tutorial's figure.

`flowers-torch reproduce NAME` also lists each option in which this package's defaults differ from the
recipe (`default stages.0.lr 0.0003 instead of 0.001`). `--defaults` measures them as a whole: the same
network, photos and epochs with our optimiser, rates and augmentation. What a single option gives was not
measured; `--set` with one of the listed options does that.

## Trained

Test accuracy here; with several seeds the mean and the range. Where the tutorial's photos cannot be had,
the recipe ran on a stand-in of the same form and number of classes, mostly smaller
(`benchmarks/stand_ins.py` makes them of Flowers-17): such a figure says that the recipe works, not that it
reaches the tutorial's. Time is that of the epochs; the machines had other work, so that times are upper
bounds. A command is that of the figure; `--seed` changes the seed. Machines:

{machines}

| row | what | command | there | here | seeds | time | machine |
|---|---|---|---|---|---|---|---|
{trained}

With other options than the recipe's, each as `--set` takes it:

| recipe | options | here | seeds | time | machine |
|---|---|---|---|---|---|
{more}

## Figures that training does not change

Each is proved by the tests named, below `tests/`.

| row | what | command | figure | tests |
|---|---|---|---|---|
{exact}

## Where the photos are

{where}

Class folders are `DATA/train/<class>/*.jpg` and `DATA/validation/<class>/*.jpg`; of an HDF5 pair name one
file, the other is found beside it.

## What differs on purpose

{differs}

The tutorials' mistakes, and what each does to the numbers: [tutorial-bugs.md](tutorial-bugs.md).
"""
