"""What a run is made of: dataclasses with the meaning beside each field, read from TOML and flags.

Precedence: flag > file > default. All mistakes of a configuration are reported together, before anything
is downloaded or built. Below `recipe.py` nothing knows these classes; everything takes plain arguments.
"""

import copy
import dataclasses
import difflib
import json
import math
import tomllib
import types
import typing
from pathlib import Path
from typing import Any

from flowers_torch.errors import UsageError, printable

MAX_FILE_BYTES = 1024**2
# What a stage has no use for where L-BFGS fits its head: there are no steps, so there is no rate.
RATE_FIELDS = frozenset(
    ("lr", "schedule", "warmup_epochs", "plateau_factor", "plateau_patience", "layer_decay")
)
HEAD_VIEWS = 2  # of each photo, where only the head trains and nothing else was asked for
MANY_PHOTOS = 20_000  # to train on, beyond which a single view is enough


@dataclasses.dataclass
class Stage:
    """One stage of training; each gets a fresh optimiser."""

    name: str = "finetune"  # as options name it: `stages.finetune.lr`
    epochs: int = 1  # passes over the training photos
    # "head", "all", a block's name (that block and all behind it), "keras:N" (all but Keras's first N layers)
    train: str = "all"
    rules: list[list[Any]] = dataclasses.field(
        default_factory=list
    )  # [[pattern, lr multiplier], ...]; 0 freezes
    optimizer: str = "adamw"  # adamw, adam, sgd, rmsprop; lbfgs fits a linear head to its optimum at once
    lr: float = 1e-3  # highest learning rate
    schedule: str = "cosine"  # cosine (to zero at the end of the stage), constant or plateau
    warmup_epochs: float = 0.0  # linear rise of the learning rate from zero
    plateau_factor: float = 0.1  # of the learning rate at each drop of schedule "plateau"
    plateau_patience: int = 10  # epochs without a lower validation loss before such a drop
    patience: int = 0  # epochs without a lower calibrated validation loss that end the stage; 0: never
    layer_decay: float = 1.0  # a block's learning rate over that of the block behind it
    weight_decay: float = 0.0  # of weights; not of biases and norms
    l1: float = 0.0  # penalty in the loss on |w|, as Keras adds it
    l2: float = 0.0  # penalty in the loss on w^2, as Keras adds it
    l2_sp: float = 0.0  # penalty in the loss on the squared way of backbone weights from the stage's start
    momentum: float = 0.9  # of sgd and rmsprop
    # Layers whose batch norm follows the photos: "trained" ones, "all", or "none", which keeps the stored
    # statistics of all of them (in Keras's words: calls the network with training=False).
    batch_norm: str = "trained"
    # Views of a photo for which the frozen front is computed once and stored; 0: it runs in every epoch;
    # -1: 2 where only the head trains, else 0.
    views: int = -1
    # none, mirror, light, crop, keras, keras_zoom, keras_shift, alexnet, rand, trivial (see data/augment.py)
    augment: str = "light"
    mixup: float = 0.0  # blends pairs of photos, by shares from Beta(mixup, mixup); 0: never
    cutmix: float = 0.0  # pastes a part of one photo into another, by Beta(cutmix, cutmix); 0: never

    @property
    def is_fitted(self) -> bool:
        """Whether L-BFGS fits the head, without steps and so without a learning rate."""
        return self.optimizer == "lbfgs"

    def settings(self) -> dict[str, Any]:
        """The fields that mean something in this stage, by name."""
        values = dataclasses.asdict(self)
        return {k: v for k, v in values.items() if not (self.is_fitted and k in RATE_FIELDS)}

    def stored_views(self, photos: int) -> int:
        """Views of each of so many photos that the frozen front answers to beforehand; 0: none."""
        wanted = self.views
        if wanted < 0:
            few = HEAD_VIEWS if photos <= MANY_PHOTOS else 1
            wanted = few if self.train == "head" and not self.rules else 0
        mixes = self.mixup > 0 or self.cutmix > 0  # these blend photos, not answers
        if mixes or self.batch_norm == "all":
            return 0
        return wanted if self.is_fitted else min(wanted, self.epochs)


