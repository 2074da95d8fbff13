"""Tables from module names to the names of Keras's layers.

A table is a list of (pattern of the module's name, Keras's name). The first pattern that matches the whole
name decides. A name without a match has a default name in Keras, a kind and a number. The right side is

- a template (`\\1` is the pattern's first group) or a function of the match;
- several names where Keras has several layers for one module, such as a ZeroPadding2D before a convolution;
  `?` stands for a default name;
- empty where the module is part of the layer before it in Keras (VGG's activations).
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from timm.models.inception_resnet_v2 import InceptionResnetV2
from torch import nn

from flowers_torch.models.classic import VGG
from flowers_torch.models.densenet import DenseNet
from flowers_torch.models.inception_v3 import InceptionV3
from flowers_torch.models.mobilenet import MobileNet, MobileNetV2
from flowers_torch.models.nasnet import NASNet
from flowers_torch.models.resnet import ResNet
from flowers_torch.models.resnet_v2 import ResNetV2
from flowers_torch.models.small import Cifar10Net, HappyModel, SmallConvNet
from flowers_torch.models.xception import Xception

Template = str | Callable[[re.Match[str]], str]


@dataclass(frozen=True)
class Rules:
    """The table of a network."""

    names: Sequence[tuple[str, Template]]
    # Keras's sums are shortcut + main path, ours main path + shortcut. The order decides Keras's numbering.
    shortcut_first: bool = False

    def name_of(self, name: str) -> str | None:
        """Keras's name or names for a node of `trace`; None for a default name."""
        for pattern, template in self.names:
            match = re.fullmatch(pattern, name)
            if match:
                return match.expand(template) if isinstance(template, str) else template(match)
        return None


MIXED = ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c")
INCEPTION_V3 = Rules(
    [
        *((rf"Mixed_{block}\.cat", f"mixed{i}") for i, block in enumerate(MIXED[:9])),
        (r"Mixed_7b\.cat", "mixed9_0"),
        (r"Mixed_7b\.cat_2", "mixed9"),
        (r"Mixed_7c\.cat", "mixed9_1"),
        (r"Mixed_7c\.cat_2", "mixed10"),
    ]
)


def _inception_resnet(block: str) -> Callable[[re.Match[str]], str]:
    endings = {"cat": "mixed", "conv2d": "conv", "act": "ac", "relu": "ac"}
    return lambda m: f"{block}_{int(m[1]) + 1}_{endings[m[2]]}"


INCEPTION_RESNET_V2 = Rules(
    [
        (r"(mixed_\d[ab])\.cat", r"\1"),
        (r"repeat\.(\d+)\.(cat|conv2d|act)", _inception_resnet("block35")),
        (r"repeat_1\.(\d+)\.(cat|conv2d|act)", _inception_resnet("block17")),
        (r"repeat_2\.(\d+)\.(cat|conv2d|relu)", _inception_resnet("block8")),
        (r"block8\.cat", "block8_10_mixed"),
        (r"block8\.conv2d", "block8_10_conv"),
        (r".*\.mul", ""),  # part of the CustomScaleLayer of the sum
        (r"conv2d_7b\.conv", "conv_7b"),
        (r"conv2d_7b\.bn", "conv_7b_bn"),
        (r"conv2d_7b\.bn\.act", "conv_7b_ac"),
    ],
    shortcut_first=True,
)


XCEPTION = Rules(
    [
        (r"block\d+\.residual\.\w+|.*\.add", "?"),
        (r"(?:middle\.)?(block\d+)\.(?:layers\.)?(\w+)", r"\1_\2"),
    ]
)

MOBILENET = Rules(
    [
        (r"conv1\.conv", "conv1"),
        (r"conv1\.(bn|relu)", r"conv1_\1"),
        (r"blocks\.block(\d+)\.pad", r"conv_pad_\1"),
        (r"blocks\.block(\d+)\.(dw|pw)", r"conv_\2_\1"),
        (r"blocks\.block(\d+)\.(dw|pw)_(bn|relu)", r"conv_\2_\1_\3"),
    ]
)

MOBILENET_V2 = Rules(
    [
        (r"conv1\.conv", "Conv1"),
        (r"conv1\.bn", "bn_Conv1"),
        (r"conv1\.relu", "Conv1_relu"),
        (r"blocks\.0\.(\w+)_bn", r"expanded_conv_\1_BN"),
        (r"blocks\.0\.(\w+)", r"expanded_conv_\1"),
        (r"blocks\.(\d+)\.expand\.conv", r"block_\1_expand"),
        (r"blocks\.(\d+)\.expand\.bn", r"block_\1_expand_BN"),
        (r"blocks\.(\d+)\.expand\.relu", r"block_\1_expand_relu"),
        (r"blocks\.(\d+)\.(\w+)_bn", r"block_\1_\2_BN"),
        (r"blocks\.(\d+)\.(\w+)", r"block_\1_\2"),
        (r"conv_last", "Conv_1"),
        (r"bn_last", "Conv_1_bn"),
        (r"relu_last", "out_relu"),
    ]
)

