"""Loading Keras's weights files into the networks of this package.

Layers are matched with modules by name or, for names that Keras numbers, by order.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from flowers_torch.errors import ModelFileError, UsageError, printable
from flowers_torch.files.reading import reading
from flowers_torch.log import log
from flowers_torch.models.checkpoint import unusable
from flowers_torch.models.keras.files import Weights, read_keras_file
from flowers_torch.models.keras.layers import has_gamma, keras_layers, renumbered
from flowers_torch.models.keras.names import current_names
from flowers_torch.models.registry import build_network
from flowers_torch.models.tf_layers import SeparableConv2d

Pairs = list[tuple[str, Weights]]  # (module, weights of its layer)

# Mean and standard deviation of the input ranges of Keras networks. "tf": -1..1. "torch": ImageNet's mean and
# standard deviation. "unit": 0..1, as in most tutorials. "caffe": BGR order, minus the mean color, 0..255;
# loading reverses the first convolution's channels, so that the network here takes RGB.
MEAN_STD = {
    "tf": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "torch": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "unit": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "caffe": ((123.68 / 255, 116.779 / 255, 103.939 / 255), (1 / 255, 1 / 255, 1 / 255)),
}
# Input range of Keras's published weights, or of the tutorial; "tf" for all others.
MODES = {
    **dict.fromkeys(("vgg16", "vgg19", "resnet50", "resnet101", "resnet152", "squeezenet"), "caffe"),
    **dict.fromkeys(("resnext50", "resnext101", "densenet121", "densenet169", "densenet201"), "torch"),
    **dict.fromkeys(("resnet50_course", "happy_model", "small_convnet", "cifar10_net"), "unit"),
}
WIDTHS = (0.25, 0.35, 0.5, 0.75, 1.3, 1.4)  # of the MobileNets with published weights, but 1
# Default names with a number. The number depends on the Keras session; only kind and order are meaningful.
COUNTED = re.compile(r"(conv2d|depthwise_conv2d|separable_conv2d|batch_normalization)(?:_v1)?(?:_(\d+))?")
# Arrays of a batch norm -> PyTorch's names, in Keras's order.
NORM = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}


class KerasReport(NamedTuple):
    """The result of loading: number of arrays used, whether the head was loaded, layers left out."""

    used: int
    head_loaded: bool
    skipped: list[str]
    order: str = ""  # of the kernels, where it is Theano's

    def summary(self) -> str:
        """One line for the log."""
        head = "head loaded" if self.head_loaded else "head newly initialized"
        left_out = f" ({', '.join(self.skipped)} of the file left out)" if self.skipped else ""
        order = f" ({self.order})" if self.order else ""
        return f"{self.used} arrays of the Keras file loaded{order}, {head}{left_out}"


def keras_options(arch: str) -> dict[str, Any]:
    """Constructor keywords with which a network computes what Keras computes."""
    return {"inception_v3": {"count_include_pad": False}, "squeezenet": {"ceil_mode": False}}.get(arch, {})


def width_option(arch: str, path: Path) -> dict[str, Any]:
    """The factor of a MobileNet's widths with which its kernels have the sizes of a file's; empty for others."""
    if arch not in ("mobilenet", "mobilenet_v2"):
        return {}
    arrays = [array for weights in read_keras_file(path).layers.values() for _, array in weights if array.ndim == 4]
    sizes = Counter(array.size for array in arrays)
    for alpha in WIDTHS:
        with torch.device("meta"):
            model = build_network(arch, options={"alpha": alpha})
        kernels = [module.weight.numel() for module in model.modules() if isinstance(module, nn.Conv2d)]
        if not Counter(kernels) - sizes:
            log.info(f"note     {printable(path)}: the kernels have the sizes of {arch} with alpha = {alpha}")
            return {"alpha": alpha}
    return {}


def input_mode(arch: str, keras_input: str = "") -> str:
    """The input range of a file's network, a key of `MEAN_STD`; `keras_input` is the user's choice.

    Raises:
        UsageError: unknown input range.
    """
    mode = keras_input or MODES.get(arch, "tf")
    if mode not in MEAN_STD:
        raise UsageError(f"unknown keras_input {printable(mode)!r}", f"use one of {', '.join(MEAN_STD)}")
    return mode


def load_keras_weights(
    model: nn.Module, arch: str, path: Path, with_head: bool | None = None, keras_input: str = ""
) -> KerasReport:
    """Loads a Keras weights file into `model`; all of it or nothing.

    Args:
        model: A network of the registry; its classifier may be any module.
        path: A legacy .h5, .weights.h5 or .keras file, with or without head.
        with_head: Whether the file's dense layers go into the linear layers of the head, in order. None loads
            them if all shapes fit.
        keras_input: Input range of the file's network, a key of `MEAN_STD`; empty is that of Keras's
            published weights. "caffe" reverses the channels of the first convolution.

    Raises:
        ModelFileError: the file does not fit. The message lists both sides of the mismatch.
        UsageError: h5py is missing, Keras does not have this network, or `keras_input` is unknown.
    """
    mode = input_mode(arch, keras_input)
    with reading(path, f"a weights file of Keras's {arch}", ModelFileError):  # guard: S8 layout
        return _load(model, arch, path, with_head, mode)


def _load(model: nn.Module, arch: str, path: Path, with_head: bool | None, mode: str) -> KerasReport:
    file = read_keras_file(path)
    layers = dict(zip(current_names(file.layers), file.layers.values(), strict=True))
    dense = [name for name, weights in layers.items() if weights[0][1].ndim == 2 or name in ("conv_preds", "conv10")]
    rows = keras_layers(model) if file.named else renumbered(keras_layers(model))
    rows = [row for row in rows if row.parameters]
    names, modules = current_names(row.name for row in rows), [row.module for row in rows]
    ours = dict(zip(_ranked(names), zip(names, modules, strict=True), strict=True))
    backbone = [name for name in layers if name not in dense]
    theirs = dict(zip(_ranked(backbone), backbone, strict=True))
    pairs = [(module, layers[theirs[key]]) for key, (_, module) in ours.items() if key in theirs]
    missing = [f"{name} ({module})" for key, (name, module) in ours.items() if key not in theirs]
    extra = [printable(name, 60) for key, name in theirs.items() if key not in ours]

    head = [name for name, m in model.named_modules() if isinstance(m, nn.Linear) and name not in modules]
    if with_head is None:
        sizes = [math.prod(model.get_submodule(name).weight.shape) for name in head]  # type: ignore[arg-type]
        # A ReLU follows SqueezeNet's conv10, which the head here has no place for.
        with_head = "conv10" not in dense and sizes == [layers[name][0][1].size for name in dense]
    head_loaded = with_head and bool(dense)
    if head_loaded:
        pairs += zip(head, (layers[name] for name in dense), strict=False)
        missing += [f"{name} (linear)" for name in head[len(dense) :]]
        extra += dense[len(head) :]

    pairs, swapped, order = _from_theano(model, pairs, file.backend, path)
    # A dense layer behind a Flatten counts channel, row, column in Theano's order, as here.
    channels: int = 0 if swapped else model.num_features  # type: ignore[assignment]
    tensors, absent, wrong = _convert(model, pairs, channels)
    lists = {"in the network but not in the file": missing + absent}
    lists |= {"in the file but not in the network": extra, "shapes differ": wrong}
    lists |= unusable(tensors)
    if problems := [f"{title}: {_shorten(names)}" for title, names in lists.items() if names]:
        what = f"{printable(path)} does not fit {arch}, nothing was loaded: {'; '.join(problems)}"
        raise ModelFileError(what, f"give a file of Keras's {arch}")
    if mode == "caffe":
        first = f"{modules[0]}.weight"
        tensors[first] = tensors[first].flip(1)
    model.load_state_dict(tensors, strict=False)
    return KerasReport(sum(len(w) for _, w in pairs), head_loaded, [] if head_loaded else dense, order)


def _ranked(names: Sequence[str]) -> list[tuple[str, int]]:
    """For each name (kind, rank among the numbers of its kind), or (name, 0) if it has no number."""
    matches = [COUNTED.fullmatch(name) for name in names]
    parsed = [(m[1], int(m[2] or 0)) if m else (name, 0) for name, m in zip(names, matches, strict=True)]
    numbers: dict[str, list[int]] = defaultdict(list)
    for kind, number in sorted(parsed):
        numbers[kind].append(number)
    return [(kind, numbers[kind].index(number)) for kind, number in parsed]


def _from_theano(model: nn.Module, pairs: Pairs, backend: str, path: Path) -> tuple[Pairs, bool, str]:
    """The layers with kernels in TensorFlow's order, whether they were in Theano's, and what was done, in words.

    With Theano Keras 1 wrote kernels as out, in, height, width, and Theano turns each by 180 degrees when it computes.
    Keras 2 wrote them as height, width, in, out, but turned as well. A file's name or its backend says which it is.
    """
    swapped = any(_is_swapped(model.get_submodule(module), weights) for module, weights in pairs)
    is_turned = backend == "theano" or "th_kernels" in path.name or (swapped and "tf_kernels" not in path.name)
    if backend == "tensorflow" or not (swapped or is_turned):
        return pairs, False, ""
    found: Pairs = []
    for module, weights in pairs:
        layer = model.get_submodule(module)
        (name, kernel), *rest = weights
        if isinstance(layer, nn.Conv2d) and kernel.ndim == 4 and layer.groups == 1:
            kernel = kernel.transpose(2, 3, 1, 0) if swapped else kernel
            kernel = kernel[::-1, ::-1] if is_turned else kernel
        found.append((module, [(name, kernel), *rest]))
    order = "in Theano's order" if swapped else "of Theano"
    return found, swapped, f"kernels {order}{', turned by 180 degrees' if is_turned else ''}"


def _is_swapped(layer: nn.Module, weights: Weights) -> bool:
    """Whether the kernel of a convolution fits only in Theano's order."""
    if not isinstance(layer, nn.Conv2d) or layer.groups > 1:
        return False
    outputs, inputs, height, width = layer.weight.shape
    shape = weights[0][1].shape
    return shape == (outputs, inputs, height, width) != (height, width, inputs, outputs)


