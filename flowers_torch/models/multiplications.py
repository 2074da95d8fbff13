"""How many multiplications a network spends on one image, layer by layer."""

from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call


def count_multiplications(network: nn.Module, input_shape: tuple[int, ...]) -> dict[str, int]:
    """Counts what convolutions and dense layers multiply; nothing is computed, shapes suffice.

    A layer that is called twice counts twice. Batch norm, pooling and activations are left out: they take
    a few operations per value where a convolution takes hundreds.

    Args:
        network: Any module; its weights are not read. In training mode auxiliary classifiers count too.
        input_shape: Of one input without the batch, such as (3, 224, 224).

    Returns:
        Layer's name to multiplications for one image; the network's are the sum.
    """
    counts: dict[str, int] = {}

    def count(name: str, layer: nn.Conv2d | nn.Linear, _inputs: object, output: Tensor) -> None:
        # Each value of the result is one product with each value of its kernel.
        kernel = layer.weight[0].numel()
        counts[name] = counts.get(name, 0) + output[0].numel() * kernel

    layers = [(name, m) for name, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(partial(count, name)) for name, layer in layers]
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    shapes = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors.items()}
    try:
        with torch.no_grad():
            functional_call(network, shapes, torch.empty(2, *input_shape, device="meta"))
    finally:
        for hook in hooks:
            hook.remove()
    return counts
