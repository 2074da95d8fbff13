"""The layouts in which others save a network's weights: which dict of a file, under which names, for which network.

The file's names are compared with those of the network as this package, timm and torchvision call them, without any
prefix in front. Where they do not agree, timm's own filter for the network's published weights renames them.
"""

import inspect
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from flowers_torch.errors import ModelFileError, printable
from flowers_torch.files.tensors import TensorFile
from flowers_torch.models.heads import classifier_names
from flowers_torch.models.pretrained import has_large_kernels, timm_names
from flowers_torch.models.registry import REGISTRY, find_entry

Names = Mapping[str, str]  # their names -> the network's

COUNTER = "num_batches_tracked"  # torch has it since 2018, and no result depends on it
WRAPPERS = {"_orig_mod": "torch.compile", "module": "DataParallel or DDP", "_fsdp_wrapped_module": "FSDP"}
WRAPPERS |= {"_checkpoint_wrapped_module": "activation checkpointing", "_forward_module": "Lightning's Fabric"}
# Of several copies of a network these are the ones to use; `encoder_q` is MoCo's.
AVERAGED = {"ema", "averaged", "average", "swa", "shadow"}
PREFERRED = AVERAGED | {"teacher", "target", "q"}
# Parameters at the top of a checkpoint that only pretraining needs
UNUSED = re.compile(
    r"mask_token|n_averaged|num_updates|step|epoch|decay|queue\w*|logit_scale|logit_bias|center|prototypes?"
)
DENSE = ("head.dense.", "pre_logits.")  # VGG's dense layers, which a file of its features lacks
AUXILIARY = ("AuxLogits.", "aux_head.", *DENSE)  # parts of a file that a network may be built without
MAX_GROUPS = 64  # dicts of a file that are compared with the network, the largest ones
MAX_CONVERTED = 4  # dicts that timm converts
FILTERS = ("checkpoint_filter_fn", "_filter_fn", "_filter_torchvision_pretrained")  # timm's names of them

NUMBERED = (
    "the numbered layers of a Sequential of the network's parts",
    "the numbered layers of the network's features",
)

# Telling names of layouts, for the message about a file that does not fit
SIGNS = {
    r"encoder\.layers\.encoder_layer_\d": "torchvision's vit",
    r"features\.\d+\.\d+\.attn\.qkv": "torchvision's swin",
    r"features\.\d+\.\d+\.layer_scale": "torchvision's convnext",
    r"features\.\d+\.\d+\.block\.\d+\.fc1": "torchvision's efficientnet or mobilenet_v3",
    r"features\.\d+\.conv\.\d": "torchvision's mobilenet_v2",
    r"features\.\d+\.squeeze\.": "torchvision's squeezenet",
    r"features\.denseblock\d": "torchvision's densenet",
    r"trunk_output\.block": "torchvision's regnet",
    r"layer1\.0\.conv1\.weight": "torchvision's or timm's resnet",
    r"_blocks\.\d+\._": "the package efficientnet_pytorch",
    r"embeddings\.(patch_embeddings|cls_token)|encoder\.layer\.\d+\.attention": "Hugging Face's transformers",
    r"visual\.transformer\.resblocks|visual\.trunk": "OpenAI's or open_clip's CLIP",
    r"rpn\.|roi_heads\.|model\.\d+\.cv1": "a detector",
    r"patch_embed\.proj\.weight": "timm's or a paper's vision transformer",
    r"conv_stem\.weight": "timm's efficientnet or mobilenet",
    r"stages\.\d+\.blocks\.\d+\.conv_dw": "timm's convnext",
}


