"""The zoo: one registry of networks by name, and `create_model`, which also reaches every timm network.

Each network keeps timm's contract: `forward_features`, `forward_head(x, pre_logits=)`, `num_features`,
`get_classifier`, `reset_classifier`. What must travel with trained weights (how to rebuild the network,
how to prepare a photo) is a plain record beside it, so that nothing downstream asks which network it has.
"""

import dataclasses
import difflib
from collections.abc import Callable
from typing import Any

import timm
from torch import nn

from flowers_torch.errors import ModelFileError, UsageError
from flowers_torch.models.densenet import densenet121, densenet169, densenet201
from flowers_torch.models.inception_v3 import InceptionV3
from flowers_torch.models.mobilenet import MobileNet, MobileNetV2
from flowers_torch.models.nasnet import nasnet_large, nasnet_mobile
from flowers_torch.models.xception import Xception


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How a photo becomes the network's input; every transform is derived from this record."""

    size: int = 224  # pixels, both sides
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)  # of RGB in 0..1
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    interpolation: str = "bicubic"  # "bilinear" or "bicubic"
    crop: float = 0.875  # share of the resized photo's shorter side that the centre crop keeps
    squash: bool = False  # resize both sides to `size` without a crop, as Keras's target_size does

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Preprocessing":
        """Rebuilds the record from JSON, where tuples have become lists."""
        values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
        return cls(**values)


@dataclasses.dataclass(frozen=True)
class Entry:
    """A network of the zoo."""

    build: Callable[..., nn.Module]  # build(num_classes=, in_chans=, **options) -> network
    preprocessing: Preprocessing
    min_size: int  # pixels; smaller inputs leave some layer without a picture
    timm_name: str = ""  # timm network whose pretrained weights fit, if any
    keras_name: str = ""  # name in keras.applications, if any
    licence: str = ""  # of the pretrained weights


REGISTRY: dict[str, Entry] = {}


def register(name: str, entry: Entry) -> None:
    """Adds a network under a new name."""
    if name in REGISTRY:
        raise ValueError(f"network {name!r} is registered twice")
    REGISTRY[name] = entry


def list_models() -> list[str]:
    """Names that `create_model` takes: the registry's, then timm's."""
    return sorted(REGISTRY) + [name for name in timm.list_models() if name not in REGISTRY]


def find_entry(name: str) -> Entry:
    """The registry's entry, or one made up from timm's own record.

    Raises:
        UsageError: no network of that name; the message lists near matches.
    """
    if name in REGISTRY:
        return REGISTRY[name]
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, list_models(), n=3, cutoff=0.5)
        raise UsageError(
            f"no network is called {name!r}", f"use one of {', '.join(near)}" if near else "see list_models()"
        )
    return _timm_entry(name)


def create_model(
    name: str, num_classes: int = 1000, in_chans: int = 3, options: dict[str, Any] | None = None
) -> nn.Module:
    """Builds a network with random weights.

    Args:
        name: Registered name or any timm name.
        num_classes: Outputs of the classifier.
        in_chans: Channels of the input.
        options: Further keywords of this network's constructor, such as `aux_logits` of inception_v3.

    Returns:
        A module that maps (N, in_chans, H, W) to logits (N, num_classes).
    """
    entry = find_entry(name)
    try:
        return entry.build(num_classes=num_classes, in_chans=in_chans, **(options or {}))
    except TypeError as error:
        raise UsageError(f"network {name} cannot be built: {error}", "correct model_options") from error


def check_size(name: str, size: int) -> None:
    """Refuses an input size that the network cannot see anything at."""
    entry = find_entry(name)
    if size < entry.min_size:
        raise UsageError(f"--size {size} is too small for {name}", f"use --size {entry.min_size} or more")


def _timm_entry(name: str) -> Entry:
    record = timm.get_pretrained_cfg(name)
    if record is None:
        raise ModelFileError(f"timm has no preprocessing record for {name}", "choose another network")
    _, height, width = record.input_size
    fixed = record.fixed_input_size
    return Entry(
        build=lambda **keywords: timm.create_model(name, pretrained=False, **keywords),
        preprocessing=Preprocessing(
            size=min(height, width),
            mean=tuple(record.mean),
            std=tuple(record.std),
            interpolation=record.interpolation if record.interpolation == "bilinear" else "bicubic",
            crop=record.crop_pct,
        ),
        min_size=height if fixed else (record.min_input_size or (3, 32, 32))[1],
        timm_name=name,
        licence=record.license or "not stated",
    )


register(
    "inception_v3",
    dataclasses.replace(
        _timm_entry("inception_v3"), build=InceptionV3, min_size=75, keras_name="InceptionV3"
    ),
)

# keras.applications' networks that timm has in another variant or not at all. -1..1 is their usual input.
_TF = Preprocessing(299, (0.5,) * 3, (0.5,) * 3, "bilinear")
_TF_224 = dataclasses.replace(_TF, size=224)
_TORCH = Preprocessing(interpolation="bilinear")
register("xception", Entry(Xception, _TF, 71, keras_name="Xception"))
register("mobilenet", Entry(MobileNet, _TF_224, 32, keras_name="MobileNet"))
register("mobilenet_v2", Entry(MobileNetV2, _TF_224, 32, keras_name="MobileNetV2"))
register("densenet121", Entry(densenet121, _TORCH, 32, keras_name="DenseNet121"))
register("densenet169", Entry(densenet169, _TORCH, 32, keras_name="DenseNet169"))
register("densenet201", Entry(densenet201, _TORCH, 32, keras_name="DenseNet201"))
register("nasnet_mobile", Entry(nasnet_mobile, _TF_224, 32, keras_name="NASNetMobile"))
register(
    "nasnet_large", Entry(nasnet_large, dataclasses.replace(_TF, size=331), 32, keras_name="NASNetLarge")
)
# timm's computes exactly what Keras's does.
register(
    "inception_resnet_v2",
    dataclasses.replace(_timm_entry("inception_resnet_v2"), min_size=75, keras_name="InceptionResNetV2"),
)
