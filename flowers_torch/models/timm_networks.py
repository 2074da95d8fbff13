"""timm's networks: how they are built, with which options, and for which image sizes."""

import difflib
import inspect
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import torch
from torch import nn

from flowers_torch.errors import UsageError, one_line, printable

SIZE_OPTIONS = ("img_size", "dynamic_img_size", "dynamic_img_pad")  # of constructors whose network has a fixed size
# Keywords of timm's `create_model` that this package sets itself.
SET_ELSEWHERE = {
    "num_classes": "leave it out: there is one output for each class of the photos",
    "in_chans": "leave it out: photos are read in three channels, also gray ones",
    "pretrained": "use --weights",
    "pretrained_cfg": "use --weights FILE",
    "pretrained_cfg_overlay": "use --weights FILE",
    "checkpoint_path": "use --weights FILE",
    "features_only": "use flowers-torch features",
}


def build(name: str, num_classes: int, in_chans: int, **options: Any) -> nn.Module:
    """A timm network with random weights. `options` may come from a stranger's file.

    Only the parameters of the network's own constructor are passed on, and only plain values. timm's
    `create_model` would also take names of files to open and of modules to load.

    Raises:
        UsageError: an option is not one of the constructor's, or its value is not plain.
    """
    check_names(name, options, constructor_options(name) if options else ())
    for option, value in options.items():
        items = value if isinstance(value, list | tuple) else [value]
        if not all(item is None or isinstance(item, bool | int | float | str) for item in items):
            what = f"model_options: {option} must be a number, a text or a list of them"
            raise UsageError(what, "give a plain value")
    import timm  # here: it takes a second, and most commands run a handwritten network

    return timm.create_model(name, pretrained=False, num_classes=num_classes, in_chans=in_chans, **options)


def check_names(name: str, options: Iterable[str], known: Iterable[str]) -> None:
    """Refuses options that a network does not have.

    Raises:
        UsageError: one is not known; the message says what takes its place, or lists similar names.
    """
    for option in options:
        if option not in known:
            similar = difflib.get_close_matches(option, known := sorted(known), n=3)
            fix = SET_ELSEWHERE.get(option) or f"use {' or '.join(similar) or ', '.join(known) or 'none'}"
            raise UsageError(f"model_options: {printable(option, 60)!r} is not an option of {name}", fix)


@cache
def constructor_options(name: str) -> frozenset[str]:
    """The parameters of the network's constructor, and of those that it hands further keywords to.

    Raises:
        UsageError: the network is an encoder that has no classifier.
    """
    import timm

    with torch.device("meta"):  # no memory, no weights
        network = timm.create_model(name)
    if not hasattr(network, "reset_classifier"):
        architecture, _, _ = name.partition(".")
        relative = architecture.removesuffix("_enc")
        known_relative = relative != architecture and timm.is_model(relative)
        fix = f"use --arch {relative}" if known_relative else "use another network"
        raise UsageError(f"{name} is an encoder without a classifier", fix)
    known: set[str] = set()
    for constructor in type(network).__mro__:
        names, takes_others = keywords_of(constructor)
        known |= names
        if not takes_others:
            break
    return frozenset(known - {"device", "dtype"})


def keywords_of(constructor: Callable[..., Any]) -> tuple[set[str], bool]:
    """The keywords that a constructor names, but those that this package sets, and whether it takes others."""
    parameters = inspect.signature(constructor).parameters.values()
    variable = {parameter.kind for parameter in parameters} & {inspect.Parameter.VAR_KEYWORD}
    named = {one.name for one in parameters if one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)}
    return named - {*SET_ELSEWHERE, "input_size"}, bool(variable)


def input_options(name: str, size: int, usual: int, options: dict[str, Any]) -> dict[str, Any]:
    """The options with which a network takes images of `size` pixels; `usual` is its size in timm.

    A network with position embeddings takes `img_size`, for which timm resamples its weights. Whether the network
    computes is asked of the network itself, by a forward pass without values.

    Raises:
        UsageError: the network does not take that size, or has no classifier.
    """
    known = constructor_options(name)
    check_names(name, options, known)
    sizes = {option: options[option] for option in SIZE_OPTIONS if option in options}
    if size == usual and not options:
        return {}
    candidates: list[dict[str, Any]] = [{}]
    if "img_size" in known and not sizes:
        candidates = [{}, {"img_size": size}] if size == usual else [{"img_size": size}, {}]
        if "dynamic_img_size" in known:
            padded = {"dynamic_img_pad": True} if "dynamic_img_pad" in known else {}
            candidates.append({"dynamic_img_size": True} | padded)
    reasons = []
    for candidate in candidates:
        reason = _failure(name, size, options | candidate)
        if not reason and size % 32 and size != usual:  # values may matter there: tables of positions are too short
            reason = _failure(name, size, options | candidate, "cpu")
        if not reason:
            return candidate | sizes
        reasons.append(reason)
    others = sorted(options.keys() - sizes.keys())
    if others and any(not _failure(name, size, sizes | candidate) for candidate in candidates):
        raise UsageError(f"model_options: {name} cannot be built: {reasons[0]}", f"correct {' or '.join(others)}")
    raise UsageError(f"{name} does not take --size {size}: {reasons[0]}", _other_sizes(name, size, usual, options))


def _failure(name: str, size: int, options: dict[str, Any], device: str = "meta") -> str:
    """Why a network does not compute images of a size; empty if it does."""
    try:
        with torch.random.fork_rng(devices=[]), torch.device(device), torch.no_grad():
            network = build(name, 2, 3, **options).eval()
            logits = network(torch.empty(2, 3, size, size))
    except UsageError:
        raise
    except Exception as error:  # networks raise what they like
        return one_line(error)[:160] or type(error).__name__
    return "" if isinstance(logits, torch.Tensor) and logits.shape == (2, 2) else "it returns no logits"


def _other_sizes(name: str, size: int, usual: int, options: dict[str, Any]) -> str:
    """The fix for a size that the network does not take: the nearest multiples of 32 or 14 that it takes, its own."""
    if fixed := [option for option in SIZE_OPTIONS if option in options]:
        return f"leave out {' and '.join(fixed)} of model_options"
    sized = "img_size" in constructor_options(name)
    for step in (32, 14):
        near = {size // step * step, size // step * step + step} - {0, size, usual}
        takes = [other for other in near if not _failure(name, other, options | ({"img_size": other} if sized else {}))]
        if takes:
            break
    return f"use --size {' or '.join(map(str, sorted([*takes, usual])))}"


def unseen_border(network: nn.Module, size: int) -> str:
    """A remark where the patches of a network leave out the last pixels of an image; else empty."""
    patch = getattr(getattr(network, "patch_embed", None), "patch_size", None)
    side = patch[0] if isinstance(patch, tuple) else patch
    if not isinstance(side, int) or not size % side or getattr(network.patch_embed, "dynamic_img_pad", False):
        return ""
    below = size // side * side
    return f"patches of {side} px leave out the last {size - below} px of {size}; --size {below} or {below + side} fits"
