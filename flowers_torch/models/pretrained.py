"""timm's ImageNet weights from the Hugging Face hub, under this package's names."""

import urllib.request
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flowers_torch.errors import ModelFileError, ResourceError, one_line, printable
from flowers_torch.files.cache import cache_folder
from flowers_torch.files.download import check_digest, download
from flowers_torch.files.tensors import safe_load
from flowers_torch.log import log
from flowers_torch.models.heads import classifier_names
from flowers_torch.models.offline import OFFLINE_ARCH
from flowers_torch.models.registry import REGISTRY, find_entry

MAX_KERNEL = 64  # pixels
NO_NETWORK_FIX = f"give --weights FILE, --weights offline (with --arch {OFFLINE_ARCH}), or --weights none"

# VGG's dense layers are the only ones that torchvision names differently from timm.
TORCHVISION = {
    f"classifier.{place}.{kind}": f"head.{layer}.{kind}"
    for place, layer in ((0, "dense.0"), (3, "dense.3"), (6, "fc"))
    for kind in ("weight", "bias")
}


def fetch_imagenet(arch: str) -> Path:
    """timm's pretrained weights as a local file, cached or downloaded.

    Raises:
        ResourceError: the file is not cached and cannot be downloaded.
    """
    import timm

    config = timm.get_pretrained_cfg(find_entry(arch).timm_name)
    if config is None or not (config.hf_hub_id or isinstance(config.url, str)):
        raise ModelFileError(f"timm has no pretrained weights for {arch}", "give --weights none or a file")
    if not config.hf_hub_id:
        url = str(config.url)
        name = url.rpartition("/")[2]
        digest = Path(name).stem.rpartition("-")[2]  # by torch's convention the start of the file's sha256
        return download(url, cache_folder() / "weights" / name, digest, "sha256", NO_NETWORK_FIX)
    import huggingface_hub
    from huggingface_hub import constants

    if cached := cached_imagenet(arch):
        blob = cached.resolve()
        if len(blob.name) == 64:  # the hub names large files by their sha256
            check_digest(blob, blob.name)
        return cached
    repository = timm.models._hub.hf_split(config.hf_hub_id)[0]
    url = f"{constants.ENDPOINT}/{repository}"
    try:
        ask_hub(10)
        return Path(huggingface_hub.hf_hub_download(repository, "model.safetensors"))
    except Exception as error:  # the client raises a dozen types, depending on transport and version
        reason = one_line(getattr(error, "reason", None) or error)
        # guard: R16
        raise ResourceError(f"cannot fetch ImageNet weights for {arch} from {url}: {reason}", NO_NETWORK_FIX) from error


def ask_hub(seconds: float) -> None:
    """One plain request that fails fast, with an OSError; the hub's client retries for a minute."""
    from huggingface_hub import constants

    urllib.request.urlopen(urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=seconds).close()


def cached_imagenet(arch: str) -> Path | None:
    """The file that `fetch_imagenet` would find on this machine, unchecked."""
    import timm

    name = find_entry(arch).timm_name
    config = timm.get_pretrained_cfg(name) if name else None
    if config is None:
        return None
    if not config.hf_hub_id:
        path = cache_folder() / "weights" / str(config.url).rpartition("/")[2]
        return path if config.url and path.is_file() else None
    import huggingface_hub

    repository = timm.models._hub.hf_split(config.hf_hub_id)[0]
    for name in ("model.safetensors", "pytorch_model.bin"):
        cached = huggingface_hub.try_to_load_from_cache(repository, name)
        if isinstance(cached, str):
            return Path(cached)
    return None


def read_imagenet(arch: str, path: Path, size_options: Mapping[str, Any] | None = None) -> dict[str, Tensor]:
    """A file of timm's weights under this package's names; timm itself renames its older files.

    `size_options` are those of a network for another image size: timm resamples the position embeddings.
    """
    return from_timm(_through_timm(arch, safe_load(path)[0], path, 1000, size_options or {}), arch)


def has_large_kernels(state: Mapping[str, Tensor]) -> bool:
    """Whether timm would take minutes and gigabytes to resample a patch embedding."""
    return any(t.ndim == 4 and name.endswith("weight") and max(t.shape[2:]) > MAX_KERNEL for name, t in state.items())


def resampled(
    state: dict[str, Tensor], model: nn.Module, arch: str, path: Path, size_options: Mapping[str, Any]
) -> dict[str, Tensor]:
    """Weights for another image size, with position embeddings that timm resamples to the size of `model`.

    The same weights where none outside the classifier has another shape, or they are not of this network of timm.
    """
    own, heads = model.state_dict(), tuple(f"{name}." for name in classifier_names(model))
    head = {name: tensor for name, tensor in state.items() if name.startswith(heads)}
    others = {name: tensor for name, tensor in state.items() if name not in head}
    lacks_some = any(name not in state and not name.startswith(heads) for name, _ in model.named_parameters())
    fit = all(name not in own or own[name].shape == tensor.shape for name, tensor in others.items())
    if arch in REGISTRY or lacks_some or fit:
        return state
    if has_large_kernels(others):  # guard: S4 kernel
        raise ModelFileError(
            f"{printable(path)} has kernels of over {MAX_KERNEL} pixels", "use weights of this network"
        )
    found = _through_timm(arch, others, path, 0, size_options)
    log.info(f"note     {printable(path)}: position embeddings resampled for another image size")
    return {name: tensor for name, tensor in found.items() if not name.startswith(heads)} | head


def _through_timm(
    arch: str, state: dict[str, Tensor], path: Path, num_classes: int, size_options: Mapping[str, Any]
) -> dict[str, Tensor]:
    """The state of timm's network after timm has loaded `state` into it, as one of its own pretrained files."""
    import timm

    entry = find_entry(arch)
    overlay = {"state_dict": state}
    keywords: dict[str, Any] = dict(size_options) if num_classes else {"num_classes": 0} | dict(size_options)
    try:
        model = timm.create_model(entry.timm_name, pretrained=True, pretrained_cfg_overlay=overlay, **keywords)
    except (RuntimeError, KeyError, AssertionError) as error:
        what = f"{printable(path)} does not fit {arch}: {one_line(error)}"
        raise ModelFileError(what, "delete that file" if num_classes else "use weights of this network") from error
    loaded: dict[str, Tensor] = model.state_dict()
    return loaded


@cache
def timm_names(arch: str) -> dict[str, str]:
    """Their names -> names in the network `arch`; both define the same tensors in the same order."""
    entry = REGISTRY.get(arch)
    if entry is None or not entry.timm_name:
        return {}
    import timm

    with torch.device("meta"):  # only the names are needed
        ours = entry.build(num_classes=1000, in_chans=3, **entry.timm_options).state_dict()
        theirs = timm.create_model(entry.timm_name).state_dict()
    return TORCHVISION | dict(zip(theirs, ours, strict=True))


def from_timm(state: Mapping[str, Tensor], arch: str) -> dict[str, Tensor]:
    """timm's or torchvision's state dict under the names of the network `arch`; other names stay as they are.

    Raises:
        ModelFileError: two tensors would get the same name.
    """
    found: dict[str, Tensor] = {}
    for theirs, tensor in state.items():
        name = timm_names(arch).get(theirs, theirs)
        if name in found:
            what = f"two of the weights would become {printable(name)}"
            raise ModelFileError(what, "use weights of one network only")
        # timm writes VGG's dense layers as convolutions over the whole map; the values have equal order.
        found[name] = tensor.flatten(1) if name.startswith("head.") and tensor.ndim == 4 else tensor
    return found
