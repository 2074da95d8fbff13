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
    **dict.fromkeys(("load", "predict", "train"), "api"),
    **dict.fromkeys(("BasicBlock", "ConvolutionalBlock", "IdentityBlock", "PreActivationBlock"), "models.blocks"),
    **dict.fromkeys(("resnet50", "resnet101", "resnet152"), "models.resnet"),
    **{"create_model": "models.factory", "list_models": "models.registry"},
}

__all__ = ["BasicBlock", "ConvolutionalBlock", "IdentityBlock", "PreActivationBlock", "__version__", "create_model"]
__all__ += ["list_models", "load", "predict", "resnet50", "resnet101", "resnet152", "train"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