def default_stages() -> list[Stage]:
    """The two-stage recipe: a head on the frozen backbone, then everything at a lower learning rate."""
    return [
        Stage(name="head", epochs=2, train="head", lr=3e-3, augment="light"),
        Stage(
            name="finetune",
            epochs=5,
            train="all",
            lr=3e-4,
            warmup_epochs=0.5,
            weight_decay=0.05,
            augment="crop",
        ),
    ]


@dataclasses.dataclass
class Config:
    """Everything that decides a run, apart from the photos' bytes."""

    arch: str = "inception_v3"  # a network of the zoo or of timm
    data: str = "flowers17"  # folder, archive, "flowers17" or "demo"
    weights: str = ""  # "imagenet", "offline", "none" or a file; empty: imagenet, for demo none
    keras_input: str = ""  # photos of a Keras file's network: caffe, tf, torch, unit; empty: as published
    split: str = "60/20/20"  # percent train/val/test; for flowers17 also "seed" and "oxford1" .. "oxford3"
    groups: str = (
        "duplicates"  # photos kept in one part: twins (the same picture), none, or a table file,group
    )
    exclude: str = ""  # exclude.csv of a check: photos to leave out
    skip_bad: bool = False  # leave out photos that cannot be read, instead of stopping
    seed: int = 0  # of split, order, augmentation and fresh weights
    size: int = 0  # input side in pixels; 0: the network's own
    resize: str = ""  # "crop" (shorter side, centre crop), "stretch" (both sides), empty: the network's own
    batch_size: int = 32  # photos a step
    head_hidden: int = 0  # width of a hidden layer of the head; 1024 in the seed, 0 for none
    dropout: float = 0.0  # of the head's input
    head_norm: bool = False  # batch norm of the features in front of the head
    head: str = "softmax"  # softmax (an output for each class) or sigmoid (one output for two classes)
    model_options: dict[str, Any] = dataclasses.field(default_factory=dict)  # further keywords of the network
    auxiliary_weight: float = 0.4  # of auxiliary classifiers' loss, where the network has them
    label_smoothing: float = 0.0  # 0 .. 1
    class_weights: str = "none"  # "balanced" weighs rare classes up in the loss
    sampler: str = "none"  # "balanced" draws rare classes as often as common ones
    # light, crop, keras and alexnet work on whole batches, on the device; false: photo by photo
    batch_augment: bool = True
    clip_grad: float = 0.0  # largest norm of the gradient; 0: no clipping
    ema: float = 0.0  # decay of a moving average of the weights, which is validated and kept; 0: none
    micro_batch: int = 0  # photos through the network at once, gradients added up; 0: batch_size
    minutes: float = 0.0  # time for the whole run, to which the epochs are fitted; 0: no limit
    precision: str = "auto"  # fp32, bf16, fp16 (CUDA); auto: the fastest that this device computes well
    channels_last: bool = True  # memory layout of the network; on CUDA only where it is faster
    compile: bool = False  # training steps by torch.compile: a minute or so a stage, for long runs on CUDA
    cuda_graph: bool = False  # training steps as CUDA graphs: for small batches, where Python is the brake
    cache_gib: float = 2.0  # memory for photos and for what the frozen front answers; beyond it a file
    device: str = "auto"  # cpu, cuda, cuda:1, mps; auto: the best that is there
    workers: int = -1  # processes that decode photos; -1: chosen for the machine
    threads: int = 0  # of computation on the CPU; 0: torch's own choice
    deterministic: bool = False  # refuse operations that give other bits from run to run (CUDA)
    tensorboard: bool = False  # also write the history for TensorBoard, into the run folder
    checkpoint_minutes: float = 2.0  # between saves inside an epoch; epochs over 10 s save at their end too
    out: str = ""  # run folder; empty: runs/<data>-<arch>-<n>
    stages: list[Stage] = dataclasses.field(default_factory=default_stages)

    def settings(self) -> dict[str, Any]:
        """All fields by name, with those of each stage that mean something there."""
        return dataclasses.asdict(self) | {"stages": [stage.settings() for stage in self.stages]}


