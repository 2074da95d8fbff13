"""The names of Keras's layers, from the tables in `layer_names.toml`, their older spellings, and published figures."""

import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from string import ascii_lowercase
from typing import NamedTuple

from torch import nn

from flowers_torch.models.inception_v3 import InceptionV3
from flowers_torch.models.network import Network
from flowers_torch.models.resnet import ResNet

TABLES = tomllib.loads(Path(__file__).with_name("layer_names.toml").read_text(encoding="utf-8"))
PUBLISHED = tomllib.loads(Path(__file__).with_name("published.toml").read_text(encoding="utf-8"))


def published_by_keras(keras_name: str, min_size: int) -> dict[str, float]:
    """`megabytes`, `top1`, `top5`, `min_size` (of Keras 2.0, if not ours) and maybe `depth` of a network of Keras."""
    return {"min_size": min_size} | PUBLISHED[keras_name]


class Rules(NamedTuple):
    """The table of a network."""

    names: dict[str, str]
    # Keras's sums are shortcut + main path, ours main path + shortcut. The order decides Keras's numbering.
    shortcut_first: bool = False

    def name_of(self, name: str) -> str | None:
        """Keras's name or names for a node of `trace`; None for a default name."""
        for pattern, template in self.names.items():
            if match := re.fullmatch(pattern, name):
                return re.sub(r"\{(\d+)(\+1|a)\}", _computed, match.expand(template))
        return None


def _computed(m: re.Match[str]) -> str:
    return str(int(m[1]) + 1) if m[2] == "+1" else ascii_lowercase[int(m[1])]


def has_gamma(model: nn.Module) -> bool:
    """Whether this network's batch norms have a gamma in Keras; without it (scale=False) it exists here and is 1."""
    return not (isinstance(model, InceptionV3) or _is_inception_resnet(model))


def _is_inception_resnet(model: nn.Module) -> bool:
    """Whether a network is timm's InceptionResNetV2; the name does not need timm, which takes a second to import."""
    kind = type(model)
    return (kind.__module__, kind.__name__) == ("timm.models.inception_resnet_v2", "InceptionResnetV2")


def rules_of(model: nn.Module) -> Rules | None:
    """The table of a network; None if Keras does not have it."""
    if isinstance(model, ResNet):
        if model.max_pool.padding == 0:
            return Rules(TABLES["ResNet_course"])
        middle = model.get_submodule("stage2.0.main.conv2")
        is_resnext = isinstance(middle, nn.Conv2d) and middle.groups > 1
        return Rules((TABLES["ResNeXt"] if is_resnext else {}) | TABLES["ResNet"], shortcut_first=True)
    name = type(model).__name__
    if (isinstance(model, Network) or not has_gamma(model)) and name in TABLES:
        return Rules(TABLES[name], name in ("InceptionResnetV2", "ResNetV2"))
    return None


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
    return f"conv{m[2]}_block{ascii_lowercase.index(m[3]) + 1}_{layer}_{'conv' if m[1] == 'res' else 'bn'}"
