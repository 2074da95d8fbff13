"""The zoo: one registry of networks by name, and `create_model`, which also reaches every timm network.

Each network keeps timm's contract: `forward_features`, `forward_head(x, pre_logits=)`, `num_features`,
`get_classifier`, `reset_classifier`. What must travel with trained weights (how to rebuild the network,
how to prepare a photo) is a plain record beside it, so that nothing downstream asks which network it has.
"""

import dataclasses
import difflib
import logging
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import timm
from torch import nn

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
from flowers_torch.models.heads import remove_head
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

log = logging.getLogger("flowers_torch")
TIMM = "timm:"  # before a name: timm's network, where the zoo has another variant under the same name


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


def create_model(
    name: str,
    num_classes: int = 1000,
    in_chans: int = 3,
    *,
    weights: str | None = None,
    include_top: bool = True,
    pooling: Literal["avg", "max"] | None = None,
    size: int = 0,
    keras_input: str = "",
    **options: Any,
) -> nn.Module:
    """Builds a network, pretrained or not, with or without its classifier.

        model = create_model("resnet50", weights="imagenet", include_top=False, pooling="avg")
        model = create_model("mobilenet", 17, weights="mobilenet_2_5_128_tf_no_top.h5", alpha=0.25)

    How a photo has to be prepared stands in `find_entry(name).preprocessing`, and for pretrained weights in
    `flowers_torch.models.weights.plan_weights(name, weights).preprocessing`.

    Args:
        name: Registered name or any timm name; `timm:NAME` is timm's network where the zoo has its own.
        num_classes: Outputs of the classifier; without meaning where there is none.
        in_chans: Channels of the input; pretrained weights have 3.
        weights: None for random ones, "imagenet", "offline", or a .safetensors, .pth or Keras file. A
            classifier of another number of classes than the file's stays random.
        include_top: Whether the network ends with its classifier, or with its last feature map.
        pooling: Without classifier: "avg" or "max" over the map; None leaves the map as it is.
        size: Height and width of the photos, for networks that flatten their last feature map; 0 is the
            network's usual size.
        keras_input: How the network of a Keras file saw its photos, where not as published: "caffe", "tf",
            "torch" or "unit" (see `keras_weights.MEAN_STD`).
        options: Further keywords of this network's constructor, such as `alpha` of mobilenet, `dropout`,
            `lineage` of resnet50.

    Returns:
        A module that maps (N, in_chans, H, W) to logits (N, num_classes); without classifier to the map
        (N, C, h, w) or, pooled, to (N, C).

    Raises:
        UsageError: unknown name, option, pooling or size.
        ModelFileError: the weights do not fit.
        ResourceError: they cannot be fetched.
    """
    if pooling not in (None, "avg", "max") or (pooling and include_top):
        raise UsageError(
            f"pooling={pooling!r} with include_top={include_top}",
            "give pooling='avg', 'max' or None, the first two together with include_top=False",
        )
    if size:
        check_size(name, size)
    plan = None
    if weights is not None:
        from flowers_torch.models.weights import load_weights, plan_weights  # which need this module

        plan = plan_weights(name, weights, keras_input)
        options = plan.options | options
    if not include_top and name in REGISTRY:
        options = {"global_pool": ""} | options  # so that VGG does not make dense layers to throw away
    model = build_network(name, num_classes if include_top else 0, in_chans, size, options)
    if not include_top:
        remove_head(model, pooling or "")
    if plan is not None:
        log.info(f"network  {name}: {load_weights(model, name, plan)}")
        if plan.licence:
            log.info(f"weights  {plan.source}, licence: {plan.licence}")
    return model


def build_network(
    name: str,
    num_classes: int = 1000,
    in_chans: int = 3,
    size: int = 0,
    options: dict[str, Any] | None = None,
) -> nn.Module:
    """A network with random weights; arguments as `create_model`, which does more."""
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
    return Preprocessing(size, (0.0,) * 3, (1.0,) * 3, "bilinear", crop=1.0, squash=True)


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