def _convert(model: nn.Module, pairs: Pairs, channels: int) -> tuple[dict[str, Tensor], list[str], list[str]]:
    """The file's tensors by parameter name, parameters that the file lacks, tensors of a wrong shape."""
    own = model.state_dict()
    tensors: dict[str, Tensor] = {}
    missing, wrong = [], []
    for module_name, weights in pairs:
        module = model.get_submodule(module_name)
        new = torch_layout(module, weights, has_gamma(model), channels)
        for name, tensor in new.items():
            full = f"{module_name}.{name}"
            expected = tuple(own[full].shape) if full in own else "nothing"
            if tuple(tensor.shape) != expected:
                wrong.append(f"{full} is {expected} in the network, {tuple(tensor.shape)} in the file")
            tensors[full] = tensor
        if isinstance(module, nn.Linear) and module.bias is not None and "bias" not in new:
            new["bias"] = tensors[f"{module_name}.bias"] = torch.zeros(module.out_features)  # Dense(use_bias=False)
        absent = module.state_dict().keys() - new.keys() - {"num_batches_tracked"}
        missing += [f"{module_name}.{name}" for name in sorted(absent)]
    return tensors, missing, wrong


def _shorten(names: list[str], limit: int = 6) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def torch_layout(module: nn.Module, weights: Weights, needs_gamma: bool, channels: int) -> dict[str, Tensor]:
    """The arrays of a Keras layer as the tensors of `module`, by parameter name.

    Arrays are identified by position, as in Keras, because their names changed between its versions. An array
    of a wrong rank stays as it is.

    Args:
        needs_gamma: Whether a batch norm must have a gamma in the file; otherwise a missing gamma is 1.
        channels: Channels of the last feature map, to recognize a dense layer behind a Flatten.
    """
    arrays = [torch.from_numpy(np.ascontiguousarray(array)) for _, array in weights]
    if isinstance(module, nn.BatchNorm2d):
        is_named = all(name in NORM for name, _ in weights)  # by name, because gamma may be missing
        names = [NORM[name] for name, _ in weights] if is_named else list(NORM.values())[-len(arrays) :]
        if "weight" not in names and not needs_gamma:
            names.append("weight")
            arrays.append(torch.ones(module.num_features))
    elif isinstance(module, SeparableConv2d):
        names = ["depthwise.weight", "pointwise.weight", "bias"]
        arrays[:2] = [_kernel(arrays[0], depthwise=True), *map(_kernel, arrays[1:2])]
    else:
        names = ["weight", "bias"]
        if isinstance(module, nn.Linear):
            arrays[0] = _dense(arrays[0], channels, module.in_features)
        elif isinstance(module, nn.Conv2d):
            arrays[0] = _kernel(arrays[0], module.groups, 1 < module.groups == module.in_channels)
    names += [f"array {i}" for i in range(len(names), len(arrays))]  # surplus arrays, for the error message
    return dict(zip(names, arrays, strict=False))


def _kernel(array: Tensor, groups: int = 1, depthwise: bool = False) -> Tensor:
    """Height, width, group x in, out of the group (also of a depthwise kernel) -> group x out, in, height, width."""
    if array.ndim != 4:
        return array
    height, width, inputs, outputs = array.shape
    array = array.reshape(height, width, inputs if depthwise else groups, -1, outputs)
    return array.permute(2, 4, 3, 0, 1).flatten(0, 1)


def _dense(array: Tensor, channels: int, in_features: int) -> Tensor:
    """In, out -> out, in; behind a Flatten also from row, column, channel to channel, row, column."""
    if array.ndim == 4 and array.shape[:2] == (1, 1):  # MobileNet's classifier is a 1x1 convolution
        array = array[0, 0]
    if array.ndim != 2:
        return array
    side = math.isqrt(in_features // channels) if channels else 0
    if side > 1 and channels * side * side == in_features == len(array):
        array = array.reshape(side, side, channels, -1).permute(2, 0, 1, 3).flatten(0, 2)
    return array.t()
