"""Where a network's first weights come from: ImageNet, the pip package, a file, or nowhere.

`plan_weights` says what the choice brings with it (preprocessing, options, licence) without touching a
large file, and finds out that something is missing before a photo is read; `load_weights` does the work.
"""

import dataclasses
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import timm.models
from torch import Tensor, nn

from flowers_torch.data.preprocessing import Preprocessing
from flowers_torch.errors import ModelFileError, ResourceError, UsageError, printable
from flowers_torch.files.cache import cache_folder
from flowers_torch.files.download import check_digest, download
from flowers_torch.files.tensors import safe_load
from flowers_torch.models.checkpoint import load_matching, read_model_info
from flowers_torch.models.heads import classifier_name
from flowers_torch.models.keras.files import is_keras_file
from flowers_torch.models.keras.weights import MEAN_STD, input_mode, keras_options, load_keras_weights
from flowers_torch.models.offline_weights import OFFLINE_ARCH, offline_state_dict
from flowers_torch.models.registry import Entry, find_entry
from flowers_torch.models.torch_weights import renamed

WAYS_ON = "give --weights FILE, --weights offline (with --arch tf_efficientnet_lite0), or --weights none"


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a choice of weights means for the network."""

    kind: str  # none, imagenet, offline, keras, file
    source: str  # file name, or what the user typed
    preprocessing: Preprocessing
    options: dict[str, Any]  # keywords the network must be built with for these weights
    licence: str
    path: Path | None = None
    keras_input: str = ""  # of a Keras file: how its network saw the photos, where not as published
    classes: tuple[str, ...] = ()  # of a file of ours: what the rows of its head stand for


def plan_weights(arch: str, weights: str, keras_input: str = "") -> Plan:
    """Resolves `--weights` for a network.

    Args:
        arch: Name in the zoo.
        weights: imagenet, offline, none, or a .safetensors, .pth or Keras .h5 file.
        keras_input: Of a Keras file: caffe, tf, torch or unit where its network did not see its photos as
            Keras's published one did.

    Raises:
        UsageError: the pair makes no sense.
        ModelFileError: the file is not there or not readable.
    """
    entry = find_entry(arch)
    path = Path(weights).expanduser()
    is_file = weights not in ("none", "imagenet", "offline")
    if is_file and not path.is_file():
        raise ModelFileError(
            f"no weights file {printable(path)}", "use imagenet, offline, none or a file's path"
        )
    is_keras = is_file and is_keras_file(path)
    if keras_input and not is_keras:
        raise UsageError(
            f"keras_input={printable(keras_input)} is for files of Keras, {printable(weights)} is none",
            "leave it out",
        )
    plan = Plan(weights, weights, entry.preprocessing, {}, entry.licence)
    if weights == "none":
        return dataclasses.replace(plan, licence="")
    if weights == "imagenet":
        if not entry.timm_name:
            raise UsageError(f"there are no ImageNet weights for {arch}", _instead_of_imagenet(entry))
        return dataclasses.replace(plan, options=entry.timm_options)
    if weights == "offline":
        if arch != OFFLINE_ARCH:
            raise UsageError(
                f"--weights offline holds {OFFLINE_ARCH}, not {arch}", f"add --arch {OFFLINE_ARCH}"
            )
        return dataclasses.replace(plan, licence="apache-2.0")
    if is_keras:
        # Keras's networks want their pixels in other ranges than timm's weights for the same network.
        mean, std = MEAN_STD[input_mode(arch, keras_input)]
        keras = dataclasses.replace(entry.preprocessing, mean=mean, std=std, interpolation="bilinear")
        return Plan("keras", path.name, keras, keras_options(arch), "that of the file", path, keras_input)
    state, metadata = safe_load(path)
    if "model_info" in metadata:
        info = read_model_info(metadata, path)
        if info.arch != arch:
            raise ModelFileError(
                f"{printable(path)} holds {info.arch}, not {arch}", f"add --arch {info.arch}"
            )
        return Plan(
            "file",
            path.name,
            info.preprocessing,
            info.model_options,
            info.licence,
            path,
            classes=info.classes,
        )
    from_timm = renamed(state, entry.timm_names).keys() != state.keys()
    options = entry.timm_options if from_timm else {}
    return Plan("file", path.name, entry.preprocessing, options, "that of the file", path)


def _instead_of_imagenet(entry: Entry) -> str:
    ways = ["--weights none or a file"]
    if entry.keras_name:
        ways = [f"Keras's own {entry.keras_name} as --weights FILE.h5 (docs/keras.md says where it is)"]
    if entry.near:
        ways.append(f"--arch {entry.near}, timm's nearest relative")
    return f"give {', or '.join(ways)}"


def load_weights(model: nn.Module, arch: str, plan: Plan, classes: Sequence[str] = ()) -> str:
    """Fills a network, head excepted where it does not fit, and says in one line what it did.

    Args:
        model: Built for these weights.
        arch: Its name.
        plan: From `plan_weights`.
        classes: What the network's logits are to stand for. Where the file says the same of its own, the
            head's rows go by the names: those of classes that it knows are carried over, new ones stay fresh.

    Raises:
        ModelFileError: the weights do not fit; nothing was loaded.
        ResourceError: they cannot be downloaded.
    """
    if plan.kind == "none":
        return "random weights"
    if plan.kind == "keras":
        assert plan.path is not None  # noqa: S101 - an invariant of plan_weights
        return load_keras_weights(model, arch, plan.path, keras_input=plan.keras_input).summary()
    if plan.kind == "offline":
        state, path = offline_state_dict()
    elif plan.kind == "imagenet":
        path = fetch_imagenet(arch)
        state = _timm_state(arch, path)
    else:
        path = plan.path or Path()
        state = renamed(safe_load(path)[0], find_entry(arch).timm_names)
    if not plan.classes or not classes or plan.classes == tuple(classes):
        return _load_backbone(model, state, path)
    known = sum(name in plan.classes for name in classes)
    state = _rows_by_name(model, state, plan.classes, classes)
    return f"{_load_backbone(model, state, path)}, {known} of its {len(classes)} classes known from before"


def _rows_by_name(
    model: nn.Module, state: dict[str, Tensor], theirs: Sequence[str], ours: Sequence[str]
) -> dict[str, Tensor]:
    """The file's tensors with the rows of its classifiers as the network counts its own classes."""
    head = classifier_name(model)
    modules = dict(model.named_modules())
    linear = [name for name, module in modules.items() if isinstance(module, nn.Linear)]
    last = [name for name in linear if name == head or name.startswith(f"{head}.")][-1:]
    last += [name for name in linear if name.endswith("_aux.fc")]  # GoogLeNet's
    own, place = model.state_dict(), {name: row for row, name in enumerate(theirs)}
    found = dict(state)
    for name in (f"{layer}.{kind}" for layer in last for kind in ("weight", "bias")):
        if name in state and len(state[name]) == len(theirs):
            found[name] = own[name].clone()
            for row, label in enumerate(ours):
                if label in place:
                    found[name][row] = state[name][place[label]]  # guard: D28 head
        elif name in state and len(state[name]) == 1:  # a sigmoid's one output speaks for the second class
            turned = tuple(ours) == tuple(reversed(theirs))
            found[name] = -state[name] if turned else own[name].clone()
    return found