CHOICES: dict[str, tuple[str, ...]] = {
    "keras_input": ("", "caffe", "tf", "torch", "unit"),
    "resize": ("", "crop", "stretch"),
    "head": ("softmax", "sigmoid"),
    "class_weights": ("none", "balanced"),
    "sampler": ("none", "balanced"),
    "precision": ("auto", "fp32", "bf16", "fp16"),
    "optimizer": ("adamw", "adam", "sgd", "rmsprop", "lbfgs"),
    "schedule": ("cosine", "constant", "plateau"),
    "batch_norm": ("trained", "all", "none"),
    "augment": (
        *("none", "mirror", "light", "crop", "keras", "keras_zoom", "keras_shift"),
        *("alexnet", "rand", "trivial"),
    ),
}

# name: lowest, highest; both allowed
RANGES: dict[str, tuple[float, float]] = {
    "epochs": (1, 100_000),
    "views": (-1, 1000),
    "cache_gib": (0, 1e6),
    "lr": (1e-12, 1e3),
    "warmup_epochs": (0, 100_000),
    "plateau_factor": (1e-6, 0.9999),
    "plateau_patience": (1, 100_000),
    "patience": (0, 100_000),
    "layer_decay": (1e-3, 1),
    "weight_decay": (0, 10),
    "l1": (0, 10),
    "l2": (0, 10),
    "l2_sp": (0, 10),
    "momentum": (0, 0.9999),
    "mixup": (0, 10),
    "cutmix": (0, 10),
    "seed": (0, 2**32 - 1),
    "size": (0, 4096),
    "batch_size": (1, 65_536),
    "head_hidden": (0, 65_536),
    "dropout": (0, 0.99),
    "auxiliary_weight": (0, 10),
    "label_smoothing": (0, 0.99),
    "clip_grad": (0, 1e9),
    "ema": (0, 0.999999),
    "micro_batch": (0, 65_536),
    "minutes": (0, 1e6),
    "workers": (-1, 256),
    "threads": (0, 1024),
    "checkpoint_minutes": (0, 1e6),
}


# Fields that hold a path, and the values of them that are names instead.
PATHS: dict[str, tuple[str, ...]] = {
    "data": ("demo", "flowers17", "cifar10"),
    "weights": ("", "imagenet", "offline", "none"),
    "groups": ("duplicates", "none"),
    "exclude": ("",),
}

# What --head-only asks for: a linear head on the photo and its mirror image, and nothing else.
HEAD_ONLY: dict[str, Any] = {
    "stages": [{"name": "head", "train": "head", "optimizer": "lbfgs", "views": 2, "augment": "mirror"}],
    "head_hidden": 0,
    "head_norm": False,
    "dropout": 0.0,
    "head": "softmax",
}


def load_config(
    arch: str = "", data: str = "", file: str = "", overrides: dict[str, Any] | None = None
) -> Config:
    """Resolves a configuration.

    Args:
        arch: From the flag; picks `configs/<arch>.toml` where no file is given.
        data: From the flag; `demo` picks `configs/demo.toml` where no file is given.
        file: A TOML file, or the name of one in `configs/`.
        overrides: Dotted field name (`stages.finetune.lr`) to value; wins over the file. `epochs` is a list,
            for the stages in their order.

    Raises:
        UsageError: naming every unknown field, wrong type and value out of range at once.
    """
    path = _find_file(file) if file else _preset("demo" if data == "demo" else arch or Config.arch)
    values = _read_toml(path) if path else {}
    changes = {key: value for key, value in {"arch": arch, "data": data}.items() if value} | (overrides or {})
    problems: list[str] = []
    for key, value in changes.items():
        _override(values, key, value, problems)
    config = _build(Config, values, "", problems)
    if not problems:
        _check(config, problems)
    if problems:
        where = f" in {printable(path)} or the flags" if path else ""
        count = f"{len(problems)} problems{where}: " if len(problems) > 1 else ""
        raise UsageError(f"{count}{'; '.join(problems)}", "correct these and start again")
    return config


