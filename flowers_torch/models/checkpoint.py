"""A trained classifier as one file: the weights, and metadata that say how to build the network and use it."""

import dataclasses
import itertools
import re
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from flowers_torch import __version__
from flowers_torch.data.preprocessing import Preprocessing
from flowers_torch.errors import ModelFileError, UsageError, printable
from flowers_torch.files.reading import check, reading
from flowers_torch.files.tensors import safe_load, safe_save
from flowers_torch.models.feature_sets import SETS as FEATURE_SETS
from flowers_torch.models.feature_sets import set_features
from flowers_torch.models.heads import classifier_names, feature_width, set_head
from flowers_torch.models.registry import build_network

REGISTERED = ("_parameters", "_buffers", "_modules")  # attributes of a module
FORMAT = 1  # raised when an older reader would misread a newer file
MAX_SIDE = 8192  # pixels of an image before its crop

# The form of the metadata, as `check` takes it.
CLASSES = [str, 2, 1_000_000]
TEMPERATURE = (1e-6, 1e6)
PREPROCESSING = {
    "size": (1, 4096),
    "mean": [(-100.0, 100.0), 3, 3],
    "std": [(1e-6, 1e6), 3, 3],
    "interpolation": {"bicubic", "bilinear"},
    "crop": (0.01, 1.0),
    "stretch": bool,
    "value_range?": [(-1e12, 1e12), 0, 2],
    "color_space?": {"sRGB"},
}
BASE64 = re.compile(r"(?:[A-Za-z0-9+/]{4})+(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?|[A-Za-z0-9+/]{2,3}={1,2}")
DETECTOR = {"center": BASE64, "directions": BASE64, "features": (1, 1 << 20), "threshold": (-0.1, 2.1)}
CURVE = [[(0.0, 1e12), 3, 3], 1, 1_000_000]
SETS = {"images": (1, 1 << 40), "quantiles": [[(0.0, 1e12), 2, 2], 1, 1_000_000]}
MODEL_INFO = {
    "arch": str,
    "classes": CLASSES,
    "preprocessing": PREPROCESSING,
    "head_hidden?": (0, 1 << 20),
    "dropout?": (0.0, 0.999),
    "head_norm?": bool,
    "head?": {"softmax", "sigmoid"},
    "model_options?": {str: object},  # the network's constructor knows them
    "weights?": str,
    "license?": str,
    "mirror?": bool,
    "features?": {"", *FEATURE_SETS},
    "temperature?": TEMPERATURE,
    "selective?": {"curve?": CURVE, "sets?": SETS, "ood_detector?": DETECTOR},
}


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
    mirror: bool = True  # whether a mirrored image shows the same class
    features: str = ""  # the feature set that enters the classifier, see models/feature_sets.py; "": the network's own
    temperature: float = 1.0  # the model's probabilities are softmax(logits / temperature)
    selective: dict[str, Any] = dataclasses.field(
        default_factory=dict
    )  # see evaluation/selective.py and prediction_sets.py


def build(info: ModelInfo) -> nn.Module:
    """The network that `info` describes, with random weights."""
    classes = len(info.classes)
    model = build_network(info.arch, classes, size=info.preprocessing.size, options=info.model_options)
    if info.features:
        set_features(model, info.features)
    set_head(model, classes, info.head_hidden, info.dropout, info.head_norm, info.head == "sigmoid")
    return model


def save_classifier(state: dict[str, Tensor], info: ModelInfo, path: Path, **extra: Any) -> None:
    """Writes a .safetensors file; `extra` is further metadata that JSON can hold, such as the accuracy."""
    metadata = {"format": FORMAT, "flowers_torch": __version__, "model_info": dataclasses.asdict(info)}
    safe_save(state, path, metadata | extra)


def read_model_info(metadata: dict[str, Any], path: Path) -> ModelInfo:
    """The `ModelInfo` in a file's metadata.

    Raises:
        ModelFileError: another program or a newer version wrote the file, or they do not have their form.
    """
    if "model_info" not in metadata:
        what = f"{printable(path)} holds weights but not how to use them"
        raise ModelFileError(what, "give the model.safetensors of a run, or start a run with train --weights FILE")
    with reading(path, "a valid weights file of this package", ModelFileError):
        if check(metadata.get("format", 0), int, "format") > FORMAT:  # guard: C13 weights
            what = f"{printable(path)} was written by flowers_torch {printable(metadata.get('flowers_torch'))}"
            raise ModelFileError(what, "update: pip install -U flowers-torch")
        values = metadata["model_info"]
        check(values, MODEL_INFO, "model_info")  # guard: S8 metadata
        values = {key: value for key, value in values.items() if value is not None}
        values["classes"] = check_classes(values["classes"])
        values["preprocessing"] = Preprocessing.from_dict(values["preprocessing"])
        info = ModelInfo(**values)
        if info.preprocessing.size > MAX_SIDE * info.preprocessing.crop:  # guard: S8 side
            raise ValueError(f"crop {info.preprocessing.crop} of {info.preprocessing.size} pixels is too small")
        check_value_range(info.preprocessing.value_range)
        points = [[0, 0, 0], *info.selective.get("curve", [])]
        for (_, fewer, some), (probability, accepted, errors) in itertools.pairwise(points):
            # guard: S8 curve
            if probability > 1.01 or not (fewer < accepted and some <= errors <= accepted):
                raise ValueError("its risk-coverage curve is not one")
        if sets := info.selective.get("sets"):
            check_sets(sets)
    return info


