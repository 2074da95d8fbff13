"""`create_model`: a network by name, pretrained or not, with or without its classifier."""

from typing import Any, Literal

from torch import nn

from flowers_torch.errors import UsageError
from flowers_torch.log import log
from flowers_torch.models.heads import remove_head
from flowers_torch.models.registry import REGISTRY, find_entry


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
