"""Keras's `model.summary()` for any network."""

from collections.abc import Sequence

from torch import nn

from flowers_torch.models.inspect.trace import trace
from flowers_torch.models.keras.layers import KerasLayer, has_gamma, keras_count, keras_layers


def layer_rows(model: nn.Module, size: int, keras: bool = False) -> list[KerasLayer]:
    """A network's layers with the head.

    Args:
        model: Any image network.
        size: Image height and width, pixels.
        keras: Keras's names, order and shapes (channels last), for the networks that Keras has. Otherwise
            module names in order of execution, channels first.
    """
    if keras:
        return keras_layers(model, size, head=True)
    nodes = trace(model, size)
    sizes = {name: t.numel() for name, t in (*model.named_parameters(), *model.named_buffers())}
    return [
        KerasLayer(
            node.name,
            node.kind,
            node.shape,
            sum(sizes[name] for name in node.tensors if not name.endswith("num_batches_tracked")),
            node.name,
            tuple(nodes[i].name for i in node.inputs),
        )
        for node in nodes
    ]


def summary(model: nn.Module, size: int, keras: bool = False) -> str:
    """The table as text: layer, output shape, parameters, inputs, and totals as Keras counts them.

    Non-trainable are frozen parameters and the running statistics of batch norms.
    """
    rows = layer_rows(model, size, keras)
    names = [f"{row.name} ({row.kind})" for row in rows]
    shapes = [f"({', '.join(['None', *map(str, row.shape[1:])])})" for row in rows]
    counts = [f"{row.parameters:,}" for row in rows]
    columns = [("Layer (type)", names), ("Output shape", shapes), ("Parameters", counts)]
    widths = [max(len(title), *map(len, cells)) for title, cells in columns]
    lines = [_line([title for title, _ in columns], widths) + "  Connected to"]
    lines.append("=" * (len(lines[0]) + 16))
    for name, shape, count, row in zip(names, shapes, counts, rows, strict=True):
        lines.append(f"{_line([name, shape, count], widths)}  {', '.join(row.inputs)}".rstrip())
    lines.append("=" * len(lines[1]))
    total, trainable = parameter_counts(model)
    lines.append(f"Total parameters: {total:,}")
    lines.append(f"Trainable: {trainable:,}")
    lines.append(f"Non-trainable: {total - trainable:,}")
    return "\n".join(lines)


def parameter_counts(model: nn.Module) -> tuple[int, int]:
    """(all, trainable) parameters as Keras counts them."""
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if not has_gamma(model):
        gammas = (m.weight for m in model.modules() if isinstance(m, nn.BatchNorm2d))
        trainable -= sum(gamma.numel() for gamma in gammas if gamma.requires_grad)
    return keras_count(model), trainable


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    name, shape, count = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
    return f"{name}  {shape}  {count.strip():>{widths[2]}}"
