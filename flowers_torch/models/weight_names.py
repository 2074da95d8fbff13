"""From the parameter names of timm and torchvision to those of the handwritten networks.

network = resnet50(lineage="torch")
theirs = timm.create_model("resnet50", pretrained=True).state_dict()
load_matching(network, rename_tensors(theirs, timm_names("resnet50")), "timm's resnet50")
"""

from collections.abc import Mapping
from functools import cache

import timm
import torch
from torch import Tensor

from flowers_torch.errors import ModelFileError, printable
from flowers_torch.models.registry import REGISTRY

# VGG's dense layers are the only ones that torchvision names differently from timm.
TORCHVISION = {
    f"classifier.{place}.{kind}": f"head.{layer}.{kind}"
    for place, layer in ((0, "dense.0"), (3, "dense.3"), (6, "fc"))
    for kind in ("weight", "bias")
}


@cache
def timm_names(arch: str) -> dict[str, str]:
    """Their names -> names in the network `arch`; both define the same tensors in the same order."""
    entry = REGISTRY.get(arch)
    if entry is None or not entry.timm_name:
        return {}
    with torch.device("meta"):  # only the names are needed
        ours = entry.build(num_classes=1000, in_chans=3, **entry.timm_options).state_dict()
        theirs = timm.create_model(entry.timm_name).state_dict()
    return TORCHVISION | dict(zip(theirs, ours, strict=True))


def rename_tensors(state: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """Another library's state dict under the names of the handwritten network.

    A name that is not in `names` stays as it is; `load_matching` checks that all of them fit.

    Raises:
        ModelFileError: two tensors would get the same name.
    """
    found: dict[str, Tensor] = {}
    for theirs, tensor in state.items():
        name = names.get(theirs, theirs)
        if name in found:
            raise ModelFileError(
                f"two of the weights would become {printable(name)}", "use weights of one network only"
            )
        # timm writes VGG's dense layers as convolutions over the whole map; the values have equal order.
        found[name] = tensor.flatten(1) if name.startswith("head.") and tensor.ndim == 4 else tensor
    return found
