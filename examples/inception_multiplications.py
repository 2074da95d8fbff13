"""What a bottleneck saves: the multiplications of an Inception module's 5x5 branch with and without it.

    python examples/inception_multiplications.py

Expected: 120,422,400 directly, 12,443,648 through the bottleneck.
"""

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from flowers_torch.models.inception import ConvUnit


def multiplications(network: nn.Module, x: Tensor) -> int:
    """Multiplications of one forward pass; torch counts each one and its addition as two FLOPs."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(x)
    return counter.get_total_flops() // 2


def main() -> None:
    """Counts two ways from 192 channels of 28 x 28 to 32 channels, and prints the counts."""
    with torch.device("meta"):  # shapes are enough: nothing is computed
        x = torch.empty(1, 192, 28, 28)
        reduced = torch.empty(1, 16, 28, 28)
        direct = multiplications(ConvUnit(192, 32, 5), x)
        first = multiplications(ConvUnit(192, 16, 1), x)
        second = multiplications(ConvUnit(16, 32, 5), reduced)

    print("from 28x28x192 to 28x28x32 with 5x5 filters")
    print(f"  directly                 {direct:>12,} multiplications")
    print(f"  1x1 to 16 channels       {first:>12,}")
    print(f"  5x5 on those             {second:>12,}")
    total = first + second
    print(f"  through the bottleneck   {total:>12,} multiplications, {1 - total / direct:.0%} fewer")


if __name__ == "__main__":
    main()