def with_absolute_paths(config: Config) -> Config:
    """The configuration with paths that hold in every working directory; names such as `demo` stay."""
    found = {field: getattr(config, field) for field in PATHS}
    absolute: dict[str, Any] = {
        field: _absolute(path) for field, path in found.items() if path not in PATHS[field]
    }
    return dataclasses.replace(config, **absolute)


def _absolute(path: str) -> str:
    # A link stays a link, so that its target can move. Behind `..` only the target says which folder it is.
    absolute = Path(path).expanduser().absolute()
    return str(absolute.resolve() if ".." in absolute.parts else absolute)


def split_fractions(split: str) -> tuple[float, float, float] | None:
    """Shares of train, val and test from "60/20/20"; None where the text names a split instead."""
    parts = split.split("/")
    if len(parts) != 3:
        return None
    try:
        train, val, test = (float(part) for part in parts)
    except ValueError:
        return None
    total = train + val + test
    return (train / total, val / total, test / total) if min(train, val, test) > 0 else None


def to_toml(config: Config, heading: str) -> str:
    """The resolved configuration as a TOML file that repeats the run."""
    values = config.settings()
    stages, options = values.pop("stages"), values.pop("model_options")
    lines = [f"# {line}" for line in heading.splitlines()]
    lines += [f"{key} = {toml_value(value)}" for key, value in values.items()]
    if options:
        lines += ["", "[model_options]", *(f"{key} = {toml_value(value)}" for key, value in options.items())]
    for stage in stages:
        lines += ["", "[[stages]]", *(f"{key} = {toml_value(value)}" for key, value in stage.items())]
    return "\n".join(lines) + "\n"


def config_folder() -> Path:
    """Where the recipes lie: beside train.py in a checkout, inside the package when installed."""
    inside = Path(__file__).parent / "configs"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "configs"


def _preset(name: str) -> Path | None:
    # A name from the command line must not reach other folders (`--arch ../../x`).
    return next((p for p in sorted(config_folder().glob("*.toml")) if p.stem == name), None)


def _find_file(file: str) -> Path:
    path = Path(file).expanduser()
    if path.is_file():
        return path
    if preset := _preset(file):
        return preset
    names = [p.stem for p in sorted(config_folder().glob("*.toml"))]
    raise UsageError(
        f"no configuration file {printable(file)}", f"give a .toml file or one of {', '.join(names)}"
    )


def _read_toml(path: Path) -> dict[str, Any]:
    if path.stat().st_size > MAX_FILE_BYTES:
        raise UsageError(f"{printable(path)} is too large for a configuration", "give a .toml file")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:  # guard: K03
        raise UsageError(
            f"{printable(path)} is not valid TOML: {error}", "correct it at that place"
        ) from error


def _override(values: dict[str, Any], key: str, value: Any, problems: list[str]) -> None:
    """Sets a dotted field name; `stages.NAME.lr` needs a stage of that name."""
    table, _, rest = key.partition(".")
    name, _, field = rest.rpartition(".")
    if key == "epochs":
        _override_epochs(values, value, problems)
    elif table == "stages" and name:
        stages = {str(row.get("name", Stage.name)): row for row in _stage_tables(values)}
        if name in stages:
            stages[name][field] = copy.deepcopy(value)
        else:
            there = ", ".join(map(printable, stages))
            problems.append(f"no stage {printable(name, 40)} for {printable(key, 60)} (there are {there})")
    elif table == "model_options" and rest and not name:
        values.setdefault(table, {})[rest] = copy.deepcopy(value)
    elif rest:
        problems.append(f"no field {key!r}")
    else:
        values[key] = copy.deepcopy(value)  # a later `stages.NAME.lr` must not reach the caller's


def _override_epochs(values: dict[str, Any], counts: Any, problems: list[str]) -> None:
    stages = _stage_tables(values)
    if not isinstance(counts, list):
        problems.append(f"epochs must be a list, one for each stage, not {printable(repr(counts), 60)}")
    elif len(counts) > len(stages):
        problems.append(f"epochs are given for {len(counts)} stages, and there are {len(stages)}")
    else:
        for stage, count in zip(stages, counts, strict=False):
            stage["epochs"] = count


