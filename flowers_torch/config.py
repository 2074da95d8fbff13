"""The options of a run: dataclasses with the meaning and the allowed values beside each field.

Only `runs`, `api` and `commands` know these classes. Everything below takes plain arguments.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from flowers_torch.data.augment.names import AUGMENTATIONS
from flowers_torch.data.dataset import CLASS_MARK, COLUMN_MARK, parse_exclude
from flowers_torch.data.sources.hugging_face import PREFIX
from flowers_torch.files.system import expand_home

RATE_FIELDS = frozenset(("lr", "schedule", "warmup_epochs", "lr_decay", "layer_decay"))  # without meaning for L-BFGS
HEAD_VIEWS = 2  # of each image, where only the head trains
MANY_IMAGES = 20_000  # to train on, beyond which one view is enough


def option(default: Any, text: str, allowed: Sequence[Any] = ()) -> Any:
    """A field with its meaning, and what is allowed: a range of numbers, both ends included, or choices."""
    is_range = not any(isinstance(value, str) for value in allowed)
    metadata = {"help": text, "within": allowed if is_range else (), "choices": () if is_range else tuple(allowed)}
    return dataclasses.field(metadata=metadata, **{"default_factory" if callable(default) else "default": default})


@dataclasses.dataclass
class Stage:
    """One stage of training. Each stage gets a fresh optimizer."""

    name: str = option("finetune", "name of the stage in options such as stages.finetune.lr")
    epochs: int = option(1, "passes over the training images", (1, 100_000))
    train: str | list[Any] = option(
        "all",
        "what trains: head, all, a block and everything after it, keras:N (all but the first N Keras layers),"
        " or a list of [parameter pattern, learning-rate multiplier], where 0 freezes",
    )
    optimizer: str = option(
        "adamw", "optimizer; lbfgs fits a linear head to cached features", ("adamw", "adam", "sgd", "rmsprop", "lbfgs")
    )
    lr: float = option(1e-3, "highest learning rate", (1e-12, 1e3))
    schedule: str = option(
        "cosine",
        "learning rate over the stage; cosine falls to 0, plateau is divided by 10 when the loss stalls",
        ("cosine", "constant", "plateau"),
    )
    warmup_epochs: float = option(0.0, "epochs in which the learning rate rises from 0", (0, 100_000))
    lr_decay: float = option(0.0, "d of Keras's decay: step t has the learning rate divided by 1 + d t", (0, 1))
    patience: int = option(
        0,
        "epochs without a lower validation loss until the stage ends (0: never) or, with schedule plateau,"
        " until the learning rate drops (0: 10)",
        (0, 100_000),
    )
    layer_decay: float = option(1.0, "learning rate of a block divided by that of the next block", (1e-3, 1))
    weight_decay: float = option(0.0, "decoupled weight decay, except of biases and norms", (0, 10))
    l1: float = option(0.0, "penalty on |w| in the loss, as in Keras", (0, 10))
    l2: float = option(0.0, "penalty on w^2 in the loss, as in Keras", (0, 10))
    momentum: float = option(0.9, "momentum of sgd and rmsprop", (0, 0.9999))
    nesterov: bool = option(True, "Nesterov's momentum in sgd; false: plain momentum, Keras's default")
    batch_norm: str = option(
        "trained",
        "layers whose batch norm uses batch statistics; none: running statistics, Keras's training=False",
        ("trained", "all", "none"),
    )
    cached_views: int = option(
        -1,
        "augmented views of each image whose backbone features are cached; 0: the backbone runs in every"
        " epoch; -1: 2 where only the head trains",
        (-1, 1000),
    )
    augment: str = option("light", "augmentation of the training images", AUGMENTATIONS)
    mixup: float = option(0.0, "alpha of mixup, which blends pairs of images; 0: no mixup", (0, 10))

    @property
    def is_fitted(self) -> bool:
        """Whether L-BFGS fits the head, without steps and therefore without a learning rate."""
        return self.optimizer == "lbfgs"

    @property
    def trains(self) -> str:
        """What trains, in short."""
        return self.train if isinstance(self.train, str) else f"{len(self.train)} rules"

    def settings(self) -> dict[str, Any]:
        """The fields that have a meaning in this stage, by name."""
        values = dataclasses.asdict(self)
        return {k: v for k, v in values.items() if not (self.is_fitted and k in RATE_FIELDS)}

    def views_to_cache(self, images: int) -> int:
        """Views of each of so many training images whose features are cached; 0 if the backbone runs."""
        # Only a stage that trains nothing but the head has such features. Mixup blends images, not features.
        if self.train != "head" or self.mixup or self.batch_norm == "all":
            return 0
        default = HEAD_VIEWS if images <= MANY_IMAGES else 1
        wanted = self.cached_views if self.cached_views >= 0 else default
        return wanted if self.is_fitted else min(wanted, self.epochs)


def default_stages() -> list[Stage]:
    """The two-stage recipe: a head on the frozen backbone, then everything at a lower learning rate."""
    finetune = Stage("finetune", 5, "all", lr=3e-4, warmup_epochs=0.5, weight_decay=0.05, augment="crop")
    return [Stage("head", 2, "head", lr=3e-3, augment="light"), finetune]


@dataclasses.dataclass
class Config:
    """Everything that decides a run, apart from the bytes of the images."""

    arch: str = option("inception_v3", "network: a registered name or any timm name")
    data: str = option("flowers17", "folder, archive, table, hf:NAME, flowers17 or demo")
    weights: str = option("", "imagenet, offline, none, or a file; empty: imagenet, or none for demo")
    test: str = option("", "labeled photos to test on, as data; val: the photos given to validate on")
    keras_input: str = option(
        "", "preprocessing of a Keras file's network; empty: as published", ("", "caffe", "tf", "torch", "unit")
    )
    split: str = option("60/20/20", "percent train/val/test; flowers17: also tutorial, oxford1-oxford3")
    classes: str = option("", "what names classes: top, leaf, path or name", ("", "top", "leaf", "path", "name"))
    groups: str = option("duplicates", "what stays in one split: duplicates, none, FILE or column:NAME")
    exclude: str = option("", "left out: exclude.csv of a check, class:NAME, or both (FILE,class:NAME)")
    mirror: str = option("auto", "whether a mirrored photo keeps its class; auto: measured", ("auto", "yes", "no"))
    skip_bad: bool = option(False, "leave out unreadable images instead of stopping")
    seed: int = option(0, "random seed of splits, order, augmentation, and new weights", (0, 2**32 - 1))
    size: int = option(0, "height and width of the input in pixels; 0: those of the network", (0, 4096))
    resize: str = option(
        "",
        "crop: resize the shorter side, then center crop; stretch: resize both sides; empty: as the network",
        ("", "crop", "stretch"),
    )
    batch_size: int = option(32, "images per step", (1, 65_536))
    head_hidden: int = option(0, "width of a hidden layer of the head; 0: none", (0, 65_536))
    dropout: float = option(0.0, "dropout of the head's input", (0, 0.99))
    head_norm: bool = option(False, "batch norm of the features before the head")
    head: str = option("softmax", "type of head; sigmoid has one output for two classes", ("softmax", "sigmoid"))
    model_options: dict[str, Any] = option(dict, "other options of the network, such as alpha of mobilenet")
    label_smoothing: float = option(0.0, "label smoothing of the loss", (0, 0.99))
    class_weights: str = option(
        "none", "class weights of the loss; balanced gives rare classes more weight", ("none", "balanced")
    )
    clip_grad: float = option(0.0, "largest norm of the gradient; 0: no clipping", (0, 1e9))
    ema: float = option(0.0, "decay of the moving average of the weights; 0: no average", (0, 0.999999))
    minutes: float = option(0.0, "time limit of the run; 0: none", (0, 1e6))
    precision: str = option(
        "auto", "arithmetic of the network; auto: the fastest that is accurate", ("auto", "fp32", "bf16", "fp16")
    )
    accelerate: str = option("auto", "auto, off, auto+compile, or a list of techniques")
    cache_gib: float = option(2.0, "memory for cached images in GiB; the rest goes to a file", (0, 1e6))
    device: str = option("auto", "cpu, cuda, cuda:1, or mps; auto: the fastest one available")
    workers: int = option(-1, "processes that decode images; -1: chosen for the machine", (-1, 256))
    threads: int = option(0, "CPU threads; 0: torch's choice", (0, 1024))
    deterministic: bool = option(False, "refuse operations that are not deterministic on CUDA")
    checkpoint_minutes: float = option(2.0, "minutes between checkpoints within an epoch", (0, 1e6))
    stages: list[Stage] = option(default_stages, "the stages of training, in order")

    @property
    def cache_bytes(self) -> int:
        """`cache_gib` in bytes."""
        return int(self.cache_gib * 2**30)

    def settings(self) -> dict[str, Any]:
        """All fields by name, with those of each stage that have a meaning there."""
        return dataclasses.asdict(self) | {"stages": [stage.settings() for stage in self.stages]}


# Fields that hold a path, and those of their values that are names.
PATHS: dict[str, tuple[str, ...]] = {
    "data": ("demo", "flowers17", "cifar10", "mnist"),
    "test": ("", "val", "demo", "flowers17", "cifar10", "mnist"),
    "weights": ("", "imagenet", "offline", "none"),
    "groups": ("duplicates", "none"),
    "exclude": ("",),
}

# What --head-only stands for: a linear head on each image as prediction sees it, and nothing else.
HEAD_ONLY: dict[str, Any] = {
    "stages": [{"name": "head", "train": "head", "optimizer": "lbfgs", "cached_views": 1, "augment": "none"}],
    **{"head_hidden": 0, "head_norm": False, "dropout": 0.0, "head": "softmax"},
}


def with_absolute_paths(config: Config) -> Config:
    """The configuration with paths that hold in every working directory; names such as `demo` stay."""
    changes: dict[str, Any] = {}
    for field, names in PATHS.items():
        value = getattr(config, field)
        path, classes = parse_exclude(value) if field == "exclude" else (value, [])
        is_named = path in names or (field == "groups" and path.startswith(COLUMN_MARK))
        if field in ("data", "test") and path.startswith(PREFIX):  # of a dataset on the hub, or of a folder
            folder = expand_home(path.removeprefix(PREFIX))
            changes[field] = f"{PREFIX}{folder.absolute()}" if folder.is_dir() else path
        elif not is_named:
            # A link stays a link, so that its target can move. Behind `..` only the target identifies the folder.
            absolute = expand_home(path).absolute()
            absolute = absolute.resolve() if ".." in absolute.parts else absolute
            changes[field] = ",".join([str(absolute), *(f"{CLASS_MARK}{name}" for name in classes)])
    return dataclasses.replace(config, **changes)


def split_fractions(split: str) -> tuple[float, float, float] | None:
    """Fractions of train, val and test from "60/20/20"; None if the text names a split."""
    try:
        train, val, test = map(float, split.split("/"))
    except ValueError:
        return None
    total = train + val + test
    return (train / total, val / total, test / total) if min(train, val, test) > 0 else None
