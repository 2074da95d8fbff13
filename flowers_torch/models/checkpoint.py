"""A trained classifier as one file: the weights, and metadata that say how to build the network and use it."""

import dataclasses
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from flowers_torch import __version__
from flowers_torch.data.preprocessing import Preprocessing
from flowers_torch.errors import ModelFileError, printable
from flowers_torch.files.tensors import safe_load, safe_save
from flowers_torch.models.heads import set_head
from flowers_torch.models.registry import build_network

FORMAT = 1  # raised when an older reader would misread a newer file


@dataclasses.dataclass(frozen=True)
class ModelInfo:
    """The metadata that travel with the weights."""

    arch: str
    classes: tuple[str, ...]  # in the order of the logits
    preprocessing: Preprocessing
    head_hidden: int = 0
    dropout: float = 0.0
    head_norm: bool = False
    head: str = "softmax"  # or "sigmoid": one output for two classes
    model_options: dict[str, Any] = dataclasses.field(default_factory=dict)
    weights: str = "none"  # the weights that training started from
    license: str = ""  # of those weights
    temperature: float = 1.0  # the model's probabilities are softmax(logits / temperature)
    selective: dict[str, Any] = dataclasses.field(default_factory=dict)  # see evaluation/selective.py


def build(info: ModelInfo) -> nn.Module:
    """The network that `info` describes, with random weights."""
    classes = len(info.classes)
    model = build_network(info.arch, classes, size=info.preprocessing.size, options=info.model_options)
    set_head(model, classes, info.head_hidden, info.dropout, info.head_norm, info.head == "sigmoid")
    return model


def save_classifier(state: dict[str, Tensor], info: ModelInfo, path: Path, **extra: Any) -> None:
    """Writes a .safetensors file; `extra` is further metadata that JSON can hold, such as the accuracy."""
    metadata = {"format": FORMAT, "flowers_torch": __version__, "model_info": dataclasses.asdict(info)}
    safe_save(state, path, metadata | extra)


def read_model_info(metadata: dict[str, Any], path: Path) -> ModelInfo:
    """The `ModelInfo` in a file's metadata.

    Raises:
        ModelFileError: another program or a newer version wrote the file.
    """
    if "model_info" not in metadata:
        what = f"{printable(path)} holds weights but not how to use them"
        raise ModelFileError(what, "give the model.safetensors of a run")
    if metadata.get("format", 0) > FORMAT:  # guard: C13 weights
        what = f"{printable(path)} was written by flowers_torch {metadata.get('flowers_torch')}"
        raise ModelFileError(what, "update: pip install -U flowers-torch")
    try:
        values = dict(metadata["model_info"])
        values["classes"] = tuple(values["classes"])
        values["preprocessing"] = Preprocessing.from_dict(values["preprocessing"])
        return ModelInfo(**values)
    except (TypeError, KeyError, ValueError) as error:
        what = f"the model metadata in {printable(path)} are damaged: {error}"
        raise ModelFileError(what, "use another copy") from error


def load_classifier(path: Path) -> tuple[nn.Module, ModelInfo]:
    """The network of a `model.safetensors` (or of the run folder around it) in inference mode, and its metadata.

    Raises:
        ModelFileError: the file is missing, damaged, from another program, or contradicts its metadata.
    """
    path = Path(path)
    path = path / "model.safetensors" if path.is_dir() else path
    state, metadata = safe_load(path)
    info = read_model_info(metadata, path)
    model = build(info)
    load_matching(model, state, path)
    return model.eval(), info


def load_matching(model: nn.Module, state: dict[str, Tensor], path: Path | str) -> None:
    """Loads a state dict that must fit exactly; otherwise nothing is loaded.

    Raises:
        ModelFileError: names are missing, unexpected or of another shape, or values are not finite.
    """
    expected = model.state_dict()
    problems = {
        "missing": [name for name in expected if name not in state],
        "unexpected": [name for name in state if name not in expected],
        "of another shape": [
            f"{name} {tuple(state[name].shape)} for {tuple(expected[name].shape)}"
            for name in expected
            if name in state and state[name].shape != expected[name].shape
        ],
        # guard: E06, C12
        "not finite": [name for name, value in state.items() if not bool(value.isfinite().all())],
    }
    texts = [f"{len(names)} {kind} ({_first(names)})" for kind, names in problems.items() if names]
    if texts:  # guard: C10
        what = f"{printable(path)} does not fit {type(model).__name__}: {'; '.join(texts)}"
        raise ModelFileError(what, "use weights of this network")
    model.load_state_dict(state)


def _first(names: list[str]) -> str:
    return ", ".join(printable(name, 80) for name in names[:3]) + (", ..." if len(names) > 3 else "")
