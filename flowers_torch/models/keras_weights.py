"""Weights that Keras saved, read into the networks of this package.

A file is read into plain arrays by layer name (`read_h5`), its layers are matched with the network's modules
by a visible table (`keras_table`), each array is laid out as PyTorch wants it (`torch_layout`), and only when
every name and every shape fits is anything copied. A file that does not fit leaves the network as it was.
"""

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from flowers_torch.errors import ModelFileError, UsageError, printable
from flowers_torch.models import inception_v3

KerasLayers = dict[str, list[tuple[str, np.ndarray]]]

MAX_BYTES = 4 * 1024**3  # the largest network of the zoo has 0.36 GB; an HDF5 header can claim anything
# Names that Keras makes up by counting. They differ from session to session (conv2d_1 may be called
# conv2d_95), so only the kind and the order of the numbers mean something.
COUNTED = re.compile(r"(conv2d|depthwise_conv2d|separable_conv2d|batch_normalization)(?:_v1)?(?:_(\d+))?")


@dataclass(frozen=True)
class KerasReport:
    """What came of loading: `used` arrays of the file, whether the head was among them, what was skipped."""

    used: int
    head_loaded: bool
    skipped: list[str] = field(default_factory=list)

    def summary(self) -> str:
        """One line for the log."""
        head = "head loaded" if self.head_loaded else "head fresh"
        left_out = f" ({', '.join(self.skipped)} of the file left out)" if self.skipped else ""
        return f"{self.used} arrays of the Keras file loaded, {head}{left_out}"