def check_sets(sets: dict[str, Any]) -> None:
    """ValueError for quantiles that fall, begin late, or have a rank beyond the images."""
    for (lower, before), (probability, rank) in itertools.pairwise([[0, 0], *sets["quantiles"]]):
        # guard: S8 sets
        if not (lower <= probability <= 1.01 and before < rank <= sets["images"]) or (before == 0 and rank != 1):
            raise ValueError("its prediction sets are not any")


def check_classes(names: list[str]) -> tuple[str, ...]:
    """Class names from a file, which are different and not empty; ValueError if not."""
    if "" in names or len(set(names)) < len(names):  # guard: S8 classes
        raise ValueError("a class has no name, or two have the same")
    return tuple(names)


def check_value_range(value_range: Sequence[float]) -> None:
    """ValueError for what is not empty and no range."""
    if value_range and not (len(value_range) == 2 and value_range[0] < value_range[1]):  # guard: S8 range
        raise ValueError(f"its value range {value_range} is not one")


def load_classifier(path: Path) -> tuple[nn.Module, ModelInfo]:
    """The network of a `model.safetensors` (or of the run folder around it) in inference mode, and its metadata.

    Raises:
        ModelFileError: the file is missing, damaged, from another program, or contradicts its metadata.
    """
    path = Path(path)
    path = path / "model.safetensors" if path.is_dir() else path
    state, metadata = safe_load(path)
    info = read_model_info(metadata, path)
    model = check_fits(info, state, path)
    if _is_all_state(model):  # which saves the random weights of another one
        expected = model.state_dict()
        typed = {name: value.to(expected[name].dtype) for name, value in state.items()}
        model.load_state_dict(typed, assign=True)
    else:
        model = build(info)
        model.load_state_dict(state)
    return model.eval(), info


def _is_all_state(model: nn.Module) -> bool:
    """Whether all tensors of a network are in its state dict, each once."""
    registered = [*model.parameters(), *model.buffers()]
    fields = [vars(module) for module in model.modules()]
    others = [value for names in fields for name, value in names.items() if name not in REGISTERED]
    return len(registered) == len(model.state_dict()) and not any(map(_holds_tensors, others))


def _holds_tensors(value: Any) -> bool:
    if isinstance(value, list | tuple | dict):
        return any(map(_holds_tensors, value.values() if isinstance(value, dict) else value))
    return isinstance(value, Tensor)


def check_fits(info: ModelInfo, state: dict[str, Tensor], path: Path) -> nn.Module:
    """Compares a file's metadata with its tensors, before memory is given to the network that they describe.

    Returns:
        The network on the meta device: with shapes and no values.

    Raises:
        ModelFileError: the network cannot be built, or other tensors would fit it.
    """
    left, thread = 3 * len(state) + 100, threading.get_ident()  # parameters; heads are replaced once or twice

    def count(*registered: object) -> None:
        nonlocal left
        left -= threading.get_ident() == thread
        if left < 0:  # guard: S8 endless
            raise ValueError("its network has many more parameters than the file has tensors")

    hook = register_module_parameter_registration_hook(count)
    try:
        with reading(path, "a valid weights file of this package", ModelFileError), torch.device("meta"):
            model = build(info)
    except UsageError as error:
        raise ModelFileError(f"{printable(path)}: {error}") from error
    finally:
        hook.remove()
    _require_match(model, state, path)
    detector = info.selective.get("ood_detector")
    width = sum(feature_width(model.get_submodule(name)) for name in classifier_names(model))
    if detector and detector["features"] != width:  # guard: S8 detector
        what = f"{printable(path)} has a detector of {detector['features']} features for a network of {width}"
        raise ModelFileError(what, "use another copy")
    return model


def load_matching(model: nn.Module, state: dict[str, Tensor], path: Path | str) -> None:
    """Loads a state dict that must fit exactly; otherwise nothing is loaded.

    Raises:
        ModelFileError: names are missing, unexpected or of another shape or type, or values are not usable.
    """
    _require_match(model, state, path)
    model.load_state_dict(state)


def _require_match(model: nn.Module, state: dict[str, Tensor], path: Path | str) -> None:
    expected = model.state_dict()
    common = [name for name in expected if name in state]
    problems = {
        "missing": [name for name in expected if name not in state],
        "unexpected": [name for name in state if name not in expected],
        "of another shape": [
            f"{name} {tuple(state[name].shape)} for {tuple(expected[name].shape)}"
            for name in common
            if state[name].shape != expected[name].shape
        ],
        # guard: S8 types
        "of another type": [n for n in common if state[n].is_floating_point() != expected[n].is_floating_point()],
        **unusable({name: state[name].to(expected[name].dtype) for name in common}),
    }
    texts = [f"{len(names)} {kind} ({_first(names)})" for kind, names in problems.items() if names]
    if texts:  # guard: C10
        what = f"{printable(path)} does not fit {type(model).__name__}: {'; '.join(texts)}"
        raise ModelFileError(what, "use weights of this network")


def unusable(state: dict[str, Tensor]) -> dict[str, list[str]]:
    """Names of tensors with which a network gives no finite results, by reason."""
    variances = {name: value for name, value in state.items() if name.endswith("running_var")}
    return {
        # guard: E06, C12
        "not finite": [name for name, value in state.items() if not _is_usable(name, value)],
        # guard: S8 variance
        "negative": [name for name, value in variances.items() if bool((value < 0).any())],
    }


def _is_usable(name: str, value: Tensor) -> bool:
    """Whether all values are finite; the bounds of a clamp, as in Gemma's vision network, may be infinite."""
    may_be_infinite = name.endswith(("_min", "_max")) and value.ndim == 0
    return not bool(value.isnan().any()) if may_be_infinite else bool(value.isfinite().all())


def _first(names: list[str]) -> str:
    return ", ".join(printable(name, 80) for name in names[:3]) + (", ..." if len(names) > 3 else "")
