"""Freezing: `requires_grad`, optimizer groups and batch-norm modes follow from one ordered list of rules.

A rule is a pair (pattern, learning-rate multiplier). For each parameter the first matching pattern wins, and
0 freezes it. A pattern that decides no parameter and a parameter that no pattern covers are errors.
"""

import dataclasses
import fnmatch
from collections.abc import Sequence
from typing import Any

from torch import nn

from flowers_torch.errors import UsageError
from flowers_torch.models.heads import classifier_names

Rules = Sequence[tuple[str, float]]

BATCH_NORMS = (nn.modules.batchnorm._BatchNorm,)


@dataclasses.dataclass(frozen=True)
class Group:
    """Parameters of one block that share a learning rate."""

    name: str  # the block's name among the network's modules
    parameters: tuple[str, ...]  # names, in the order of the network
    multiplier: float  # of the stage's learning rate; 0 is frozen


def blocks(model: nn.Module) -> dict[str, list[str]]:
    """The network's blocks in forward order, each with the names of its parameters.

    A block is a direct child, or a member of a child that is a sequence (`blocks.3`, `layer2.0`).
    """
    found: dict[str, list[str]] = {}
    heads = {name.split(".")[0] for name in classifier_names(model)}
    outer = getattr(model, "wrapped", None)  # of `OwnNetwork`
    for name, _ in model.named_parameters():
        first, *rest = name.split(".")
        if first == outer:
            first, rest = f"{first}.{rest[0]}", rest[1:]
        child = model.get_submodule(first) if rest else None  # else a bare parameter
        is_sequence = isinstance(child, nn.Sequential | nn.ModuleList) and len(rest) > 1
        block = f"{first}.{rest[0]}" if is_sequence and first not in heads else first
        found.setdefault(block, []).append(name)
    return found


def rules_for(model: nn.Module, train: str | list[Any]) -> list[tuple[str, float]]:
    """Rules for the common cases.

    `train` is "head" (the classifier), "all", the name of a block (this block and all behind it), "keras:N" (all
    but the first N layers of Keras's list), or a list of rules.

    Raises:
        UsageError: there is no block of that name; the message lists the blocks.
    """
    if not isinstance(train, str):
        return [(pattern, float(multiplier)) for pattern, multiplier in train]
    if train.startswith("keras:"):
        from flowers_torch.models.keras.layers import keras_prefix

        frozen = keras_prefix(model, int(train[6:]) if train[6:].isdecimal() else 0)
        return [(f"{name}.*", 0.0) for name in frozen] + [("*", 1.0)]
    if train == "all":
        return [("*", 1.0)]
    if train == "head":
        if not classifier_names(model):
            what = f"{type(model).__name__} does not say which of its layers is the classifier"
            raise UsageError(what, f"train = one of {', '.join(blocks(model))}")
        return [*((f"{name}.*", 1.0) for name in classifier_names(model)), ("*", 0.0)]
    names = list(blocks(model))
    start = next((i for i, name in enumerate(names) if name == train or name.startswith(f"{train}.")), None)
    if start is None:
        raise UsageError(f"the network has no block {train!r}", f"train = head, all, or one of {', '.join(names)}")
    parameters = dict(model.named_parameters())
    # A block can be a bare parameter, such as the class token of a vision transformer.
    return [(name if name in parameters else f"{name}.*", 1.0) for name in names[start:]] + [("*", 0.0)]


def apply_rules(model: nn.Module, rules: Rules) -> list[Group]:
    """Sets `requires_grad` and returns the groups in forward order, frozen ones included.

    Raises:
        UsageError: a pattern decides no parameter, a parameter has no rule, or everything is frozen.
    """
    multipliers: dict[str, float] = {}
    used = set()
    for name, parameter in model.named_parameters():
        match = next((rule for rule in rules if fnmatch.fnmatchcase(name, rule[0])), None)
        if match is None:
            raise UsageError(f"no rule of the stage covers parameter {name}", 'end the rules with ["*", 0.0]')
        used.add(match[0])
        multipliers[name] = match[1]
        parameter.requires_grad_(match[1] > 0)
    unused = [pattern for pattern, _ in rules if pattern not in used and pattern != "*"]
    if unused:
        raise UsageError(f"rule {unused[0]!r} decides no parameter", f"use names such as {next(iter(multipliers))!r}")
    if not any(multipliers.values()):
        raise UsageError("every parameter is frozen", "give one of the rules a multiplier above 0")
    return [
        Group(block, tuple(n for n in names if multipliers[n] == value), value)
        for block, names in blocks(model).items()
        for value in dict.fromkeys(multipliers[name] for name in names)
    ]


def decay_by_layer(groups: Sequence[Group], decay: float) -> list[Group]:
    """Discriminative learning rates, as in ULMFiT: each trained block multiplies the rates before it by `decay`."""
    trained = list(dict.fromkeys(group.name for group in groups if group.multiplier))
    behind = {name: len(trained) - 1 - place for place, name in enumerate(trained)}
    return [
        dataclasses.replace(group, multiplier=group.multiplier * decay ** behind.get(group.name, 0)) for group in groups
    ]


def set_train_mode(model: nn.Module, batch_norm: str = "trained") -> None:
    """Replaces `model.train()`: modules whose parameters are all frozen stay in inference mode.

    Their batch norm keeps and uses its running statistics, and their dropout is off, so that a frozen backbone
    computes the same features in every epoch. `batch_norm` says which batch norms use batch statistics: those of
    "trained" modules, "all" or "none".
    """
    model.train()
    for module in model.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()
    if batch_norm != "trained":
        for module in model.modules():
            if isinstance(module, BATCH_NORMS):
                module.train(batch_norm == "all")


def freeze_table(model: nn.Module, groups: Sequence[Group], lr: float | None) -> str:
    """The outcome of freezing as text: block, tensors, parameters, learning rate, batch-norm mode of the modules.

    Neighboring blocks that are treated alike share a line. `lr` is None where L-BFGS fits what is not frozen.
    """
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    rows: list[tuple[str, str, int, int, float, str]] = []
    for group in groups:
        first, tensors, count = group.name, len(group.parameters), sum(sizes[n] for n in group.parameters)
        norm = _batch_norm_mode(model, group)
        if rows and rows[-1][4] == group.multiplier and (norm == rows[-1][5] or "-" in (norm, rows[-1][5])):
            first, _, more_tensors, more, _, mode = rows.pop()
            tensors, count, norm = tensors + more_tensors, count + more, mode if norm == "-" else norm
        rows.append((first, group.name, tensors, count, group.multiplier, norm))
    lines = [f"  {'block':34}{'tensors':>8}{'parameters':>14}{'' if lr is None else 'lr':>11}  batch norm"]
    for first, last, tensors, count, multiplier, norm in rows:
        name = first if first == last else f"{first} .. {last}"
        rate = "L-BFGS" if lr is None else f"{lr * multiplier:.3g}"
        rate = rate if multiplier else "frozen"
        lines.append(f"  {name:34}{tensors:>8}{count:>14,}{rate:>11}  {norm}")
    trained = sum(row[3] for row in rows if row[4])
    lines.append(f"  {trained:,} of {sum(sizes.values()):,} parameters train")
    return "\n".join(lines)


def _batch_norm_mode(model: nn.Module, group: Group) -> str:
    owners = {name.rpartition(".")[0] for name in group.parameters}
    norms = [module for name, module in model.named_modules() if name in owners]
    modes = {module.training for module in norms if isinstance(module, BATCH_NORMS)}
    return {0: "-", 1: "train" if True in modes else "eval", 2: "mixed"}[len(modes)]