class Match(NamedTuple):
    """What of a file belongs to a network."""

    state: dict[str, Tensor]  # under the network's names
    missing: list[str]  # tensors of the network's backbone that the file lacks
    conflicts: list[str]  # tensors of the file inside of modules that the network has, but without this tensor
    left_out: list[str]  # other tensors of the file that the network lacks, such as another classifier's
    source: str  # whose layout it is, and which of the file's dicts
    is_foreign: bool  # whether the names are timm's or torchvision's, where this package has others
    lacks_dense: bool  # whether VGG's dense layers are missing, all of them
    owner: str  # whose layout all names of the file look like

    def require_complete(self, arch: str, path: Path) -> None:
        """Raises ModelFileError if the file lacks a part of the network, or is of a network with more parts."""
        found = sum(not name.endswith(COUNTER) for name in self.state)
        lists = {"missing": self.missing, "unexpected": self.conflicts + self.left_out}
        problems = [f"{len(names)} {kind} ({_first(names)})" for kind, names in lists.items() if names]
        if self.missing or self.conflicts:  # guard: C10 layout
            what = f"{printable(path)} does not fit {arch}: {found} of the network's tensors found"
            fix = f"use weights of this network in timm's layout, {_alternatives(arch)}"
            raise ModelFileError(f"{what}, {', '.join(problems)}; the layout looks like {self.owner}", fix)

    @property
    def unused(self) -> str:
        """The parts of the file that are not used, with their numbers of tensors; empty if there are none."""
        parts = Counter(name.partition(".")[0] for name in self.left_out)
        named = [f"{printable(part, 40)} ({count})" for part, count in parts.most_common(3)]
        return ", ".join(named) + (f" and {len(parts) - 3} more" if len(parts) > 3 else "")


def match(model: nn.Module, arch: str, file: TensorFile, path: Path) -> Match:
    """The dict of tensors, the prefix and the names of a file that fit the network best.

    `model` is the network `arch`; only its names and shapes are used, so it may be on the meta device.

    Raises:
        ModelFileError: two tensors would get the same name.
    """
    readings = _readings(model, arch, file)
    plain = next(readings)
    best = max((plain, *readings), key=lambda reading: reading.rank)
    own, heads = model.state_dict(), tuple(f"{name}." for name in classifier_names(model))
    if 2 * best.rank[0] < sum(not name.endswith(COUNTER) for name in own):
        best = plain  # other readings would only obscure the refusal
    theirs = {name.rpartition(".")[0] + "." for name, ours in best.names.items() if ours.startswith(heads)}
    modules = {name.partition(".")[0] for name in (*own, *best.names)}
    state: dict[str, Tensor] = {}
    conflicts: list[str] = []
    left_out: list[str] = []
    for name, tensor in best.tensors.items():
        if (ours := best.names.get(name, name)) in state:
            what = f"two of the weights would become {printable(ours)}"
            raise ModelFileError(f"{printable(path)}: {what}", "use weights of one network only")
        if ours in own:
            # timm writes VGG's dense layers as convolutions over the whole map; the values have equal order.
            state[ours] = tensor.flatten(1) if tensor.ndim == 4 and own[ours].ndim == 2 else tensor
        elif name.startswith((*heads, *theirs, *AUXILIARY)) or UNUSED.fullmatch(name):
            left_out.append(name)
        elif not name.endswith(COUNTER):
            (left_out if "." in name and name.partition(".")[0] not in modules else conflicts).append(name)
    missing = [name for name in own if name not in state and not name.startswith(heads) and not name.endswith(COUNTER)]
    dense = [name for name in own if name.startswith(DENSE) and not name.startswith(heads)]
    if lacks_dense := bool(dense) and set(dense) <= set(missing):
        missing = [name for name in missing if name not in dense]
    is_foreign = arch in REGISTRY and any(ours != theirs for theirs, ours in best.names.items())
    source = ", ".join(filter(None, (_container(file), best.place, best.label)))
    owner = whose(name for tensors in file.groups.values() for name in tensors)
    return Match(state, missing, conflicts, left_out, source, is_foreign, lacks_dense, owner)


