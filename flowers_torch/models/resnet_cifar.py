"""The thin ResNets of He et al. for CIFAR, and plain networks of the same layers without shortcuts.

    residual, plain = cifar_resnet(depth=56), cifar_resnet(depth=56, shortcut="none")

A deeper plain network has a higher *training* error. It does not overfit; it is harder to optimize.
`examples/plain_vs_residual.py` shows this.
Paper: https://arxiv.org/abs/1512.03385, section 4.2.
"""

from torch import nn

from flowers_torch.errors import UsageError
from flowers_torch.models.blocks import BasicBlock, ShortcutKind, glorot_init_
from flowers_torch.models.network import MlpHead, Network


class CifarResNet(Network):
    """One 3x3 convolution, three stages of n basic blocks, head: 6n + 2 layers with weights.

    Shapes: N x in_chans x H x W -> N x num_classes; the feature map is N x 4 width x ceil(H/4) x ceil(W/4).

    Args:
        depth: Layers with weights, 6n + 2: 8, 14, 20, 32, 44, 56, 110, ...
        shortcut: "projection", "zero_pad" (the paper's for CIFAR) or "none" (a plain network).
        width: Channels of the first stage; the other two have two and four times as many.

    Raises:
        UsageError: `depth` is not 6n + 2.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_chans: int = 3,
        depth: int = 20,
        shortcut: ShortcutKind = "zero_pad",
        width: int = 16,
        global_pool: str = "avg",
        input_size: int = 32,
    ) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 2, 6)
        if rest or blocks < 1:
            raise UsageError(f"a CIFAR ResNet has 6n + 2 layers, not {depth}", "use 8, 14, 20, 32, 44, 56 ...")

        def stage(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
            return nn.Sequential(
                BasicBlock(in_channels, out_channels, stride, shortcut),
                *(BasicBlock(out_channels, out_channels, 1, shortcut) for _ in range(blocks - 1)),
            )

        self.conv1 = nn.Conv2d(in_chans, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.stage1 = stage(width, width, stride=1)  # N x width x H x W
        self.stage2 = stage(width, 2 * width, stride=2)  # N x 2 width x H/2 x W/2
        self.stage3 = stage(2 * width, 4 * width, stride=2)  # N x 4 width x H/4 x W/4
        glorot_init_(self)
        self.head = MlpHead(4 * width, num_classes, global_pool, map_size=(input_size + 3) // 4)


cifar_resnet = CifarResNet
