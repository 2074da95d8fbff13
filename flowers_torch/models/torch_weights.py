"""Weights of torchvision and timm for the handwritten networks: visible tables of names.

network = resnet50(lineage="torch")
theirs = timm.create_model("resnet50", pretrained=True).state_dict()
load_matching(network, renamed(theirs, RESNET_NAMES), "timm's resnet50")
"""

import re
from collections.abc import Mapping, Sequence

from torch import Tensor

from flowers_torch.errors import ModelFileError, printable

Names = Sequence[tuple[str, str]]

# Theirs -> ours, as regular expressions; every one is applied to every name, from the top.
RESNET_NAMES: Names = (
    (r"^layer1\.", "stage2."),
    (r"^layer2\.", "stage3."),
    (r"^layer3\.", "stage4."),
    (r"^layer4\.", "stage5."),
    (r"^(stage\d\.\d+)\.(conv\d|bn\d)\.", r"\1.main.\2."),
    (r"^(stage\d\.\d+)\.downsample\.0\.", r"\1.shortcut.conv."),
    (r"^(stage\d\.\d+)\.downsample\.1\.", r"\1.shortcut.bn."),
    (r"^fc\.", "head.fc."),
)
DENSENET_NAMES: Names = (
    (r"^features\.conv0\.", "conv1.conv."),
    (r"^features\.norm0\.", "conv1.bn."),
    (r"^features\.norm5\.", "bn."),
    *(
        rule
        for i in (1, 2, 3, 4)
        for rule in (
            (rf"^features\.denseblock{i}\.denselayer(\d+)\.norm1\.", rf"stages.conv{i + 1}.block\1.bn0."),
            (rf"^features\.denseblock{i}\.denselayer(\d+)\.norm2\.", rf"stages.conv{i + 1}.block\1.bn1."),
            (rf"^features\.denseblock{i}\.denselayer(\d+)\.conv", rf"stages.conv{i + 1}.block\1.conv"),
            (rf"^features\.transition{i}\.norm\.", f"stages.pool{i + 1}.bn."),
            (rf"^features\.transition{i}\.conv\.", f"stages.pool{i + 1}.conv."),
        )
    ),
    (r"^classifier\.", "head.fc."),
)


def _xception_names() -> Names:
    names = []
    for block in range(12, 0, -1):  # from the last on, because ours are counted from 2 on: block1 is the stem
        in_middle = 4 <= block <= 11
        ours = f"middle.block{block + 1}.layers" if in_middle else f"block{block + 1}"
        for number in range(1, 4 if in_middle else 3):
            # Activation, convolution and norm by turns; the first block starts without the activation.
            position = 3 * number - (3 if block == 1 else 2)
            names.append((rf"^block{block}\.rep\.{position}\.", f"{ours}.sepconv{number}."))
            names.append((rf"^block{block}\.rep\.{position + 1}\.", f"{ours}.sepconv{number}_bn."))
        names.append((rf"^block{block}\.skip\.", f"{ours}.residual.conv."))
        names.append((rf"^block{block}\.skipbn\.", f"{ours}.residual.bn."))
    for theirs, block, convolution in (
        (1, 1, "conv1"),
        (2, 1, "conv2"),
        (3, 14, "sepconv1"),
        (4, 14, "sepconv2"),
    ):
        names.append((rf"^conv{theirs}\.", f"block{block}.{convolution}."))
        names.append((rf"^bn{theirs}\.", f"block{block}.{convolution}_bn."))
    return (*names, (r"\.(sepconv\d)\.conv1\.", r".\1.depthwise."), (r"^fc\.", "head.fc."))


def _vgg_names(*depths: int) -> Names:
    names = []
    position = 0  # in their one long sequence of convolutions, ReLUs and poolings
    for block, convolutions in enumerate(depths, start=1):
        for number in range(1, convolutions + 1):
            names.append((rf"^features\.{position}\.", f"block{block}.conv{number}."))
            position += 2
        position += 1
    timm = [(r"^pre_logits\.fc1\.", "head.dense.0."), (r"^pre_logits\.fc2\.", "head.dense.3.")]
    torchvision = [
        (r"^classifier\.0\.", "head.dense.0."),
        (r"^classifier\.3\.", "head.dense.3."),
        (r"^classifier\.6\.", "head.fc."),
    ]
    return (*names, *timm, *torchvision)


VGG16_NAMES = _vgg_names(2, 2, 3, 3, 3)
VGG19_NAMES = _vgg_names(2, 2, 4, 4, 4)
XCEPTION_NAMES = _xception_names()  # of timm's legacy_xception, whose weights are Keras's


def renamed(state: Mapping[str, Tensor], names: Names) -> dict[str, Tensor]:
    """Another library's state dict under the names of the handwritten network.

    Args:
        state: The other library's state dict.
        names: Pairs of a regular expression and its replacement, see `RESNET_NAMES`. A name that none of
            them fits stays as it is; whether all fit the network is for `load_matching` to say.

    Raises:
        ModelFileError: two tensors would get the same name.
    """
    found: dict[str, Tensor] = {}
    for theirs, tensor in state.items():
        name = theirs
        for pattern, replacement in names:
            name = re.sub(pattern, replacement, name)
        if name in found:
            raise ModelFileError(
                f"two of the weights would become {printable(name)}", "use weights of one network only"
            )
        # timm writes VGG's dense layers as convolutions over the whole map; the numbers are in equal order.
        found[name] = tensor.flatten(1) if name.startswith("head.") and tensor.ndim == 4 else tensor
    return found
