"""A trained classifier as one file: the network's weights and all that is needed to use them.

The record beside the weights says how to build the network, how to prepare a photo and what the outputs
are called, so that prediction, serving, export and torch.hub need the file and nothing else.
"""

import dataclasses
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from flowers_torch import __version__
from flowers_torch.data.preprocessing import Preprocessing
from flowers_torch.errors import ModelFileError, printable
from flowers_torch.files.tensors import safe_load, safe_save
from flowers_torch.models.factory import build_network
from flowers_torch.models.heads import set_head

FORMAT = 1  # raised when a reader of the older form would misread the newer


@dataclasses.dataclass(frozen=True)
class ModelInfo:
    """What travels with the weights."""

    arch: str
    classes: tuple[str, ...]  # in the order of the logits
    preprocessing: Preprocessing
    head_hidden: int = 0
    dropout: float = 0.0
    head_norm: bool = False
    head: str = "softmax"  # or "sigmoid": one output for two classes
    model_options: dict[str, Any] = dataclasses.field(default_factory=dict)
    weights: str = "none"  # where training started from
    licence: str = ""  # of those weights
    temperature: float = 1.0  # softmax(logits / temperature) is what the model states as probabilities
    selective: dict[str, Any] = dataclasses.field(default_factory=dict)  # see evaluation/unsure.py


def build(info: ModelInfo) -> nn.Module:
    """The network of a record, with fresh weights."""
    size = info.preprocessing.size
    model = build_network(info.arch, len(info.classes), size=size, options=info.model_options)
    set_head(
        model,
        len(info.classes),
        info.head_hidden,
        info.dropout,
        info.head_norm,
        info.head == "sigmoid",
    )
    return model


def save_classifier(state: dict[str, Tensor], info: ModelInfo, path: Path, **facts: Any) -> None:
    """Writes weights and record as one .safetensors file.

    Args:
        state: The network's state dict.
        record: Stored as metadata.
        path: The file.
        facts: Further metadata, such as the accuracy; anything JSON can hold.
    """
    metadata = {
        "format": FORMAT,
        "flowers_torch": __version__,
        "model_info": dataclasses.asdict(info),
        **facts,
    }
    safe_save(state, path, metadata)


def read_model_info(metadata: dict[str, Any], path: Path) -> ModelInfo:
    """The record among a file's metadata.

    Raises:
        ModelFileError: the file is not one of ours, or was written by a newer version.
    """
    if "model_info" not in metadata:
        raise ModelFileError(
            f"{printable(path)} holds weights but not how to use them", "give the model.safetensors of a run"
        )
    if metadata.get("format", 0) > FORMAT:  # guard: C13 weights
        raise ModelFileError(
            f"{printable(path)} was written by flowers_torch {metadata.get('flowers_torch')}",
            "update: pip install -U flowers-torch",
        )
    try:
        values = dict(metadata["model_info"])
        values["classes"] = tuple(values["classes"])
        values["preprocessing"] = Preprocessing.from_dict(values["preprocessing"])
        return ModelInfo(**values)
    except (TypeError, KeyError, ValueError) as error:
        raise ModelFileError(
            f"the record in {printable(path)} is damaged: {error}", "use another copy"
        ) from error


def load_classifier(path: Path) -> tuple[nn.Module, ModelInfo]:
    """The network of a weights file, in inference mode, and its record.

    Args:
        path: `model.safetensors`, or the run folder that holds it.

    Raises:
        ModelFileError: the file is missing, damaged, foreign, or does not fit its own record.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "model.safetensors"
    state, metadata = safe_load(path)
    info = read_model_info(metadata, path)
    model = build(info)
    load_matching(model, state, path)
    return model.eval(), info


def load_matching(model: nn.Module, state: dict[str, Tensor], path: Path | str) -> None:
    """Loads a state dict that must fit exactly; nothing is loaded where it does not.

    Raises:
        ModelFileError: names missing, unexpected or of another shape, the first three of each, or values
            that are not finite.
    """
    expected = model.state_dict()
    complaints = {
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
    said = [f"{len(names)} {kind} ({_first(names)})" for kind, names in complaints.items() if names]
    if said:  # guard: C10
        raise ModelFileError(
            f"{printable(path)} does not fit {type(model).__name__}: {'; '.join(said)}",
            "use weights of this network",
        )
    model.load_state_dict(state)


def _first(names: list[str]) -> str:
    return ", ".join(printable(name, 80) for name in names[:3]) + (", ..." if len(names) > 3 else "")
