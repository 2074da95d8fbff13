"""The thin ResNets of He et al. for CIFAR, and plain networks of the same layers without shortcuts.

    residual, plain = cifar_resnet(depth=56), cifar_resnet(depth=56, shortcut="none")

A deeper plain network has a higher *training* error. It does not overfit; it is harder to optimize
(`examples/plain_vs_residual.py`). Paper: https://arxiv.org/abs/1512.03385, section 4.2.
"""

from torch import nn

from flowers_torch.errors import UsageError
from flowers_torch.models.blocks import BasicBlock, ShortcutKind
from flowers_torch.models.network import Network


class CifarResNet(Network):
    """One 3x3 convolution, three stages of n basic blocks, head: 6n + 2 layers with weights.

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
        self.conv1 = nn.Conv2d(in_chans, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        channels = width
        for number in (1, 2, 3):  # N x width x H x W, N x 2 width x H/2 x W/2, N x 4 width x H/4 x W/4
            stage = nn.Sequential()
            for i in range(blocks):
                stride, out_channels = 2 if number > 1 and i == 0 else 1, width * 2 ** (number - 1)
                stage.append(BasicBlock(channels, out_channels, stride, shortcut))
                channels = out_channels
            self.add_module(f"stage{number}", stage)
        self.add_head(4 * width, num_classes, global_pool, map_size=(input_size + 3) // 4)


cifar_resnet = CifarResNet
