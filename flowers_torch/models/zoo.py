"""The zoo: one registry of networks by name, and `create_model`, which also reaches every timm network.

Each network keeps timm's contract: `forward_features`, `forward_head(x, pre_logits=)`, `num_features`,
`get_classifier`, `reset_classifier`. What must travel with trained weights (how to rebuild the network,
how to prepare a photo) is a plain record beside it, so that nothing downstream asks which network it has.
"""

import dataclasses
import difflib
from collections.abc import Callable
from functools import partial
from typing import Any

import timm
from torch import nn

from flowers_torch.errors import ModelFileError, UsageError
from flowers_torch.models import (
    classic,
    densenet,
    inception,
    mobilenet,
    nasnet,
    resnet,
    resnet_cifar,
    resnet_v2,
    small,
)
from flowers_torch.models.inception_v3 import InceptionV3
from flowers_torch.models.torch_weights import DENSENET_NAMES, RESNET_NAMES, VGG16_NAMES, VGG19_NAMES, Names
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
    sized: bool = False  # build also takes input_size=, for a head that flattens
    timm_options: dict[str, Any] = dataclasses.field(default_factory=dict)  # of build, for those weights
    timm_names: Names = ()  # timm's parameter names -> ours, where they differ


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
    name: str,
    num_classes: int = 1000,
    in_chans: int = 3,
    options: dict[str, Any] | None = None,
    size: int = 0,
) -> nn.Module:
    """Builds a network with random weights.

    Args:
        name: Registered name or any timm name.
        num_classes: Outputs of the classifier.
        in_chans: Channels of the input.
        options: Further keywords of this network's constructor, such as `aux_logits` of inception_v3.
        size: Height and width of the photos, for networks that flatten their last feature map; 0 is the
            network's usual size.

    Returns:
        A module that maps (N, in_chans, H, W) to logits (N, num_classes).
    """
    entry = find_entry(name)
    keywords = ({"input_size": size} if entry.sized and size else {}) | (options or {})
    try:
        return entry.build(num_classes=num_classes, in_chans=in_chans, **keywords)
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


def _handwritten(
    build: Callable[..., nn.Module], timm_name: str = "", size: int = 224, min_size: int = 32, **details: Any
) -> Entry:
    """A network of this package; its photos are prepared as those of timm's weights for it, if any."""
    if timm_name:
        known = _timm_entry(timm_name)
    else:
        known = Entry(build, Preprocessing(size=size), min_size)
    return dataclasses.replace(known, build=build, min_size=min_size, sized=True, **details)


def _unscaled(size: int) -> Preprocessing:
    """Pixels in 0..1 and no crop, as the small networks of the seeds have them."""
    return Preprocessing(size, (0.0,) * 3, (1.0,) * 3, "bilinear", crop=1.0, squash=True)


def _register_resnets() -> None:
    torch_weights: dict[str, Any] = dict(timm_options={"lineage": "torch"}, timm_names=RESNET_NAMES)
    for build, timm_name, keras_name in (
        (resnet.resnet50, "resnet50", "ResNet50"),
        (resnet.resnet101, "resnet101", "ResNet101"),
        (resnet.resnet152, "resnet152", "ResNet152"),
        (resnet.resnext50, "resnext50_32x4d", "ResNeXt50"),
        (resnet.resnext101, "resnext101_32x4d", "ResNeXt101"),
    ):
        register(build.__name__, _handwritten(build, timm_name, keras_name=keras_name, **torch_weights))
    register("resnet50v2", _handwritten(resnet_v2.resnet50v2, keras_name="ResNet50V2"))
    register("resnet101v2", _handwritten(resnet_v2.resnet101v2, keras_name="ResNet101V2"))
    register("resnet152v2", _handwritten(resnet_v2.resnet152v2, keras_name="ResNet152V2"))
    course = partial(resnet.resnet50, lineage="course", input_size=64)
    register("resnet50_course", _handwritten(course, min_size=64, preprocessing=_unscaled(64)))
    register("cifar_resnet", _handwritten(resnet_cifar.cifar_resnet, size=32, min_size=8))


def _register_classics() -> None:
    vgg = (
        (classic.vgg16, "vgg16", VGG16_NAMES, "VGG16"),
        (classic.vgg19, "vgg19", VGG19_NAMES, "VGG19"),
    )
    for build, timm_name, names, keras_name in vgg:
        register(timm_name, _handwritten(build, timm_name, timm_names=names, keras_name=keras_name))
    register("alexnet", _handwritten(classic.alexnet, min_size=63))
    register("googlenet", _handwritten(inception.googlenet))
    register("lenet5", _handwritten(classic.lenet5, min_size=16, preprocessing=_unscaled(32)))
    register("lenet5_relu", _handwritten(classic.lenet5_relu, min_size=16, preprocessing=_unscaled(32)))
    register("happy_model", _handwritten(small.happy_model, min_size=8, preprocessing=_unscaled(64)))
    register("small_convnet", _handwritten(small.small_convnet, min_size=22, preprocessing=_unscaled(150)))
    register("cifar10_net", _handwritten(small.cifar10_net, min_size=10, preprocessing=_unscaled(32)))


def _register_keras_networks() -> None:
    """keras.applications' other networks, which timm has in another variant or not at all."""
    tf = Preprocessing(299, (0.5,) * 3, (0.5,) * 3, "bilinear")  # -1..1
    tf_224 = dataclasses.replace(tf, size=224)
    register("xception", Entry(Xception, tf, 71, keras_name="Xception"))
    register("mobilenet", Entry(mobilenet.MobileNet, tf_224, 32, keras_name="MobileNet"))
    register("mobilenet_v2", Entry(mobilenet.MobileNetV2, tf_224, 32, keras_name="MobileNetV2"))
    register("nasnet_mobile", Entry(nasnet.nasnet_mobile, tf_224, 32, keras_name="NASNetMobile"))
    large = dataclasses.replace(tf, size=331)
    register("nasnet_large", Entry(nasnet.nasnet_large, large, 32, keras_name="NASNetLarge"))
    for build, keras_name in (
        (densenet.densenet121, "DenseNet121"),
        (densenet.densenet169, "DenseNet169"),
        (densenet.densenet201, "DenseNet201"),
    ):
        details: dict[str, Any] = dict(timm_options={"epsilon": 1e-5}, timm_names=DENSENET_NAMES)
        known = _timm_entry(build.__name__)
        entry = dataclasses.replace(known, build=build, min_size=32, keras_name=keras_name, **details)
        register(build.__name__, entry)
    # timm's computes exactly what Keras's does.
    known = _timm_entry("inception_resnet_v2")
    register("inception_resnet_v2", dataclasses.replace(known, min_size=75, keras_name="InceptionResNetV2"))


_register_resnets()
_register_classics()
_register_keras_networks()
