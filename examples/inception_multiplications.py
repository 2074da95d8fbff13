"""What a bottleneck saves: multiplications of an Inception module's 5x5 branch with and without its 1x1.

    python examples/inception_multiplications.py

Expected: 120,422,400 directly, 12,443,648 through the bottleneck.
"""

from torch import nn

from flowers_torch.models.inception import ConvUnit
from flowers_torch.models.multiplications import count_multiplications


def main() -> None:
    """Counts both ways from a map of 192 x 28 x 28 to one of 32 x 28 x 28, and prints them."""
    entering = (192, 28, 28)
    direct = ConvUnit(192, 32, 5)
    bottleneck = nn.Sequential(ConvUnit(192, 16, 1), ConvUnit(16, 32, 5))
    plain = count_multiplications(direct, entering)
    reduced = count_multiplications(bottleneck, entering)
    total, total_reduced = sum(plain.values()), sum(reduced.values())

    print("from 28x28x192 to 28x28x32 with 5x5 filters")
    print(f"  directly                 {total:>12,} multiplications")
    print(f"  1x1 to 16 channels       {reduced['0.conv']:>12,}")
    print(f"  5x5 on those             {reduced['1.conv']:>12,}")
    saved = 1 - total_reduced / total
    print(f"  through the bottleneck   {total_reduced:>12,} multiplications, {saved:.0%} fewer")


if __name__ == "__main__":
    main()
