"""Compares a run of a tutorial's recipe with the tutorial's figure, and records it."""

import dataclasses
import datetime
import json
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from flowers_torch.config import Config, Stage, default_stages
from flowers_torch.config_file import load_config, toml_value
from flowers_torch.errors import DataError, UsageError, plural, printable
from flowers_torch.files.atomic import write_text
from flowers_torch.files.reading import check, parse_json, read_bytes, read_json, reading
from flowers_torch.report.run_summary import read_history
from flowers_torch.shell import split_command
from flowers_torch.tutorials.catalog import read_catalog

# Options of the photos or the machine, which are no changes of a recipe.
RESULT_FORM = {
    "test": {"correct": (0, 10**9), "images": (1, 10**9), "interval_95": [(0.0, 1.0)]},
    "uncalibrated": {"loss": float},
}
ENVIRONMENT_FORM = {"processor": str, "gpu?": str, "torch": str, "flowers_torch": str, "threads": (1, 10**4)}
NOT_COMPARED = set("data test exclude seed threads workers device precision checkpoint_minutes cache_gib".split())


REPRODUCTION_FORM = {
    **dict.fromkeys(("recipe", "data", "machine", "versions", "date"), str),
    **{"substitute_data": bool, "seed": int, "correct": (0, 10**9), "images": (1, 10**9)},
    **{"low": (0.0, 1.0), "high": (0.0, 1.0), "train_seconds?": float, "changes": [str]},
    **{"data_options?": str, "test_loss?": float},
    "stages?": [{"name": str, "epochs": int, "train": [float, 2, 2], "val": [float, 2, 2], "seconds": float}],
}


@dataclasses.dataclass(frozen=True)
class Reproduction:
    """The result of one run of a tutorial's recipe; a line of the results file."""

    recipe: str
    data: str  # name of the photos
    substitute_data: bool  # whether the photos are not the tutorial's
    seed: int
    correct: int
    images: int
    low: float  # 95% interval of the accuracy
    high: float
    train_seconds: float | None  # of the epochs; None if other work made it meaningless
    changes: tuple[str, ...]  # options that differ from the recipe
    machine: str
    versions: str
    date: str
    data_options: str = ""  # of the command, behind --data
    test_loss: float | None = None  # in nats, before calibration
    # Name, epochs, seconds of an epoch, and training and validation loss in the first and the last epoch.
    stages: tuple[dict[str, Any], ...] = ()

    @property
    def accuracy(self) -> float:
        return self.correct / self.images


def read_reproduction(folder: Path, recipe: str, substitute_data: bool = False) -> Reproduction:
    """The result of a finished run of a recipe. `substitute_data` are photos other than the tutorial's.

    Raises:
        DataError: the folder does not hold a finished run.
    """
    try:
        metrics = read_json(folder / "metrics.json", "the result of a run", RESULT_FORM)
        test = metrics["test"]
        low, high = test["interval_95"]
        environment = read_json(folder / "environment.json", "the versions of a run", ENVIRONMENT_FORM)
        config = load_config(file=str(folder / "config.toml"))
        history = read_history(folder)
        seconds = sum(row["seconds"] for row in history)
    except (OSError, ValueError) as error:
        what = f"{printable(folder)} does not hold a finished run"
        raise DataError(what, "name the folder of a finished run") from error
    threads = config.threads or environment["threads"]
    processor = f"{environment['processor']}, {plural(threads, 'thread')}"
    return Reproduction(
        recipe,
        Path(config.data).name,
        substitute_data,
        config.seed,
        test["correct"],
        test["images"],
        low,
        high,
        seconds,
        tuple(differences(config, load_config(file=recipe))),
        environment.get("gpu") or processor,
        f"torch {environment['torch']}, flowers_torch {environment['flowers_torch']}",
        datetime.date.fromtimestamp((folder / "metrics.json").stat().st_mtime).isoformat(),
        _data_options(config, load_config(file=recipe)),
        metrics["uncalibrated"]["loss"],
        tuple(_summarize(rows) for rows in _by_stage(history)),
    )


def _data_options(config: Config, recipe: Config) -> str:
    """The flags of a run that say which photos are tested and left out, where the recipe says something else."""
    flags = []
    for name in ("test", "exclude"):
        value = getattr(config, name)
        if value != getattr(recipe, name):
            flags.append(f" --{name} {Path(value).name}")
    return "".join(flags)


