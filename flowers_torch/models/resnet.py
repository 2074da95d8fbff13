"""ResNet and ResNeXt with 50, 101 and 152 layers.

Three lineages of one architecture differ in details, so that their weights are not interchangeable:

| lineage  | bias | stride on  | epsilon  | stem pooling | head                  | source                    |
|----------|------|------------|----------|--------------|-----------------------|---------------------------|
| keras    | yes  | first 1x1  | 1.001e-5 | padded       | global average        | keras.applications        |
| torch    | no   | middle 3x3 | 1e-5     | padded       | global average        | torchvision, timm         |
| course   | yes  | first 1x1  | 1e-3     | not padded   | 2x2 average, flatten  | course notebook, 64x64    |

ResNeXt has no bias and the stride on the 3x3 in all lineages; only the epsilon differs.
Papers: https://arxiv.org/abs/1512.03385, https://arxiv.org/abs/1611.05431.
"""

from collections.abc import Callable
from typing import Any, Literal

from torch import nn

from flowers_torch.errors import UsageError
from flowers_torch.models.blocks import ConvolutionalBlock, Filters, IdentityBlock, StridePlace
from flowers_torch.models.network import Network

Lineage = Literal["keras", "torch", "course"]
Depths = tuple[int, int, int, int]

LINEAGES: dict[str, dict[str, Any]] = {
    "keras": dict(bias=True, stride_on="first", epsilon=1.001e-5),
    "torch": dict(bias=False, stride_on="middle", epsilon=1e-5),
    "course": dict(bias=True, stride_on="first", epsilon=1e-3, pad_stem_pool=False, global_pool="avg2x2"),
}
ARGUMENTS = """Args:
    num_classes: Logits; 0 for features.
    lineage: "keras", "torch" or "course"; decides which weights fit. The course's network is
        `resnet50(6, lineage="course", input_size=64)`: 23,600,006 parameters, 53,120 of them not trainable.
    **options: Further arguments of `ResNet`.
"""
OUT_CHANNELS = (256, 512, 1024, 2048)


class ResNet(Network):
    """Stem of one 7x7 convolution, stages 2 to 5 of bottleneck blocks, head.

    Args:
        depths: Blocks in stages 2 to 5; the first of each is a `ConvolutionalBlock`.
        widths: Filters of the first two convolutions of a block, for each stage.
        groups: Groups of the 3x3 convolutions.
        bias, stride_on, epsilon: As in the blocks.
        pad_stem_pool: Whether the stem's 3x3 max pooling has a padding of one pixel.
    """

    def __init__(
        self,
        depths: Depths,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        input_size: int = 224,
        widths: tuple[int, int, int, int] = (64, 128, 256, 512),
        groups: int = 1,
        bias: bool = True,
        stride_on: StridePlace = "first",
        epsilon: float = 1.001e-5,
        pad_stem_pool: bool = True,
    ) -> None:
        super().__init__()

        def stage(index: int, in_channels: int, stride: int) -> nn.Sequential:
            filters: Filters = (widths[index], widths[index], OUT_CHANNELS[index])
            details: dict[str, Any] = dict(bias=bias, epsilon=epsilon, groups=groups)
            return nn.Sequential(
                ConvolutionalBlock(in_channels, 3, filters, stride, stride_on=stride_on, **details),
                *(IdentityBlock(filters[2], 3, filters, **details) for _ in range(depths[index] - 1)),
            )

        self.pad = nn.ZeroPad2d(3)
        self.conv1 = nn.Conv2d(in_chans, 64, 7, stride=2, bias=bias)
        self.bn1 = nn.BatchNorm2d(64, epsilon)
        self.relu = nn.ReLU()  # N x 64 x H/2 x W/2
        # Keras pads with zeros before the pooling; after a ReLU, the pooling's own padding gives the same.
        self.max_pool = nn.MaxPool2d(3, stride=2, padding=int(pad_stem_pool))  # N x 64 x H/4 x W/4
        self.stage2 = stage(0, 64, stride=1)  # N x 256 x H/4 x W/4
        self.stage3 = stage(1, 256, stride=2)  # N x 512 x H/8 x W/8
        self.stage4 = stage(2, 512, stride=2)  # N x 1024 x H/16 x W/16
        self.stage5 = stage(3, 1024, stride=2)  # N x 2048 x H/32 x W/32
        side = (input_size + 1) // 2
        side = (side + 1) // 2 if pad_stem_pool else (side - 1) // 2
        self.add_head(2048, num_classes, global_pool, map_size=(side + 7) // 8)


def _resnet(doc: str, depths: Depths, **fixed: Any) -> Callable[..., ResNet]:
    def build(num_classes: int = 1000, *, lineage: Lineage = "keras", **options: Any) -> ResNet:
        if lineage not in LINEAGES:
            raise UsageError(f"unknown lineage {lineage!r} of a ResNet", f"use one of {', '.join(LINEAGES)}")
        return ResNet(depths, num_classes, **(LINEAGES[lineage] | fixed | options))

    build.__doc__ = f"{doc} parameters as Keras counts them.\n\n{ARGUMENTS}"
    return build


_X: dict[str, Any] = dict(bias=False, stride_on="middle", widths=(128, 256, 512, 1024), groups=32)

resnet50 = _resnet("ResNet50: 25,636,712", (3, 4, 6, 3))
resnet101 = _resnet("ResNet101: 44,707,176", (3, 4, 23, 3))
resnet152 = _resnet("ResNet152: 60,419,944", (3, 8, 36, 3))
resnext50 = _resnet("ResNeXt50 32x4d: 25,097,128", (3, 4, 6, 3), **_X)
resnext101 = _resnet("ResNeXt101 32x4d: 44,315,560", (3, 4, 23, 3), **_X)
