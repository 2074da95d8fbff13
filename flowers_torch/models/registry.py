"""The registry of networks: the handwritten ones by name, and every timm network behind them."""

import dataclasses
import difflib
from collections.abc import Callable
from functools import partial
from typing import Any

import timm
from torch import nn

from flowers_torch.data.preprocessing import Preprocessing
from flowers_torch.errors import ModelFileError, UsageError, printable
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
from flowers_torch.models.torch_weights import (
    DENSENET_NAMES,
    RESNET_NAMES,
    VGG16_NAMES,
    VGG19_NAMES,
    XCEPTION_NAMES,
    Names,
)
from flowers_torch.models.xception import xception

TIMM = "timm:"  # before a name: timm's network, where the zoo has another variant under the same name


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
    near: str = ""  # timm's nearest network with pretrained weights, where no weights fit this one


REGISTRY: dict[str, Entry] = {}


def register(name: str, entry: Entry) -> None:
    """Adds a network under a new name."""
    if name in REGISTRY:
        raise ValueError(f"network {name!r} is registered twice")
    REGISTRY[name] = entry


def list_models() -> list[str]:
    """Names that `create_model` takes: the registry's, then timm's, as `timm:NAME` where both have one."""
    return sorted(REGISTRY) + [TIMM + name if name in REGISTRY else name for name in timm.list_models()]


def find_entry(name: str) -> Entry:
    """The registry's entry, or one made up from timm's own record.

    Raises:
        UsageError: no network of that name; the message lists near matches.
    """
    if name in REGISTRY:
        return REGISTRY[name]
    theirs = name.removeprefix(TIMM)
    if not timm.is_model(theirs):
        near = difflib.get_close_matches(name, list_models(), n=3, cutoff=0.5)
        raise UsageError(
            f"no network is called {printable(name)!r}",
            f"use one of {', '.join(near)}" if near else "see flowers-torch models",
        )
    entry = _timm_entry(theirs)
    if theirs in REGISTRY:  # timm seldom knows how small a picture may be
        entry = dataclasses.replace(entry, min_size=REGISTRY[theirs].min_size)
    return entry


def _timm_entry(name: str) -> Entry:
    info = timm.get_pretrained_cfg(name)
    if info is None:
        raise ModelFileError(f"timm has no preprocessing record for {name}", "choose another network")
    _, height, width = info.input_size
    fixed = info.fixed_input_size
    return Entry(
        build=lambda **keywords: timm.create_model(name, pretrained=False, **keywords),
        preprocessing=Preprocessing(
            size=min(height, width),
            mean=tuple(info.mean),
            std=tuple(info.std),
            interpolation=info.interpolation if info.interpolation == "bilinear" else "bicubic",
            crop=info.crop_pct,
        ),
        min_size=height if fixed else (info.min_input_size or (3, 32, 32))[1],
        timm_name=name,
        licence=info.license or "not stated",
    )


def _handwritten(
    build: Callable[..., nn.Module],
    timm_name: str = "",
    size: int = 224,
    min_size: int = 32,
    sized: bool = True,
    **details: Any,
) -> Entry:
    """A network of this package; its photos are prepared as those of timm's weights for it, if any."""
    known = _timm_entry(timm_name) if timm_name else Entry(build, Preprocessing(size=size), min_size)
    return dataclasses.replace(known, build=build, min_size=min_size, sized=sized, **details)


def _unscaled(size: int) -> Preprocessing:
    """Pixels in 0..1 and no crop, as the small networks of the seeds have them."""
    return Preprocessing(size, (0.0,) * 3, (1.0,) * 3, "bilinear", crop=1.0, stretch=True)


def _register_resnets() -> None:
    """ResNet in all its forms; the first five take timm's and torchvision's weights."""
    torch_weights: dict[str, Any] = dict(timm_options={"lineage": "torch"}, timm_names=RESNET_NAMES)
    for build, timm_name, keras_name in (
        (resnet.resnet50, "resnet50", "ResNet50"),
        (resnet.resnet101, "resnet101", "ResNet101"),
        (resnet.resnet152, "resnet152", "ResNet152"),
        (resnet.resnext50, "resnext50_32x4d", "ResNeXt50"),
        (resnet.resnext101, "resnext101_32x4d", "ResNeXt101"),
    ):
        register(build.__name__, _handwritten(build, timm_name, keras_name=keras_name, **torch_weights))
    # timm's resnetv2 have a stage's stride in its first block, Keras's in its last: other networks.
    for name, build_v2, keras_name, near in (
        ("resnet50v2", resnet_v2.resnet50v2, "ResNet50V2", "resnetv2_50"),
        ("resnet101v2", resnet_v2.resnet101v2, "ResNet101V2", "resnetv2_101"),
        ("resnet152v2", resnet_v2.resnet152v2, "ResNet152V2", ""),
    ):
        register(name, _handwritten(build_v2, keras_name=keras_name, near=near))
    course = partial(resnet.resnet50, lineage="course", input_size=64)
    register("resnet50_course", _handwritten(course, min_size=64, preprocessing=_unscaled(64)))
    register("cifar_resnet", _handwritten(resnet_cifar.cifar_resnet, size=32, min_size=8))


def _register_classics() -> None:
    """The networks before shortcuts, and the small ones of the tutorials."""
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
    """keras.applications' other networks; none of them flattens its last map."""

    def add(name: str, build: Callable[..., nn.Module], keras_name: str, **details: Any) -> None:
        register(name, _handwritten(build, keras_name=keras_name, sized=False, **details))

    add("inception_v3", InceptionV3, "InceptionV3", timm_name="inception_v3", min_size=75)
    names: dict[str, Any] = dict(timm_name="legacy_xception", timm_names=XCEPTION_NAMES)
    add("xception", xception, "Xception", min_size=71, **names)
    # timm's MobileNets pad symmetrically, its NASNet leaves the padding out of its means: other networks.
    tf_224 = Preprocessing(224, (0.5,) * 3, (0.5,) * 3, "bilinear")  # -1..1
    tf_331 = dataclasses.replace(tf_224, size=331)
    add("mobilenet", mobilenet.mobilenet, "MobileNet", preprocessing=tf_224, near="mobilenetv1_100")
    add("mobilenet_v2", mobilenet.mobilenet_v2, "MobileNetV2", preprocessing=tf_224, near="mobilenetv2_100")
    add("nasnet_mobile", nasnet.nasnet_mobile, "NASNetMobile", preprocessing=tf_224)
    add("nasnet_large", nasnet.nasnet_large, "NASNetLarge", preprocessing=tf_331, near="nasnetalarge")
    names = dict(timm_options={"epsilon": 1e-5}, timm_names=DENSENET_NAMES)
    add("densenet121", densenet.densenet121, "DenseNet121", timm_name="densenet121", **names)
    add("densenet169", densenet.densenet169, "DenseNet169", timm_name="densenet169", **names)
    add("densenet201", densenet.densenet201, "DenseNet201", timm_name="densenet201", **names)
    # timm's computes exactly what Keras's does.
    known = _timm_entry("inception_resnet_v2")
    register("inception_resnet_v2", dataclasses.replace(known, min_size=75, keras_name="InceptionResNetV2"))


_register_resnets()


_register_classics()


_register_keras_networks()