def _load_backbone(model: nn.Module, state: dict[str, Tensor], path: Path) -> str:
    own = model.state_dict()
    head = f"{classifier_name(model)}."
    theirs = {name: tensor for name, tensor in state.items() if name.startswith(head)}
    ours = {name: tensor for name, tensor in own.items() if name.startswith(head)}
    fits = {n: t.shape for n, t in theirs.items()} == {n: t.shape for n, t in ours.items()}
    backbone = {name: tensor for name, tensor in state.items() if name not in theirs}
    for part in ("AuxLogits.", "head.dense."):  # InceptionV3's auxiliary classifier, VGG's dense layers
        if not any(name.startswith(part) for name in own):  # the network was built without
            backbone = {name: tensor for name, tensor in backbone.items() if not name.startswith(part)}
    load_matching(model, backbone | (theirs if fits else ours), path)
    return f"{len(backbone)} tensors of the backbone loaded, head {'loaded' if fits else 'fresh'}"


def fetch_imagenet(arch: str) -> Path:
    """timm's pretrained weights as a local file, from the hub's cache or downloaded.

    Raises:
        ResourceError: not cached and not reachable.
    """
    cfg = timm.get_pretrained_cfg(find_entry(arch).timm_name)
    if cfg is None or not (cfg.hf_hub_id or isinstance(cfg.url, str)):
        raise ModelFileError(f"timm has no pretrained weights for {arch}", "give --weights none or a file")
    if not cfg.hf_hub_id:
        url = str(cfg.url)
        name = url.rpartition("/")[2]
        digest = Path(name).stem.rpartition("-")[2]  # torch's naming rule: the start of the file's sha256
        return download(url, cache_folder() / "weights" / name, digest, ways_on=WAYS_ON)
    import huggingface_hub
    from huggingface_hub import constants

    repository = timm.models._hub.hf_split(cfg.hf_hub_id)[0]
    for name in ("model.safetensors", "pytorch_model.bin"):
        cached = huggingface_hub.try_to_load_from_cache(repository, name)
        if isinstance(cached, str):
            blob = Path(cached).resolve()
            if len(blob.name) == 64:  # large files lie there under their sha256
                check_digest(blob, blob.name)
            return Path(cached)
    url = f"{constants.ENDPOINT}/{repository}"
    try:
        # The hub's client tries for a minute before it gives up; one plain request tells at once.
        urllib.request.urlopen(urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=10).close()
        return Path(huggingface_hub.hf_hub_download(repository, "model.safetensors"))
    except Exception as error:  # the client raises a dozen kinds, by transport and version
        reason = getattr(error, "reason", None) or error
        text = " ".join(str(reason).split())[:200]
        # guard: R16
        raise ResourceError(
            f"cannot fetch ImageNet weights for {arch} from {url}: {printable(text)}", WAYS_ON
        ) from error


def _timm_state(arch: str, path: Path) -> dict[str, Tensor]:
    """Through timm, which knows how each of its files has to be renamed; read by our strict loader."""
    entry = find_entry(arch)
    overlay = {"state_dict": safe_load(path)[0]}
    try:
        model = timm.create_model(entry.timm_name, pretrained=True, pretrained_cfg_overlay=overlay)
    except RuntimeError as error:
        what = f"{printable(path)} does not fit {arch}: {printable(' '.join(str(error).split()))}"
        raise ModelFileError(what, "delete that file") from error
    return renamed(model.state_dict(), entry.timm_names)
