"""ResNetV2 with 50, 101 and 152 layers: batch norm and ReLU before the convolutions (pre-activation).

As in keras.applications, the stem has neither, and the last block of a stage has the stride.
Paper: https://arxiv.org/abs/1603.05027.
"""

from torch import nn

from flowers_torch.models.blocks import PreActivationBlock
from flowers_torch.models.network import Network, variant


class ResNetV2(Network):
    """Stem of one 7x7 convolution, stages 2 to 5 of pre-activation blocks (`depths`), batch norm, ReLU, head."""

    def __init__(
        self,
        depths: tuple[int, int, int, int],
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        input_size: int = 224,
    ) -> None:
        super().__init__()

        def stage(in_channels: int, filters: int, blocks: int, last_stride: int) -> nn.Sequential:
            return nn.Sequential(
                PreActivationBlock(in_channels, filters, project=True),
                *(PreActivationBlock(4 * filters, filters) for _ in range(blocks - 2)),
                PreActivationBlock(4 * filters, filters, last_stride),
            )

        self.pad = nn.ZeroPad2d(3)
        self.conv1 = nn.Conv2d(in_chans, 64, 7, stride=2)  # N x 64 x H/2 x W/2
        # Without a ReLU before it, padding with zeros differs from the pooling's own padding (-infinity).
        self.max_pool = nn.Sequential(nn.ZeroPad2d(1), nn.MaxPool2d(3, stride=2))  # N x 64 x H/4 x W/4
        self.stage2 = stage(64, 64, depths[0], last_stride=2)  # N x 256 x H/8 x W/8
        self.stage3 = stage(256, 128, depths[1], last_stride=2)  # N x 512 x H/16 x W/16
        self.stage4 = stage(512, 256, depths[2], last_stride=2)  # N x 1024 x H/32 x W/32
        self.stage5 = stage(1024, 512, depths[3], last_stride=1)  # N x 2048 x H/32 x W/32
        self.post_bn = nn.BatchNorm2d(2048, 1.001e-5)
        self.post_relu = nn.ReLU()
        self.add_head(2048, num_classes, global_pool, map_size=(input_size + 31) // 32)


resnet50v2 = variant("ResNet50V2: 25,613,800 parameters as Keras counts them.", ResNetV2, (3, 4, 6, 3))
resnet101v2 = variant("ResNet101V2: 44,675,560 parameters as Keras counts them.", ResNetV2, (3, 4, 23, 3))
resnet152v2 = variant("ResNet152V2: 60,380,648 parameters as Keras counts them.", ResNetV2, (3, 8, 36, 3))
