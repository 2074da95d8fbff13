"""Weights of torchvision and timm for the handwritten networks: a name table, and nothing silent.

network = resnet50(lineage="torch")
load_renamed(network, timm.create_model("resnet50", pretrained=True).state_dict(), RESNET_NAMES)
"""

import re
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

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


def load_renamed(network: nn.Module, state: Mapping[str, Tensor], names: Names) -> None:
    """Loads another library's state dict into a network: all of it, or none.

    Args:
        network: Built with as many classes as the weights have.
        state: The other library's state dict.
        names: Pairs of a regular expression and its replacement, see `RESNET_NAMES`.

    Raises:
        ModelFileError: a tensor without a place, a place without a tensor, or another shape. The message
            lists both sides; nothing was loaded.
    """
    renamed = {_rename(name, names): tensor for name, tensor in state.items()}
    expected = network.state_dict()
    problems = [f"no place for {name} {_shape(renamed[name])}" for name in renamed.keys() - expected.keys()]
    problems += [f"nothing for {name} {_shape(expected[name])}" for name in expected.keys() - renamed.keys()]
    problems += [
        f"{name} is {_shape(renamed[name])}, expected {_shape(tensor)}"
        for name, tensor in expected.items()
        if name in renamed and renamed[name].shape != tensor.shape
    ]
    if len(renamed) < len(state):
        problems.append(f"{len(state) - len(renamed)} names coincide after renaming")
    if problems:
        shown = sorted(problems)[:8] + ([f"and {len(problems) - 8} more"] if len(problems) > 8 else [])
        raise ModelFileError(
            f"weights do not fit {type(network).__name__}: {'; '.join(map(printable, shown))}",
            "use weights of this very network, lineage and number of classes",
        )
    network.load_state_dict(renamed)


def _rename(name: str, names: Names) -> str:
    for pattern, replacement in names:
        name = re.sub(pattern, replacement, name)
    return name


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"
