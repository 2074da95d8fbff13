"""The weights that training starts from: ImageNet's, the pip package's, a file's, or random ones.

`plan_weights` resolves the choice and finds mistakes before any image is read; `load_weights` fills the network.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flowers_torch.data.preprocessing import Preprocessing
from flowers_torch.errors import ModelFileError, UsageError, plural, printable
from flowers_torch.files.system import expand_home
from flowers_torch.files.tensors import TensorFile, load_groups
from flowers_torch.models.checkpoint import check_fits, load_matching, read_model_info
from flowers_torch.models.heads import classifier_names
from flowers_torch.models.imagenet import imagenet_classes
from flowers_torch.models.keras.files import is_keras_file
from flowers_torch.models.keras.weights import MEAN_STD, input_mode, keras_options, load_keras_weights, width_option
from flowers_torch.models.layouts import AUXILIARY, COUNTER, DENSE, Match, match
from flowers_torch.models.offline import OFFLINE_LICENSE, offline_state_dict, offline_weights_path
from flowers_torch.models.pretrained import fetch_imagenet, read_imagenet, resampled
from flowers_torch.models.registry import NetworkEntry, build_network, find_entry, imagenet_entry
from flowers_torch.models.timm_networks import SIZE_OPTIONS


@dataclasses.dataclass(frozen=True)
class WeightsPlan:
    """What a choice of weights means for the network."""

    kind: str  # none, own, imagenet, offline, keras or file
    source: str  # the file's name, or what the user typed
    preprocessing: Preprocessing
    options: dict[str, Any]  # keywords that the network must be built with for these weights
    license: str
    path: Path = Path()  # of a file
    keras_input: str = ""  # of a Keras file: its input range, where not the published one
    classes: tuple[str, ...] = ()  # of a file of this package: the classes of its head
    features: str = ""  # of such a file: the feature set that its head takes

    def for_size(self, size: int, options: dict[str, Any]) -> "WeightsPlan":
        """The plan for images of another size (0: the same), with the options that make the network take them."""
        others = {name: value for name, value in self.options.items() if not size or name not in SIZE_OPTIONS}
        return dataclasses.replace(self, options=others | options)

    @property
    def size_options(self) -> dict[str, Any]:
        """Those of the options that say for which size of image the network is built."""
        return {name: value for name, value in self.options.items() if name in SIZE_OPTIONS}


def plan_weights(
    arch: str, weights: str, keras_input: str = "", model_options: Mapping[str, Any] | None = None
) -> WeightsPlan:
    """Resolves `--weights` (imagenet, offline, none, or a .safetensors, .pth or Keras file) for a network.

    Args:
        arch: A registered name or a timm name.
        weights: What the user typed.
        keras_input: The input range of a Keras file where it is not the published one: caffe, tf, torch or unit.
        model_options: Keywords of the network's constructor that the user has set.

    Raises:
        UsageError: the network has no such weights.
        ModelFileError: the file is missing or cannot be read.
    """
    entry = find_entry(arch)
    if entry.is_own and weights == "none":
        return WeightsPlan("own", "the program", entry.preprocessing, {}, "")
    path = expand_home(weights)
    is_file = weights not in ("none", "imagenet", "offline")
    if is_file and not path.is_file():
        raise ModelFileError(f"no weights file {printable(path)}", "use imagenet, offline, none or a file's path")
    is_keras = is_file and is_keras_file(path)
    if keras_input and not is_keras:
        what = f"keras_input={printable(keras_input)} needs a Keras file, not {printable(weights)}"
        raise UsageError(what, "leave it out")
    if is_keras:
        return _plan_keras_file(arch, entry, path, keras_input, model_options or {})
    if is_file:
        return _plan_file(arch, entry, path, model_options or {})
    if weights == "imagenet" and not entry.timm_name:
        raise UsageError(f"there are no ImageNet weights for {arch}", _imagenet_alternatives(entry))
    if weights == "offline":
        offline_weights_path(arch)  # a package that is missing is missed before a photo is read
    if weights == "imagenet":  # timm may publish newer weights than those that the registry was written for
        published = imagenet_entry(arch)
        return WeightsPlan(weights, weights, published.preprocessing, entry.timm_options, published.license)
    return WeightsPlan(weights, weights, entry.preprocessing, {}, OFFLINE_LICENSE if weights == "offline" else "")


def _plan_keras_file(
    arch: str, entry: NetworkEntry, path: Path, keras_input: str, model_options: Mapping[str, Any]
) -> WeightsPlan:
    # Keras's weights want another input range than timm's weights of the same network.
    mean, std = MEAN_STD[input_mode(arch, keras_input)]
    preprocessing = dataclasses.replace(entry.preprocessing, mean=mean, std=std, interpolation="bilinear")
    options = keras_options(arch) | ({} if "alpha" in model_options else width_option(arch, path))
    return WeightsPlan("keras", path.name, preprocessing, options, "that of the file", path, keras_input)


def _plan_file(arch: str, entry: NetworkEntry, path: Path, model_options: Mapping[str, Any]) -> WeightsPlan:
    file = load_groups(path)
    if "model_info" in file.metadata:
        info = read_model_info(file.metadata, path)
        check_fits(info, file.groups[""], path)
        if info.arch != arch:
            found = printable(info.arch)
            raise ModelFileError(f"{printable(path)} holds {found}, not {arch}", f"add --arch {found}")
        own = (info.preprocessing, info.model_options, info.license, path)
        return WeightsPlan("file", path.name, *own, classes=info.classes, features=info.features)
    # Options such as ResNet's lineage belong to the names of timm and torchvision, and perhaps to the file of another.
    added: dict[str, Any] = {}
    matched = _match_on_meta(arch, added | dict(model_options), file, path)
    if entry.timm_options and (matched.is_foreign or matched.missing):
        added = entry.timm_options
        matched = _match_on_meta(arch, added | dict(model_options), file, path)
    matched.require_complete(arch, path)
    return WeightsPlan("file", path.name, entry.preprocessing, added, "that of the file", path)


def _match_on_meta(arch: str, options: dict[str, Any], file: TensorFile, path: Path) -> Match:
    with torch.device("meta"):  # only names and shapes are needed
        model = build_network(arch, options=options)
    return match(model, arch, file, path)


def _imagenet_alternatives(entry: NetworkEntry) -> str:
    fixes = ["--weights none or a file"]
    if entry.keras_name:
        fixes = [f"Keras's own {entry.keras_name} as --weights FILE.h5 (docs/keras.md says where it is)"]
    if entry.timm_alternative:
        fixes.append(f"--arch {entry.timm_alternative}, timm's nearest relative")
    return f"give {', or '.join(fixes)}"


def load_weights(model: nn.Module, arch: str, plan: WeightsPlan, classes: Sequence[str] = ()) -> str:
    """Fills the network `arch`, built with `plan.options`, and returns a line for the log.

    A head that does not fit stays as it is. If the file names its classes and `classes` are the network's, rows
    of the head are copied by class name; rows of new classes stay random.

    Raises:
        ModelFileError: the weights do not fit; nothing was loaded.
        ResourceError: the weights cannot be downloaded.
    """
    if plan.kind == "none":
        return "random weights"
    if plan.kind == "own":
        return "the weights that it came with"
    if plan.kind == "keras":
        with_head = False if classes else None
        return load_keras_weights(model, arch, plan.path, with_head, plan.keras_input).summary()
    theirs, details = plan.classes, ""
    if plan.kind == "offline":
        state, path = offline_state_dict(arch)
    elif plan.kind == "imagenet":
        path = fetch_imagenet(arch)
        state = read_imagenet(arch, path, plan.size_options)
    else:
        path, file = plan.path, load_groups(plan.path)
        if theirs:
            state, details = file.groups[""], ", this package's file"
        else:
            matched = match(model, arch, file, path)
            matched.require_complete(arch, path)
            state, details = matched.state, _details(matched, model)
        state = resampled(state, model, arch, path, plan.size_options)
    if plan.kind in ("offline", "imagenet") and len(classes) == 1000:
        theirs = tuple(wordnet_id for wordnet_id, _ in imagenet_classes())
    if not classes or theirs == tuple(classes):
        return _load_backbone(model, state, path, details)
    if known := sum(name in theirs for name in classes):
        state = _rows_by_name(model, state, theirs, classes)
        backbone = _load_backbone(model, state, path, details)
        return f"{backbone}, {known} of its {plural(classes, 'class')} known from before"
    return _load_backbone(model, state, path, details, with_head=False)


def _details(matched: Match, model: nn.Module) -> str:
    """Whose weights they are, and what the file lacks or has more than the network, for the log."""
    counters = sum(name.endswith(COUNTER) and name not in matched.state for name in model.state_dict())
    parts = [matched.source]
    parts += [f"without the {counters} counters of batch norm, as before 2018"] * bool(counters)
    parts += ["without dense layers"] * matched.lacks_dense + [f"left out: {matched.unused}"] * bool(matched.unused)
    return "".join(f", {part}" for part in parts)


def _rows_by_name(
    model: nn.Module, state: dict[str, Tensor], theirs: Sequence[str], ours: Sequence[str]
) -> dict[str, Tensor]:
    """The file's tensors with the rows of its classifiers in the order of the network's classes."""
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    last = []
    for head in classifier_names(model):
        last += [name for name in linear if name == head or name.startswith(f"{head}.")][-1:]
    last += [name for name in linear if name.endswith("_aux.fc")]  # GoogLeNet's
    own, place = model.state_dict(), {name: row for row, name in enumerate(theirs)}
    found = dict(state)
    for name in (f"{layer}.{kind}" for layer in last for kind in ("weight", "bias")):
        if name in state and len(state[name]) == len(theirs):
            found[name] = own[name].clone()
            for row, label in enumerate(ours):
                if label in place:
                    found[name][row] = state[name][place[label]]  # guard: D28 head
        elif name in state and len(state[name]) == 1:  # a sigmoid's one output is for the second class
            is_reversed = tuple(ours) == tuple(reversed(theirs))
            found[name] = -state[name] if is_reversed else own[name].clone()
    return found


def _load_backbone(
    model: nn.Module, state: dict[str, Tensor], path: Path, details: str = "", with_head: bool = True
) -> str:
    """Loads what fits; a head of other classes (`with_head`) stays as it is, and so does one of another shape."""
    own = model.state_dict()
    heads = tuple(f"{name}." for name in classifier_names(model))
    theirs = {name: tensor for name, tensor in state.items() if name.startswith(heads)}
    ours = {name: tensor for name, tensor in own.items() if name.startswith(heads)}
    fits = {n: t.shape for n, t in theirs.items()} == {n: t.shape for n, t in ours.items()}
    backbone = {name: tensor for name, tensor in state.items() if name not in theirs}
    # InceptionV3's and VOLO's auxiliary classifiers, VGG's dense layers
    for optional in AUXILIARY:
        if not any(name.startswith(optional) for name in own):
            backbone = {name: tensor for name, tensor in backbone.items() if not name.startswith(optional)}
    loaded = backbone | (theirs if fits and with_head else {})  # guard: C11 head
    fresh = {n: t for n, t in own.items() if n.startswith((*heads, *DENSE)) or n.endswith(COUNTER)}
    load_matching(model, fresh | loaded, path)
    counted = f"{len(loaded)} of {len(own)} tensors loaded from {printable(path.name)}{details}"
    if fits and not with_head:
        return f"{counted}, the file's head left out because it does not name your classes, head newly initialized"
    return f"{counted}, head {'loaded' if fits else 'newly initialized'}"
