"""Tables from the parameter names of timm and torchvision to those of the handwritten networks.

network = resnet50(lineage="torch")
theirs = timm.create_model("resnet50", pretrained=True).state_dict()
load_matching(network, rename_tensors(theirs, RESNET_NAMES), "timm's resnet50")
"""

import re
from collections.abc import Mapping, Sequence

from torch import Tensor

from flowers_torch.errors import ModelFileError, printable

NameTable = Sequence[tuple[str, str]]  # (regular expression, replacement); all apply, from top to bottom

RESNET_NAMES: NameTable = (
    (r"^layer1\.", "stage2."),
    (r"^layer2\.", "stage3."),
    (r"^layer3\.", "stage4."),
    (r"^layer4\.", "stage5."),
    (r"^(stage\d\.\d+)\.(conv\d|bn\d)\.", r"\1.main.\2."),
    (r"^(stage\d\.\d+)\.downsample\.0\.", r"\1.shortcut.conv."),
    (r"^(stage\d\.\d+)\.downsample\.1\.", r"\1.shortcut.bn."),
    (r"^fc\.", "head.fc."),
)


def _densenet_names() -> NameTable:
    names = [
        (r"^features\.conv0\.", "conv1.conv."),
        (r"^features\.norm0\.", "conv1.bn."),
        (r"^features\.norm5\.", "bn."),
        (r"^classifier\.", "head.fc."),
    ]
    for i in (1, 2, 3, 4):
        layer, block = rf"^features\.denseblock{i}\.denselayer(\d+)\.", rf"stages.conv{i + 1}.block\1."
        names += [(layer + r"norm1\.", block + "bn0."), (layer + r"norm2\.", block + "bn1.")]
        names += [(layer + "conv", block + "conv")]
        names += [(rf"^features\.transition{i}\.norm\.", f"stages.pool{i + 1}.bn.")]
        names += [(rf"^features\.transition{i}\.conv\.", f"stages.pool{i + 1}.conv.")]
    return names


def _xception_names() -> NameTable:
    """For timm's legacy_xception."""
    names = []
    for block in range(12, 0, -1):  # downward: ours are counted from 2, because block1 is the stem
        is_middle = 4 <= block <= 11
        ours = f"middle.block{block + 1}.layers" if is_middle else f"block{block + 1}"
        for number in range(1, 4 if is_middle else 3):
            # Theirs repeat activation, convolution, norm; the first block has no first activation.
            position = 3 * number - (3 if block == 1 else 2)
            names.append((rf"^block{block}\.rep\.{position}\.", f"{ours}.sepconv{number}."))
            names.append((rf"^block{block}\.rep\.{position + 1}\.", f"{ours}.sepconv{number}_bn."))
        names.append((rf"^block{block}\.skip\.", f"{ours}.residual.conv."))
        names.append((rf"^block{block}\.skipbn\.", f"{ours}.residual.bn."))
    outer = {1: "block1.conv1", 2: "block1.conv2", 3: "block14.sepconv1", 4: "block14.sepconv2"}
    for number, layer in outer.items():
        names += [(rf"^conv{number}\.", f"{layer}."), (rf"^bn{number}\.", f"{layer}_bn.")]
    return (*names, (r"\.(sepconv\d)\.conv1\.", r".\1.depthwise."), (r"^fc\.", "head.fc."))


def _vgg_names(*depths: int) -> NameTable:
    names = []
    position = 0  # in their one sequence of convolutions, ReLUs and poolings
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


DENSENET_NAMES = _densenet_names()
VGG16_NAMES = _vgg_names(2, 2, 3, 3, 3)
VGG19_NAMES = _vgg_names(2, 2, 4, 4, 4)
XCEPTION_NAMES = _xception_names()


def rename_tensors(state: Mapping[str, Tensor], names: NameTable) -> dict[str, Tensor]:
    """Another library's state dict under the names of the handwritten network.

    A name that no pattern matches stays as it is; `load_matching` checks that all of them fit.

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
        # timm writes VGG's dense layers as convolutions over the whole map; the values have equal order.
        found[name] = tensor.flatten(1) if name.startswith("head.") and tensor.ndim == 4 else tensor
    return found
