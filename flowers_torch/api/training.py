"""`train` and `resume`: a run from Python."""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from flowers_torch.api.classifier import Classifier
from flowers_torch.config import HEAD_ONLY
from flowers_torch.config_file import load_config
from flowers_torch.data.sources.python_data import write_dataset
from flowers_torch.errors import plural
from flowers_torch.evaluation.metrics import Scores
from flowers_torch.files.cache import cache_folder
from flowers_torch.log import console, silence
from flowers_torch.models.own import register_module
from flowers_torch.runs import recipe as recipes
from flowers_torch.runs.experiment import Callback, Hooks
from flowers_torch.runs.folder import find_run_folder


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """A finished run."""

    folder: Path  # the run folder
    test: Scores  # on the test images
    history: list[dict[str, Any]]  # a row for each epoch

    @property
    def accuracy(self) -> float:
        """On the test images."""
        return self.test.accuracy

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% interval of the accuracy."""
        return self.test.interval()

    @functools.cached_property
    def classifier(self) -> Classifier:
        """The trained classifier, on the fastest device available; loaded on first use."""
        return Classifier.load(self.folder)

    def __repr__(self) -> str:
        low, high = self.interval
        count = plural(self.test.images, "test photo")
        return f"TrainResult(accuracy {self.accuracy:.4f} ({low:.3f} .. {high:.3f}) on {count}, {self.folder})"


# The arguments are those that people set by keyword.
def train(
    data: Any = "",
    model: str | nn.Module = "",
    weights: str = "",
    *,
    recipe: str | Path = "",
    epochs: Sequence[int] = (),
    head_only: bool = False,
    out: str | Path = "",
    overwrite: bool = False,
    quiet: bool = False,
    callbacks: Callback | Sequence[Callback] = (),
    **options: Any,
) -> TrainResult:
    """Trains a network on images and writes a run folder, as `flowers-torch train` does.

    Args:
        data: A folder, an archive, a table, `hf:NAME`, `flowers17` or `demo`. Or the images of a program:
            `(paths, labels)` with files anywhere on the disk; a DataFrame with a column of files and one of labels; a
            torch `Dataset` of `(image, label)`; a Hugging Face dataset; or a dict of these, by "train", "val", "test".
        model: A registered network, any timm name, or a module of your own (see `register_module`); empty for that
            of the recipe.
        weights: `imagenet`, `offline`, `none` or a file; empty for those of the recipe. A module of your own starts
            from the weights that it has.
        recipe: A TOML file, or the name of one in `configs/`; empty for that of the network or the demo.
        epochs: Epochs of each stage, in order.
        head_only: Fit a linear head in seconds, nothing else.
        out: Run folder, empty for `runs/<data>-<model>-<n>`; `overwrite` lets it replace an earlier run.
        quiet: Print nothing, for sweeps. `logging.getLogger("flowers_torch")` has the lines all the same.
        callbacks: Functions that are called after each epoch with its row of the history, a dict with `stage`, `epoch`,
            `train_loss`, `val_loss`, `val_accuracy`, `seconds` and more. Raise `StopTraining` to end training: the best
            weights so far are tested.
        options: Any other field of `config.py`, such as `seed=1`, or `**{"stages.finetune.lr": 1e-4}`.

    Returns:
        The `classifier`, its `accuracy` on the test images with its `interval`, the run `folder` and the `history`.

    Raises:
        FlowersError: the images, the network or an option cannot be used; the text has the fix.
    """
    changes: dict[str, Any] = {"weights": weights} if weights else {}
    if isinstance(model, nn.Module):
        model = register_module(model, int(options.get("size", 0)))
        changes |= {"weights": weights or "none"}
    changes |= HEAD_ONLY if head_only else {}
    changes |= {"epochs": list(epochs)} if epochs else {}
    with _printing(quiet):
        source = str(data) if isinstance(data, str | Path) else str(write_dataset(data, cache_folder()))
        config = load_config(model, source, str(recipe), changes | options)
        run = recipes.train(config, out, overwrite, hooks=_hooks(callbacks))
    return TrainResult(run.folder, run.test, run.history)


def resume(
    run: str | Path,
    *,
    quiet: bool = False,
    callbacks: Callback | Sequence[Callback] = (),
    allow_config_change: bool = False,
    allow_data_change: bool = False,
    **options: Any,
) -> TrainResult | None:
    """Resumes an interrupted run; None if it had finished already.

    Args:
        run: The run folder, its name below `runs/`, or `latest`.
        allow_config_change: Resume although the result will differ from that of an uninterrupted run.
        allow_data_change: Resume although images are missing, edited or new.
        options: Changes to its options, as of `train`.

    Raises:
        FlowersError: the run cannot be resumed; the text has the fix.
    """
    with _printing(quiet):
        allowed = (allow_config_change, allow_data_change)
        found = recipes.resume(find_run_folder(run), options, *allowed, hooks=_hooks(callbacks))
    return TrainResult(found.folder, found.test, found.history) if found else None


def _hooks(callbacks: Callback | Sequence[Callback]) -> Hooks:
    return Hooks(after_epoch=(callbacks,) if callable(callbacks) else tuple(callbacks))


@contextlib.contextmanager
def _printing(quiet: bool) -> Iterator[None]:
    with silence() if quiet else console():
        yield
