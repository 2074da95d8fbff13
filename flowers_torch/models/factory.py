"""`create_model`: a network by name, with or without pretrained weights and classifier."""

from typing import Any, Literal

import torch
from torch import nn

from flowers_torch.errors import UsageError
from flowers_torch.log import log
from flowers_torch.models.heads import remove_head
from flowers_torch.models.registry import REGISTRY, build_network, find_entry, input_options
from flowers_torch.models.weights import load_weights, plan_weights


def create_model(
    name: str,
    num_classes: int = 1000,
    in_chans: int = 3,
    *,
    pretrained: bool = False,
    weights: str | None = None,
    include_top: bool = True,
    pooling: Literal["avg", "max"] | None = None,
    size: int = 0,
    keras_input: str = "",
    **options: Any,
) -> nn.Module:
    """Builds a network, with or without pretrained weights and classifier.

        model = create_model("resnet50", weights="imagenet", include_top=False, pooling="avg")
        model = create_model("vit_tiny_patch16_224", num_classes=17, pretrained=True)
        model = create_model("mobilenet", 17, weights="mobilenet_2_5_128_tf_no_top.h5", alpha=0.25)

    The preprocessing of its images is `find_entry(name).preprocessing`. For pretrained weights it is
    `flowers_torch.models.weights.plan_weights(name, weights).preprocessing`.

    Args:
        name: A registered name or any timm name; `timm:NAME` is timm's network where both have one.
        num_classes: Ignored without classifier.
        pretrained: Short for `weights="imagenet"`.
        weights: None (random), "imagenet", "offline", or a .safetensors, .pth or Keras file. The classifier
            stays random where its number of classes differs from the file's.
        include_top: Keep the classifier.
        pooling: Without classifier: "avg" or "max" over the last feature map, None for the map itself.
        size: Image height and width, for networks that are built for one size; 0 is their usual size.
        keras_input: Input range of a Keras file that differs from the published one: "caffe", "tf", "torch"
            or "unit" (see `flowers_torch.models.keras.weights.MEAN_STD`).
        options: Further keywords of the network's constructor, such as `alpha`, `dropout` or `lineage`.

    Returns:
        A module for images (N, in_chans, H, W). It returns logits (N, num_classes), or without classifier the
        map (N, C, h, w), or with pooling (N, C).

    Raises:
        UsageError: unknown name, option, pooling or size.
        ModelFileError: the weights do not fit.
        ResourceError: the weights cannot be downloaded.
    """
    if pooling not in (None, "avg", "max") or (pooling and include_top):
        fix = "give pooling='avg', 'max' or None, the first two together with include_top=False"
        raise UsageError(f"pooling={pooling!r} with include_top={include_top}", fix)
    if pretrained and weights not in (None, "imagenet"):
        raise UsageError(f"pretrained=True with weights={weights!r}", "leave out one of them")
    weights = "imagenet" if pretrained else weights
    fitting = input_options(name, size, options) if size else {}
    plan = None
    if weights is not None:
        plan = plan_weights(name, weights, keras_input, options).for_size(size, fitting)
        options = plan.options | options
    else:
        options = fitting | options
    if not include_top and name in REGISTRY:
        options = {"global_pool": ""} | options  # VGG then builds no dense layers, which would be removed
    model = build_network(name, num_classes if include_top else 0, in_chans, size, options)
    if not include_top:
        remove_head(model, pooling or "")
    if plan is not None:
        log.info(f"network  {name}: {load_weights(model, name, plan)}")
        if plan.license:
            log.info(f"weights  {plan.source}, license: {plan.license}")
    return model


def create_meta_model(name: str, num_classes: int = 1000, size: int = 0) -> tuple[nn.Module, int]:
    """A network on the meta device, which has shapes and no values, and its input size in pixels."""
    size = size or find_entry(name).preprocessing.size
    with torch.device("meta"):
        return create_model(name, num_classes, size=size), size