DENSENET = Rules(
    [
        (r"(?:conv|pool)1\.pad", "?"),
        (r"conv1\.(conv|bn|relu)", r"conv1_\1"),
        (r"pool1\.pool", "pool1"),
        (r"stages\.(conv\d)\.(block\d+)\.(bn|relu|conv)(\d)", r"\1_\2_\4_\3"),
        (r"stages\.(conv\d)\.(block\d+)\.cat", r"\1_\2_concat"),
        (r"stages\.(pool\d)\.(bn|relu|conv|pool)", r"\1_\2"),
        (r"(bn|relu)", r"\1"),
    ]
)


def _nasnet(cell: str, word: str) -> list[tuple[str, Template]]:
    """Rules of one kind of cell; the first group of the pattern `cell` is the cell's id."""
    return [
        (cell + r"\.(left\d|right\d)\.conv(\d)", rf"separable_conv_\3_{word}_\2_\1"),
        (cell + r"\.(left\d|right\d)\.bn(\d)", rf"separable_conv_\3_bn_{word}_\2_\1"),
        (cell + r"\.(left\d|right\d)\.pad", rf"separable_conv_1_pad_{word}_\2_\1"),
        (cell + r"\.(left\d|right\d)", rf"{word}_\2_\1"),
        (cell + r"\.narrow\.(conv|bn)", rf"{word}_\2_1_\1"),
        (cell + r"\.adjust\.relu1", r"adjust_relu_1_\1"),
        (cell + r"\.adjust\.pool(\d)", r"adjust_avg_pool_\2_\1"),
        (cell + r"\.adjust\.conv(\d)", r"adjust_conv_\2_\1"),
        (cell + r"\.adjust\.conv", r"adjust_conv_projection_\1"),
        (cell + r"\.adjust\.bn", r"adjust_bn_\1"),
        (cell + r"\.adjust\.\w+", "?"),
        (cell + r"\.cat", rf"{word}_concat_\1"),
    ]


NASNET = Rules(
    [
        (r"stem_(conv|bn)", r"stem_\g<1>1"),
        *((rf"normal_(\d+)\.add{'' if i == 1 else f'_{i - 1}'}", rf"normal_add_{i}_\1") for i in range(1, 6)),
        *_nasnet(r"normal_(\d+)", "normal"),
        # Keras names the separable convolutions of the fifth branch left4, like the fourth branch's pooling.
        (r"((?:stem|reduce)_\d+)\.left5\.(conv|bn)(\d)",
         lambda m: f"separable_conv_{m[3]}_{'bn_' * (m[2] == 'bn')}reduction_left4_{m[1]}"),
        (r"((?:stem|reduce)_\d+)\.pad", r"reduction_pad_1_\1"),
        (r"((?:stem|reduce)_\d+)\.add", r"reduction_add_1_\1"),
        (r"((?:stem|reduce)_\d+)\.add_1", r"reduction_add_2_\1"),
        (r"((?:stem|reduce)_\d+)\.add_2", r"reduction_add3_\1"),
        (r"((?:stem|reduce)_\d+)\.add_3", "?"),
        (r"((?:stem|reduce)_\d+)\.add_4", r"reduction_add4_\1"),
        *_nasnet(r"((?:stem|reduce)_\d+)", "reduction"),
    ]
)  # fmt: skip


def _block(ending: str) -> Callable[[re.Match[str]], str]:
    """`stage2.0...` -> `conv2_block1` + ending; `{}` in it is the pattern's third group."""
    return lambda m: " ".join(
        f"conv{m[1]}_block{int(m[2]) + 1}{part}" if part != "?" else part
        for part in ending.format(*m.groups()[2:]).split()
    )


