"""Transfer learning for image classification on your own photos, in PyTorch."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from flowers_torch.api import load, predict, train
    from flowers_torch.models.blocks import BasicBlock, ConvolutionalBlock, IdentityBlock, PreActivationBlock
    from flowers_torch.models.factory import create_model
    from flowers_torch.models.registry import list_models
    from flowers_torch.models.resnet import resnet50, resnet101, resnet152

# Imported on first use, so `import flowers_torch` does not load torch.
_MODULES = {
    "BasicBlock": "flowers_torch.models.blocks",
    "ConvolutionalBlock": "flowers_torch.models.blocks",
    "IdentityBlock": "flowers_torch.models.blocks",
    "PreActivationBlock": "flowers_torch.models.blocks",
    "load": "flowers_torch.api",
    "predict": "flowers_torch.api",
    "train": "flowers_torch.api",
    "resnet50": "flowers_torch.models.resnet",
    "resnet101": "flowers_torch.models.resnet",
    "resnet152": "flowers_torch.models.resnet",
    "create_model": "flowers_torch.models.factory",
    "list_models": "flowers_torch.models.registry",
}

__all__ = [
    "BasicBlock",
    "ConvolutionalBlock",
    "IdentityBlock",
    "PreActivationBlock",
    "__version__",
    "create_model",
    "list_models",
    "load",
    "predict",
    "resnet50",
    "resnet101",
    "resnet152",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