def _first(names: list[str]) -> str:
    return ", ".join(printable(name, 80) for name in names[:3]) + (", ..." if len(names) > 3 else "")


def _alternatives(arch: str) -> str:
    entry = find_entry(arch)
    return "or --weights imagenet" if entry.timm_name else "or --weights none"


class _Reading(NamedTuple):
    """One way to read a file as the weights of a network."""

    rank: tuple[int, bool]  # number of tensors that fit, whether the copy is the preferred one
    place: str  # the dict and the prefix, in words
    label: str
    names: Names
    tensors: dict[str, Tensor]


def _readings(model: nn.Module, arch: str, file: TensorFile) -> Iterator[_Reading]:
    """The readings of a file, the network's own names first; those by timm's filter only where no other is complete."""
    own = model.state_dict()
    sizes = {name: tensor.numel() for name, tensor in own.items() if not name.endswith(COUNTER)}
    heads = tuple(f"{name}." for name in classifier_names(model))
    needed = sum(not name.startswith((*heads, *DENSE)) for name in sizes)
    tables = list(_tables(model, arch, own))
    largest = sorted(file.groups, key=lambda group: -len(file.groups[group]))[:MAX_GROUPS]
    groups = {group: _unwrapped(file.groups[group], own) for group in file.groups if group in largest}
    if "" not in groups:  # names may be spread over dicts, one for each module
        flat = {f"{group}.{name}": tensor for group, (tensors, _) in groups.items() for name, tensor in tensors.items()}
        groups[""] = _unwrapped(flat, own)

    def reading(group: str, prefix: str, label: str, names: Names, tensors: dict[str, Tensor]) -> _Reading:
        fitting = sum(sizes.get(names.get(name, ""), -1) == tensor.numel() for name, tensor in tensors.items())
        words = set(re.split(r"[._]", f"{group}.{prefix}".lower()))
        label = ", ".join(filter(None, (groups[group][1], label)))
        return _Reading((fitting, bool(words & PREFERRED)), _which(group, prefix, words), label, names, tensors)

    most = 0
    for group, (tensors, _) in groups.items():
        for label, names in tables:
            for prefix, score in _prefixes(tensors, names, sizes):
                below = _below(tensors, prefix)
                if label in NUMBERED and not all(name[:1].isdigit() for name in below):
                    continue
                most = max(most, score)
                yield reading(group, prefix, label, names, below)
    convert = _timm_filter(arch) if most < needed else None
    for group in [group for group in groups if group in largest[:MAX_CONVERTED]] if convert else ():
        tensors = groups[group][0]
        for prefix in _shared_prefixes(tensors):
            if has_large_kernels(below := _below(tensors, prefix)):
                continue
            label = f"{whose(below)} layout, converted by timm"
            converted = convert(below, _timm_target(model, arch))  # type: ignore[misc]
            yield from (reading(group, prefix, label, names, converted) for _, names in tables[:2])


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _own_names(own: Mapping[str, Tensor]) -> Names:
    return {name: name for name in own}


def _tables(model: nn.Module, arch: str, own: Mapping[str, Tensor]) -> Iterator[tuple[str, Names]]:
    """Labels and names of the layouts that need no conversion; the first is the network's own."""
    is_ours = arch in REGISTRY
    yield "this package's names" if is_ours else "timm's names", _own_names(own)
    theirs = dict(timm_names(arch)) if is_ours else _own_names(own)
    if is_ours and theirs:
        yield "timm's or torchvision's names", theirs
    children = [name for name, _ in _timm_target(model, arch).named_children()]
    places = {name: str(place) for place, name in enumerate(children)}
    numbered = {f"{places[first]}.{rest}": ours for (first, _, rest), ours in _split(theirs) if first in places}
    yield NUMBERED[0], numbered
    yield (
        "the numbered layers of the network's features",
        {rest: ours for (first, _, rest), ours in _split(theirs) if first == "features"},
    )


