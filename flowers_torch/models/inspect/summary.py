"""Keras's `model.summary()` for any network."""

from torch import nn

from flowers_torch.models.inspect.trace import trace
from flowers_torch.models.keras.layers import KerasLayer, has_gamma, keras_layers


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
    rows: list[KerasLayer] = []
    for name, kind, shape, inputs, sizes, _ in trace(model, size):
        rows.append(KerasLayer(name, kind, shape, sum(sizes.values()), name, tuple(rows[i].name for i in inputs)))
    return rows


def summary(model: nn.Module, size: int, keras: bool = False) -> str:
    """The table as text: layer, output shape, parameters, inputs, and totals as Keras counts them.

    Non-trainable are frozen parameters and the running statistics of batch norms.
    """
    cells = [("Layer (type)", "Output shape", "Parameters", "Connected to")]
    for row in layer_rows(model, size, keras):
        shape = ", ".join(["None", *map(str, row.shape[1:])])
        cells.append((f"{row.name} ({row.kind})", f"({shape})", f"{row.parameters:,}", ", ".join(row.inputs)))
    first, second, third, _ = (max(map(len, column)) for column in zip(*cells, strict=True))
    lines = [f"{a:{first}}  {b:{second}}  {c:>{third}}  {d}".rstrip() for a, b, c, d in cells]
    rule = "=" * (len(lines[0]) + 16)
    total, trainable = parameter_counts(model)
    totals = [f"Total parameters: {total:,}", f"Trainable: {trainable:,}", f"Non-trainable: {total - trainable:,}"]
    return "\n".join([lines[0], rule, *lines[1:], rule, *totals])


def parameter_counts(model: nn.Module) -> tuple[int, int]:
    """(all, trainable) parameters as Keras counts them: with running statistics, without gammas that it lacks."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    gammas = set() if has_gamma(model) else {norm.weight for norm in norms}
    parameters = [p for p in model.parameters() if p not in gammas]
    statistics = sum(2 * norm.num_features for norm in norms if norm.running_mean is not None)
    total = sum(p.numel() for p in parameters) + statistics
    return total, sum(p.numel() for p in parameters if p.requires_grad)