def _stage_tables(values: dict[str, Any]) -> list[dict[str, Any]]:
    """The stages among the values, which become the default ones where there are none."""
    stages = values.setdefault("stages", [dataclasses.asdict(stage) for stage in default_stages()])
    rows = stages if isinstance(stages, list) else [stages]
    return [row for row in rows if isinstance(row, dict)]


def _build(cls: Any, values: Any, where: str, problems: list[str]) -> Any:
    if not isinstance(values, dict):
        problems.append(f"{where.rstrip('.')} must be a table")
        return cls()
    fields = {field.name: field for field in dataclasses.fields(cls)}
    types_of = typing.get_type_hints(cls)
    made: dict[str, Any] = {}
    for key, value in values.items():
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1)
            hint = f"did you mean {near[0]}" if near else f"there are {', '.join(fields)}"
            problems.append(f"unknown field {printable(where + key)} ({hint}?)")
        elif key == "stages":
            rows = value if isinstance(value, list) else [value]
            made[key] = [_build(Stage, row, f"{_stage_key(row, i)}.", problems) for i, row in enumerate(rows)]
        else:
            made[key] = _typed(value, types_of[key], where + key, problems)
    return cls(**made)


def _stage_key(row: Any, place: int) -> str:
    """How an error names a stage; by its place where it is no table."""
    return f"stages.{row.get('name', Stage.name) if isinstance(row, dict) else place}"


def _typed(value: Any, kind: Any, name: str, problems: list[str]) -> Any:
    origin = typing.get_origin(kind)
    plain = origin if isinstance(origin, type) and not isinstance(kind, types.UnionType) else kind
    if plain is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, plain) or (plain in (int, float) and isinstance(value, bool)):
        problems.append(f"{name} must be {plain.__name__}, not {printable(repr(value), 60)}")
    return value


def _check(config: Config, problems: list[str]) -> None:
    names = [stage.name for stage in config.stages]
    if len(set(names)) < len(names) or any(not name or "." in name for name in names):
        told = ", ".join(printable(repr(name), 40) for name in names)
        problems.append(f"stages must have different names without a dot, not {told}")
    for prefix, part in [("", config), *((f"stages.{stage.name}.", stage) for stage in config.stages)]:
        for field in dataclasses.fields(part):  # type: ignore[arg-type]
            name, value = field.name, getattr(part, field.name)
            low, high = RANGES.get(name, (-math.inf, math.inf))
            if name in RANGES and not low <= value <= high:  # guard: K02
                problems.append(f"{prefix}{name} must be within {low:g} .. {high:g}, not {value}")
            if name in CHOICES and value not in CHOICES[name]:
                allowed = ", ".join(choice or '""' for choice in CHOICES[name])
                problems.append(f"{prefix}{name} must be one of {allowed}, not {printable(repr(value), 60)}")
    for stage in config.stages:
        for rule in stage.rules:
            if (
                len(rule) != 2
                or not isinstance(rule[0], str)
                or not isinstance(rule[1], int | float)
                or rule[1] < 0
            ):
                problems.append(
                    f"stages.{stage.name}.rules needs [pattern, multiplier >= 0], not {printable(rule, 60)}"
                )
        if stage.is_fitted and (
            stage.train != "head"
            or config.head_hidden
            or config.head_norm
            or config.dropout
            or config.head == "sigmoid"
        ):
            problems.append(
                f"stages.{stage.name}.optimizer lbfgs needs train = head and a head of one linear layer"
            )
    if config.compile and config.cuda_graph:
        problems.append("compile and cuda_graph exclude each other")
    if not config.stages:
        problems.append("stages must not be empty")
    if split_fractions(config.split) is None and config.split not in (
        "seed",
        "oxford1",
        "oxford2",
        "oxford3",
    ):
        problems.append(f"split must be three shares such as 60/20/20, not {printable(config.split, 40)}")


def toml_value(value: Any) -> str:
    """A value as TOML writes it; a table stands in a line."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key} = {toml_value(item)}' for key, item in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(toml_value(item) for item in value)}]"
    # JSON's literals are TOML's too, except that TOML knows no surrogate pairs: keep characters as they are.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