def read_h5(path: Path) -> KerasLayers:
    """Reads a Keras legacy .h5: weights only, or a whole model (which keeps them under `model_weights`).

    Returns:
        Layer name to its (weight name, float array) pairs, in the file's layer order, layers without
        weights left out. A model used as one layer is opened up into the layers within.

    Raises:
        UsageError: h5py is not installed.
        ModelFileError: missing, damaged, or not such a file.
    """
    try:
        import h5py
    except ImportError as error:
        raise UsageError("reading Keras weights needs h5py", 'pip install "flowers-torch[keras]"') from error
    path = Path(path)
    if not path.is_file():
        raise ModelFileError(f"no Keras weights at {printable(path)}", "name an .h5 file")
    try:
        with h5py.File(path, "r") as file:
            root = file["model_weights"] if "model_weights" in file else file
            names = _attribute(root, "layer_names")
            if not names:
                raise ModelFileError(
                    f"{printable(path)} is HDF5 but no Keras weights: it has no layer_names",
                    "give a file from model.save_weights or model.save of Keras 2",
                )
            layers: KerasLayers = {}
            budget = MAX_BYTES
            for layer in names:
                weights = [
                    (weight, root[layer][weight]) for weight in _attribute(root[layer], "weight_names")
                ]
                for weight, dataset in weights:
                    # A link may lead out of the file, and a size may be claimed that is not there.
                    foreign = dataset.file.filename != file.filename or dataset.external or dataset.is_virtual
                    budget -= dataset.size * 4
                    if foreign or budget < 0:
                        reason = "lies in another file" if foreign else "is too large to be true"
                        raise ModelFileError(
                            f"{printable(path)}: {printable(weight)} {reason}", "use another copy"
                        )
                for owner, arrays in _split_nested(layer, weights).items():
                    layers[owner] = [(name, np.asarray(data, dtype=np.float32)) for name, data in arrays]
    except (OSError, KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        reason = printable(" ".join(str(error).split()))
        raise ModelFileError(
            f"{printable(path)} cannot be read as Keras .h5 weights: {reason}", "use another copy"
        ) from error
    return layers


def _attribute(group: Any, name: str) -> list[str]:
    """A list of names; Keras cuts lists over 64 kB into name0, name1, ..."""
    parts = [group.attrs[name]] if name in group.attrs else []
    while not parts or f"{name}{len(parts)}" in group.attrs:
        if f"{name}{len(parts)}" not in group.attrs:
            return []
        parts.append(group.attrs[f"{name}{len(parts)}"])
    return [item.decode() if isinstance(item, bytes) else str(item) for part in parts for item in part]


def _split_nested(layer: str, weights: list[tuple[str, Any]]) -> dict[str, list[tuple[str, Any]]]:
    """Weights by the layer that owns them: more than the layer itself where it is a whole model."""
    owners: dict[str, list[tuple[str, Any]]] = defaultdict(list)
    for weight, data in weights:
        owner, _, name = weight.rpartition("/")
        owners[owner.rpartition("/")[2]].append((name.partition(":")[0], data))
    return owners if len(owners) > 1 else {layer: next(iter(owners.values()))} if owners else {}


def keras_table(arch: str) -> list[tuple[str, str]]:
    """The (Keras layer, module of ours) pairs of a backbone; counted Keras names are numbered from 0.

    Raises:
        UsageError: no table for this network.
    """
    if arch == "inception_v3":
        convs = [(f"conv2d_{i}", f"{name}.conv") for i, name in enumerate(inception_v3.KERAS_ORDER)]
        norms = [
            (f"batch_normalization_{i}", f"{name}.bn") for i, name in enumerate(inception_v3.KERAS_ORDER)
        ]
        return convs + norms
    raise UsageError(f"Keras weights cannot be read into {arch}", "use one of: inception_v3")


# Networks whose batch norms have no gamma in Keras (scale=False).
WITHOUT_GAMMA = {"inception_v3"}


def keras_options(arch: str) -> dict[str, Any]:
    """Keywords that a network must be built with to compute what Keras computes with these weights."""
    return {"count_include_pad": False} if arch == "inception_v3" else {}


def load_keras_weights(model: nn.Module, arch: str, path: Path, with_head: bool | None = None) -> KerasReport:
    """Loads a Keras weights file into `model`; all of it or nothing.

    Args:
        model: A network of this package with timm's contract; its classifier may be any module.
        arch: Name of its architecture, as in `keras_table`.
        path: Keras .h5, with or without head.
        with_head: Whether dense layers that the file holds go into the linear layers of the classifier, in
            order. None takes them where all their shapes fit; what is left out is named in the report.

    Returns:
        What was used. A file without head leaves the classifier alone.

    Raises:
        ModelFileError: the file does not fit; both sides of the mismatch are listed, nothing is loaded.
    """
    layers = read_h5(path)
    table = keras_table(arch)
    dense = [name for name, weights in layers.items() if _is_dense(weights)]
    body = {name: weights for name, weights in layers.items() if name not in dense}
    pairs, missing, extra = _match(table, body)
    head = _linear_layers(model)
    if with_head is None:
        own_shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
        widths = [own_shapes[f"{name}.weight"][::-1] for name in head]
        with_head = widths == [layers[name][0][1].shape for name in dense]
    head_loaded = with_head and bool(dense)
    if head_loaded:
        pairs += zip(head, (layers[name] for name in dense), strict=False)
        missing += [f"{name} (linear)" for name in head[len(dense) :]]
        extra += dense[len(head) :]

    tensors: dict[str, Tensor] = {}
    wrong = []
    own = model.state_dict()
    for module_name, weights in pairs:
        module = model.get_submodule(module_name)
        new = torch_layout(module, dict(weights), needs_gamma=arch not in WITHOUT_GAMMA)
        for name, tensor in new.items():
            full = f"{module_name}.{name}"
            if full not in own or tensor.shape != own[full].shape:
                expected = tuple(own[full].shape) if full in own else "nothing"
                wrong.append(f"{full} is {expected} in the network, {tuple(tensor.shape)} in the file")
            tensors[full] = tensor
        given = {f"{module_name}.{name}" for name in new}
        wanted = {f"{module_name}.{name}" for name in module.state_dict() if name != "num_batches_tracked"}
        missing += sorted(wanted - given)
    problems = [
        f"{title}: {_shorten(names)}"
        for title, names in (
            ("in the network but not in the file", missing),
            ("in the file but not in the network", extra),
            ("shapes differ", wrong),
        )
        if names
    ]
    if problems:
        raise ModelFileError(
            f"{printable(path)} does not fit {arch}, nothing was loaded: {'; '.join(problems)}",
            f"give a file of Keras's {arch}",
        )
    with torch.no_grad():
        for name, tensor in tensors.items():
            own[name].copy_(tensor)
    used = sum(len(weights) for _, weights in pairs)
    return KerasReport(used, head_loaded, [] if head_loaded else dense)


def torch_layout(module: nn.Module, weights: dict[str, np.ndarray], needs_gamma: bool) -> dict[str, Tensor]:
    """A Keras layer's arrays by weight name -> the tensors of `module` by parameter name.

    Keras keeps kernels as height, width, in, out and dense layers as in, out; PyTorch as out, in, height,
    width and out, in. A batch norm without gamma (scale=False) multiplies by one.
    """
    tensors = {}
    for name, array in _canonical(module, weights).items():
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        if isinstance(module, nn.BatchNorm2d):
            name = KERAS_NORM.get(name, name)
        elif isinstance(module, nn.Linear) and name == "kernel" and tensor.ndim == 2:
            name, tensor = "weight", tensor.t()
        elif isinstance(module, nn.Conv2d) and name == "kernel" and tensor.ndim == 4:
            name, tensor = "weight", tensor.permute(3, 2, 0, 1)
        elif isinstance(module, nn.Conv2d) and name == "depthwise_kernel" and tensor.ndim == 4:
            height, width, channels, multiplier = tensor.shape
            tensor = tensor.permute(2, 3, 0, 1).reshape(channels * multiplier, 1, height, width)
            name = "weight"
        tensors[name] = tensor
    if isinstance(module, nn.BatchNorm2d) and "weight" not in tensors and not needs_gamma:
        tensors["weight"] = torch.ones(module.num_features)
    return tensors


def _canonical(module: nn.Module, weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Today's weight names. Files of 2015-2017 call them conv1_W, bn_gamma, ...; Keras goes by position."""
    if all(name in KERAS_NAMES for name in weights):
        return weights
    order = list(KERAS_NORM) if isinstance(module, nn.BatchNorm2d) else ["kernel", "bias"]
    return dict(zip(order, weights.values(), strict=False)) if len(weights) <= len(order) else weights


KERAS_NORM = {
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
KERAS_NAMES = {*KERAS_NORM, "kernel", "depthwise_kernel", "pointwise_kernel", "bias"}


def _match(
    table: list[tuple[str, str]], layers: KerasLayers
) -> tuple[list[tuple[str, list[tuple[str, np.ndarray]]]], list[str], list[str]]:
    """(module, weights) pairs, table entries without a layer, layers without an entry.

    Counted names match by kind and rank of their number, all others literally.
    """
    by_key = dict(zip(_ranked(layers), layers, strict=True))
    by_entry = dict(zip(_ranked(name for name, _ in table), table, strict=True))
    pairs = [(module, layers[by_key[key]]) for key, (_, module) in by_entry.items() if key in by_key]
    missing = [f"{name} ({module})" for key, (name, module) in by_entry.items() if key not in by_key]
    extra = [printable(name, 60) for key, name in by_key.items() if key not in by_entry]
    return pairs, missing, extra


def _ranked(names: Iterable[str]) -> list[tuple[str, int]]:
    """For each name (kind, rank among the numbers of its kind), or (name, 0) where it is not counted."""
    names = list(names)
    numbers: dict[str, list[int]] = defaultdict(list)
    parsed = [COUNTED.fullmatch(name) for name in names]
    for match in parsed:
        if match:
            numbers[match[1]].append(int(match[2] or 0))
    ranks = {kind: {n: rank for rank, n in enumerate(sorted(found))} for kind, found in numbers.items()}
    return [
        (match[1], ranks[match[1]][int(match[2] or 0)]) if match else (name, 0)
        for name, match in zip(names, parsed, strict=True)
    ]


def _is_dense(weights: list[tuple[str, np.ndarray]]) -> bool:
    return any(name == "kernel" and array.ndim == 2 for name, array in weights)


def _linear_layers(model: nn.Module) -> list[str]:
    """Names of the linear layers of the model's classifier, in order."""
    classifier: nn.Module = model.get_classifier()  # type: ignore[operator]
    inside = {module for module in classifier.modules() if isinstance(module, nn.Linear)}
    return [name for name, module in model.named_modules() if module in inside]


def _shorten(names: list[str], limit: int = 6) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
