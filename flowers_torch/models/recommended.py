"""A short list of pretrained backbones for `rank`: small convolutional networks to foundation backbones.

Accuracies on ImageNet are those that their authors or timm's tables publish; 0 where none is published for a
classifier of these weights.
"""

import dataclasses

import torch

from flowers_torch.models.offline import OFFLINE_ARCHS, installed_offline
from flowers_torch.models.pretrained import ask_hub, cached_imagenet
from flowers_torch.models.registry import build_network, find_entry

HUB_TIMEOUT = 5  # seconds


@dataclasses.dataclass(frozen=True)
class Backbone:
    """A network with its weights, and the image size at which to try it."""

    arch: str
    weights: str = "imagenet"
    size: int = 0  # pixels; 0 is the network's own
    top1: float = 0.0  # percent of ImageNet's validation photos

    @property
    def download_bytes(self) -> int:
        """Size of the weights in single precision, to download and to hold in memory."""
        with torch.device("meta"):  # shapes only
            model = build_network(self.arch, options=find_entry(self.arch).timm_options)
        return sum(tensor.nbytes for tensor in model.state_dict().values())


RECOMMENDED = (
    *(Backbone(arch, "offline", top1=top1) for arch, top1 in zip(OFFLINE_ARCHS, (75.1, 76.7, 77.6), strict=True)),
    Backbone("mobilenetv4_conv_small.e2400_r224_in1k"),
    Backbone("resnet50"),
    Backbone("convnext_nano.in12k_ft_in1k", top1=82.9),  # at 288 px
    Backbone("tf_efficientnetv2_s.in21k_ft_in1k", top1=84.3),  # at 384 px
    Backbone("vit_small_patch14_dinov2.lvd142m", size=224),
    Backbone("vit_base_patch16_siglip_224.v2_webli"),
)


def available_backbones() -> tuple[list[Backbone], list[Backbone]]:
    """Those whose weights are on this machine, and those that have to be downloaded; the latter only if online."""
    installed = installed_offline()
    here, to_fetch = [], []
    for backbone in RECOMMENDED:
        if backbone.weights == "offline":
            here += [backbone] * (backbone.arch in installed)
        elif cached_imagenet(backbone.arch):
            here.append(backbone)
        else:
            to_fetch.append(backbone)
    return here, to_fetch if to_fetch and _hub_is_reachable() else []


def where_weights_are(arch: str, parameters: int) -> str:
    """`offline` or `cached`, or how many megabytes `--weights imagenet` downloads; empty where there are none."""
    if arch in installed_offline():
        return "offline"
    if cached_imagenet(arch):
        return "cached"
    import timm

    name = find_entry(arch).timm_name
    config = timm.get_pretrained_cfg(name) if name else None
    return f"{4 * parameters / 1e6:.0f} MB to fetch" if config and (config.hf_hub_id or config.url) else ""


def _hub_is_reachable() -> bool:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        ask_hub(HUB_TIMEOUT)
    except OSError:
        return False
    return True