_STAGE = r"stage(\d)\.(\d+)"
_RESNET_BLOCKS: list[tuple[str, Template]] = [
    (_STAGE + r"\.main\.conv(\d)", _block("_{}_conv")),
    (_STAGE + r"\.main\.bn(\d)", _block("_{}_bn")),
    (_STAGE + r"\.main\.relu(\d)", _block("_{}_relu")),
    (_STAGE + r"\.shortcut\.(conv|bn)", _block("_0_{}")),
    (_STAGE + r"\.add", _block("_add")),
    (_STAGE + r"\.relu", _block("_out")),
]
RESNET = Rules(
    [
        (r"pad", "conv1_pad"),
        (r"conv1", "conv1_conv"),
        (r"bn1", "conv1_bn"),
        (r"relu", "conv1_relu"),
        (r"max_pool", "pool1_pad pool1_pool"),
        *_RESNET_BLOCKS,
    ],
    shortcut_first=True,
)
# keras-applications 1.0.8, the last version with ResNeXt, computes a grouped convolution as a depthwise one
# and sums its outputs within each group.
RESNEXT = Rules(
    [(_STAGE + r"\.main\.conv2", _block("_2_pad _2_conv ? _2_reduce ?")), *RESNET.names], shortcut_first=True
)


_LETTERS = "abcdefghijklmnopqrstuvwxyz"


def _course(m: re.Match[str]) -> str:
    """The course's names: res2a_branch2a, bn2a_branch2a, with branch1 for the shortcut."""
    kind = {"conv": "res", "bn": "bn"}[m[3]]
    branch = f"2{'abc'[int(m[4]) - 1]}" if m[4] else "1"
    return f"{kind}{m[1]}{_LETTERS[int(m[2])]}_branch{branch}"


RESNET_COURSE = Rules(
    [
        (r"conv1", "conv1"),
        (r"bn1", "bn_conv1"),
        (_STAGE + r"\.(?:main|shortcut)\.(conv|bn)(\d?)", _course),
    ]
)

RESNET_V2 = Rules(
    [
        (r"pad", "conv1_pad"),
        (r"conv1", "conv1_conv"),
        (r"max_pool\.0", "pool1_pad"),
        (r"max_pool\.1", "pool1_pool"),
        (_STAGE + r"\.(preact_bn|preact_relu)", _block("_{}")),
        (_STAGE + r"\.projection", _block("_0_conv")),
        (_STAGE + r"\.conv2", _block("_2_pad _2_conv")),
        (_STAGE + r"\.(conv|bn|relu)(\d)", lambda m: _block(f"_{m[4]}_{m[3]}")(m)),
        (_STAGE + r"\.add", _block("_out")),
        (r"(post_bn|post_relu)", r"\1"),
    ],
    shortcut_first=True,
)

VGG_NAMES = Rules(
    [
        (r"block\d\.relu\d", ""),
        (r"(block\d)\.(conv\d|pool)", r"\1_\2"),
    ]
)

HAPPY = Rules([(r"(conv0|bn0|max_pool)", r"\1")])
UNNAMED = Rules([])  # the tutorials' small networks have default names only

_BY_CLASS: list[tuple[type[nn.Module], Rules]] = [
    (InceptionV3, INCEPTION_V3),
    (InceptionResnetV2, INCEPTION_RESNET_V2),
    (Xception, XCEPTION),
    (MobileNet, MOBILENET),
    (MobileNetV2, MOBILENET_V2),
    (DenseNet, DENSENET),
    (NASNet, NASNET),
    (ResNetV2, RESNET_V2),
    (VGG, VGG_NAMES),
    (HappyModel, HAPPY),
    (SmallConvNet, UNNAMED),
    (Cifar10Net, UNNAMED),
]


def rules_of(model: nn.Module) -> Rules | None:
    """The table of a network; None if Keras does not have it."""
    if isinstance(model, ResNet):
        if model.max_pool.padding == 0:
            return RESNET_COURSE
        middle = model.get_submodule("stage2.0.main.conv2")
        return RESNEXT if isinstance(middle, nn.Conv2d) and middle.groups > 1 else RESNET
    return next((rules for cls, rules in _BY_CLASS if isinstance(model, cls)), None)


# Names of ResNet's layers before 2018 and in the course.
_OLD = re.compile(r"(res|bn)(\d)([a-z])_branch(1|2[abc])")


def current_names(names: Iterable[str]) -> list[str]:
    """The layer names of a file or table, of any age, as Keras 3 writes them.

    `conv1` is MobileNet's first convolution, and was ResNet's before 2018; the other names decide.
    """
    names = [name.replace("/", "_") for name in names]
    if not any(_OLD.fullmatch(name) for name in names):
        return names
    first = {"conv1": "conv1_conv", "bn_conv1": "conv1_bn"}
    return [_OLD.sub(_from_old, name) if _OLD.fullmatch(name) else first.get(name, name) for name in names]


def _from_old(m: re.Match[str]) -> str:
    layer = "0" if m[4] == "1" else str("abc".index(m[4][1]) + 1)
    return f"conv{m[2]}_block{_LETTERS.index(m[3]) + 1}_{layer}_{'conv' if m[1] == 'res' else 'bn'}"
