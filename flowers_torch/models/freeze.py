"""What trains and what does not: `requires_grad`, optimiser groups and batch-norm mode from one decision.

A stage states an ordered list of rules (pattern, learning-rate multiplier); for each parameter the first
matching pattern wins and 0 means frozen. A pattern that matches nothing and a parameter that no pattern
covers are errors, because both mean that somebody believes something untrue about the network.
"""

import dataclasses
import fnmatch
from collections.abc import Sequence
from typing import Any

from torch import nn

from flowers_torch.errors import UsageError
from flowers_torch.models.heads import classifier_name

Rules = Sequence[tuple[str, float]]

BATCH_NORMS = (nn.modules.batchnorm._BatchNorm,)


@dataclasses.dataclass(frozen=True)
class Group:
    """Neighbouring parameters that are trained alike."""

    name: str  # the block's name among the network's modules
    parameters: tuple[str, ...]  # names, in the order of the network
    multiplier: float  # of the stage's learning rate; 0 is frozen


def blocks(model: nn.Module) -> dict[str, list[str]]:
    """The network's blocks in forward order, each with its parameter names.

    A block is a direct child; a child that is a sequence counts by its members (`blocks.3`, `layer2.0`).
    """
    found: dict[str, list[str]] = {}
    for name, _ in model.named_parameters():
        first, *rest = name.split(".")
        child = getattr(model, first)
        in_sequence = isinstance(child, nn.Sequential | nn.ModuleList) and len(rest) > 1
        is_head = first == classifier_name(model).split(".")[0]
        found.setdefault(f"{first}.{rest[0]}" if in_sequence and not is_head else first, []).append(name)
    return found


def rules_for(model: nn.Module, train: str | list[Any]) -> list[tuple[str, float]]:
    """Rules for the common cases.

    Args:
        model: The network.
        train: `head` (the classifier alone), `all`, a block's name (that block and all behind it), or
            `keras:N` (all but the first N layers as Keras lists them).

    Raises:
        UsageError: no block of that name; the message lists those there are.
    """
    if not isinstance(train, str):
        return [(pattern, float(multiplier)) for pattern, multiplier in train]
    if train.startswith("keras:"):
        from flowers_torch.models.keras.layers import keras_prefix

        frozen = keras_prefix(model, int(train[6:]) if train[6:].isdecimal() else 0)
        return [(f"{name}.*", 0.0) for name in frozen] + [("*", 1.0)]
    head = f"{classifier_name(model)}.*"
    if train == "all":
        return [("*", 1.0)]
    if train == "head":
        return [(head, 1.0), ("*", 0.0)]
    names = list(blocks(model))
    start = next((i for i, name in enumerate(names) if name == train or name.startswith(f"{train}.")), None)
    if start is None:
        raise UsageError(
            f"the network has no block {train!r}", f"train = head, all, or one of {', '.join(names)}"
        )
    everything = dict(model.named_parameters())
    # A block can be a bare parameter, such as the class token of a vision transformer.
    return [(name if name in everything else f"{name}.*", 1.0) for name in names[start:]] + [("*", 0.0)]


def apply_rules(model: nn.Module, rules: Rules) -> list[Group]:
    """Sets `requires_grad` by the rules and returns the groups, frozen ones included, in forward order.

    Raises:
        UsageError: a pattern matches no parameter, a parameter has no rule, or nothing trains.
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
    idle = [pattern for pattern, _ in rules if pattern not in used and pattern != "*"]
    if idle:
        raise UsageError(
            f"rule {idle[0]!r} decides no parameter", f"use names such as {next(iter(multipliers))!r}"
        )
    if not any(multipliers.values()):
        raise UsageError("every parameter is frozen", "let a rule have a multiplier above 0")
    groups = []
    for block, names in blocks(model).items():
        for value in dict.fromkeys(multipliers[name] for name in names):
            groups.append(Group(block, tuple(n for n in names if multipliers[n] == value), value))
    return groups


def decay_by_layer(groups: Sequence[Group], decay: float) -> list[Group]:
    """Discriminative learning rates: each block's multiplier times `decay` for each trained block behind it.

    Args:
        groups: From `apply_rules`.
        decay: 1 changes nothing; ULMFiT and fastai lower the rate from the head to the stem.
    """
    trained = list(dict.fromkeys(group.name for group in groups if group.multiplier))
    behind = {name: len(trained) - 1 - place for place, name in enumerate(trained)}
    return [
        dataclasses.replace(group, multiplier=group.multiplier * decay ** behind.get(group.name, 0))
        for group in groups
    ]


def set_train_mode(model: nn.Module, batch_norm: str = "trained") -> None:
    """`model.train()` that leaves frozen parts in inference mode; call it instead, every time.

    A module whose parameters are all frozen runs as at inference: batch norm uses and keeps its stored
    statistics, dropout inside it is off. So a frozen backbone computes the same features in every epoch.

    Args:
        model: A network to which `apply_rules` was applied.
        batch_norm: Layers whose batch norm follows the photos: `trained` ones, `all` or `none`.
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
    """The outcome of freezing as text: block, tensors, parameters, learning rate, batch norm.

    Neighbouring blocks that are treated alike share a line. Reads the modes that are set now, so it shows
    what is, not what was asked for. Without a learning rate L-BFGS fits what is not frozen.
    """
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    rows: list[tuple[str, str, int, int, float, str]] = []
    for group in groups:
        row = (group.name, group.name, len(group.parameters), sum(sizes[n] for n in group.parameters))
        norm = _batch_norm_mode(model, group)
        if rows and rows[-1][4] == group.multiplier and (norm == rows[-1][5] or "-" in (norm, rows[-1][5])):
            first, _, tensors, count, multiplier, mode = rows.pop()
            norm = mode if norm == "-" else norm
            rows.append((first, group.name, tensors + row[2], count + row[3], multiplier, norm))
        else:
            rows.append((*row, group.multiplier, norm))
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
    return {0: "-", 1: "adapts" if True in modes else "stored", 2: "mixed"}[len(modes)]