def _by_stage(history: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    names = dict.fromkeys(row["stage"] for row in history)
    return [[row for row in history if row["stage"] == name] for name in names]


def _summarize(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What a result keeps of the epochs of a stage."""
    losses = {name: [rows[0][f"{name}_loss"], rows[-1][f"{name}_loss"]] for name in ("train", "val")}
    seconds = sum(row["seconds"] for row in rows) / len(rows)
    return {"name": rows[0]["stage"], "epochs": len(rows), **losses, "seconds": seconds}


def recipe_of(folder: Path) -> str:
    """The recipe in a run's command.

    Raises:
        UsageError: the command names no recipe that reproduces a tutorial.
    """
    try:
        words = split_command(read_bytes(folder / "command.txt", "a command", limit=1 << 20).decode())
    except (DataError, ValueError):
        words = []
    recipes = read_catalog().recipes
    named = [after for word, after in pairwise(words) if word in ("--config", "reproduce")]
    if not named or named[0] not in recipes:
        what = f"{printable(folder)} does not say which recipe it ran"
        raise UsageError(what, f"name it before --run: one of {', '.join(recipes)}")
    return named[0]


def with_our_defaults(config: Config) -> Config:
    """A tutorial's recipe with this package's defaults in place of its schedule.

    The network, head, photos, stages and epochs stay. Optimizer, learning rate, schedule, augmentation, batch
    size and class weights become the defaults.
    """
    head, rest = default_stages()
    stages = []
    for stage in config.stages:
        ours = head if stage.train == "head" else rest
        stages.append(dataclasses.replace(ours, name=stage.name, epochs=stage.epochs, train=stage.train))
    return dataclasses.replace(config, stages=stages, batch_size=Config.batch_size, class_weights=Config.class_weights)


def differences(config: Config, other: Config) -> list[str]:
    """Options of a configuration that differ from another's, as `--set` takes them: `stages.head.lr=0.01`.

    A table of options that lost a key (`model_options={}`) and a list of stages of another length are given
    whole. Options that change no result or belong to the machine are left out.
    """
    ours, theirs = (_flatten(dataclasses.asdict(one)) for one in (config, other))
    for values in (ours, theirs):  # the configuration of a finished run has the path of its weights
        values["weights"] = Path(values["weights"] or "imagenet").name
    whole: dict[str, Any] = {}
    if set(other.model_options) - set(config.model_options):
        whole["model_options"] = config.model_options
    if [stage.name for stage in config.stages] != [stage.name for stage in other.stages]:
        plain = dataclasses.asdict(Stage())
        stages = [stage.settings() for stage in config.stages]
        whole["stages"] = [{k: v for k, v in stage.items() if v != plain[k]} for stage in stages]
    changed = {
        key: value
        for key, value in ours.items()
        if value != theirs.get(key) and key not in NOT_COMPARED and key.split(".")[0] not in whole
    }
    changed |= whole
    return [f"{key}={value if isinstance(value, str) else toml_value(value)}" for key, value in changed.items()]


def _flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    """Nested options by dotted name; stages count from 0."""
    if isinstance(values, dict):
        pairs: Iterable[tuple[Any, Any]] = values.items()
    elif prefix == "stages.":
        pairs = ((stage["name"], stage) for stage in values)
    else:
        return {prefix.rstrip("."): values}
    return {k: v for key, value in pairs for k, v in _flatten(value, f"{prefix}{key}.").items()}


def describe(recipe: str, result: Reproduction, recorded: Sequence[Reproduction] = ()) -> str:
    """The tutorial's figure, ours, what differs on purpose, and what our defaults would change.

    `recorded` are earlier results; those on the same photos are listed.
    """
    tutorial, config = read_catalog().find(recipe), load_config(file=recipe)
    photos = f"{plural(result.images, 'test photo')} of {result.data}{' (substitute data)' * result.substitute_data}"
    ours = f"{result.accuracy:.4f} ({result.low:.3f} .. {result.high:.3f}) on {photos}"
    losses = f"losses   {tutorial.losses or 'none printed'}; ours: {describe_losses(result)}"
    seconds = "time not measured" if result.train_seconds is None else f"{result.train_seconds:.0f} s"
    lines = [
        f"recipe   {recipe}: {tutorial.title} ({tutorial.rows})",
        f"tutorial {tutorial.figure or 'no figure'} ({tutorial.source})",
        f"ours     {ours}, seed {result.seed}, {seconds} on {result.machine}",
        losses,
    ]
    if tutorial.accuracy is not None and not result.substitute_data:
        lines.append(f"gap      {result.accuracy - tutorial.accuracy:+.4f}")
    lines += [f"differs  {text}" for text in tutorial.differs]
    lines += [f"changed  {text}" for text in result.changes]
    theirs = _flatten(dataclasses.asdict(config))
    for text in differences(with_our_defaults(config), config):
        key, value = text.split("=", 1)
        lines.append(f"default  {key} {value} instead of {theirs[key]}")
    for one in recorded:
        if (one.recipe, one.data) == (recipe, result.data) and one != result:
            changes = ", ".join(one.changes) or "the recipe as it is"
            lines.append(f"recorded {one.accuracy:.4f} of {plural(one.images, 'photo')}, seed {one.seed}: {changes}")
    return "\n".join(lines)


def describe_losses(result: Reproduction) -> str:
    """Losses and times of the stages, and the loss of the test."""
    parts = []
    for stage in result.stages:
        (first, last), (val_first, val_last) = stage["train"], stage["val"]
        losses = f"training {first:.4f} .. {last:.4f}, validation {val_first:.4f} .. {val_last:.4f}"
        parts.append(f"{stage['name']}, {stage['epochs']} epochs of {stage['seconds']:.1f} s: {losses}")
    if result.test_loss is not None:
        parts.append(f"test {result.test_loss:.4f}")
    return "; ".join(parts) or "not recorded"


def read_results(path: Path) -> list[Reproduction]:
    """Results from a file with one JSON object a line; empty if there is no file.

    Raises:
        DataError: the file is not valid.
    """
    if not path.is_file():
        return []
    lines = read_bytes(path, "a results file", limit=1 << 20).splitlines()
    with reading(path, "a valid results file", fix="name another file"):
        rows = [check(parse_json(line), REPRODUCTION_FORM) for line in lines if line.strip()]
        tuples = ("changes", "stages")
        return [Reproduction(**row | {name: tuple(row.get(name, ())) for name in tuples}) for row in rows]


def add_result(path: Path, result: Reproduction) -> None:
    """Adds a result to a file; a result of the same run is replaced."""

    def key(one: Reproduction) -> tuple[Any, ...]:
        return one.recipe, one.data, one.substitute_data, one.seed, one.changes, one.machine

    others = [one for one in read_results(path) if key(one) != key(result)]
    lines = [json.dumps(dataclasses.asdict(one)) for one in [*others, result]]
    write_text(path, "".join(f"{line}\n" for line in lines))