def _split(names: Names) -> Iterator[tuple[tuple[str, str, str], str]]:
    return ((theirs.partition("."), ours) for theirs, ours in names.items())


def _timm_target(model: nn.Module, arch: str) -> nn.Module:
    """timm's network of the same weights; the network itself where it is timm's or timm has none."""
    entry = find_entry(arch)
    return _on_meta(entry.timm_name) if arch in REGISTRY and entry.timm_name else model


@cache
def _on_meta(name: str) -> nn.Module:
    import timm

    with torch.device("meta"):
        return timm.create_model(name)


def _unwrapped(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """The tensors without the parts of names that wrappers of modules add, and what these were."""
    used = {part for name in own for part in name.split(".")}
    parts = {part: kind for part, kind in WRAPPERS.items() if part not in used}
    found = {part for name in tensors for part in name.split(".") if part in parts}  # guard: C11
    inner = {".".join(part for part in name.split(".") if part not in found): t for name, t in tensors.items()}
    if not found or len(inner) < len(tensors):
        return dict(tensors), ""
    return inner, f"wrapped by {' and '.join(parts[part] for part in sorted(found))}"


def _prefixes(tensors: Mapping[str, Tensor], table: Names, wanted: Mapping[str, int]) -> list[tuple[str, int]]:
    """The prefixes without which most names are the network's, with the numbers of such names."""
    scores: Counter[str] = Counter()
    for name in tensors:
        parts = name.split(".", 9)
        for start in range(len(parts)):
            rest = ".".join(parts[start:])
            if table.get(rest) in wanted:
                scores[name[: len(name) - len(rest)]] += 1
    most = max(scores.values(), default=0)
    return [(prefix, score) for prefix, score in scores.items() if 2 * score > most][:20] or [("", 0)]


def _shared_prefixes(tensors: Mapping[str, Tensor]) -> list[str]:
    """Prefixes of at least a third of the names, the shortest first."""
    counts = Counter({"": len(tensors)})
    for name in tensors:
        parts = name.split(".", 5)
        counts.update(".".join(parts[:end]) + "." for end in range(1, len(parts)))
    return [prefix for prefix, count in counts.items() if 3 * count >= len(tensors)][:8]


def _which(group: str, prefix: str, words: set[str]) -> str:
    """Which of a file's dicts and modules was used."""
    kind = "EMA weights" if words & AVERAGED else "teacher" if "teacher" in words else "raw weights"
    place = ", ".join(printable(name, 60) for name in (group, prefix.rstrip(".")) if name)
    return f"{kind} of {place}" if place else ""


def _container(file: TensorFile) -> str:
    if "pytorch-lightning_version" in file.others:
        return "a checkpoint of Lightning"
    if {"arch", "state_dict", "epoch"} <= file.others:
        return "a training checkpoint like timm's"
    return ""


def whose(names: Iterable[str]) -> str:
    """Whose layout the names of tensors look like."""
    text = "\n".join(names)
    return next((label for sign, label in SIGNS.items() if re.search(sign, text)), "an unknown")


def _timm_filter(arch: str) -> Callable[[dict[str, Tensor], nn.Module], dict[str, Tensor]] | None:
    """timm's conversion of published weights to its own names; None if the network has none."""
    name = find_entry(arch).timm_name
    if not name:
        return None
    import timm

    module = sys.modules[timm.model_entrypoint(name.partition(".")[0]).__module__]
    function = next((getattr(module, known) for known in FILTERS if hasattr(module, known)), None)
    if function is None:
        return None
    parameters = inspect.signature(function).parameters
    keywords = {"adapt_layer_scale": True} if module.__name__.endswith(".deit") else {}

    def convert(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
        try:
            found = function(dict(state), *([model] if len(parameters) > 1 else []), **keywords)
        except Exception:  # the names are not those that the filter knows
            return state
        return {k: v for k, v in found.items() if isinstance(v, Tensor)}

    return convert
