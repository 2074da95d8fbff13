"""Transfer learning for image classification on your own photos, in PyTorch.

from flowers_torch import train

result = train("my_photos")
print(result.accuracy, result.classifier("rose.jpg").label)
"""

from importlib import import_module
from types import FunctionType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from flowers_torch.api.classifier import Classifier
    from flowers_torch.api.training import TrainResult, resume, train
    from flowers_torch.deploy.predictor import Prediction
    from flowers_torch.errors import FlowersError
    from flowers_torch.models.blocks import BasicBlock, ConvolutionalBlock, IdentityBlock, PreActivationBlock
    from flowers_torch.models.factory import create_model
    from flowers_torch.models.freeze import apply_rules, freeze_table, rules_for, set_train_mode
    from flowers_torch.models.heads import set_head
    from flowers_torch.models.own import register_module
    from flowers_torch.models.registry import list_models
    from flowers_torch.models.resnet import resnet50, resnet101, resnet152
    from flowers_torch.runs.compare import compare_runs
    from flowers_torch.runs.listing import list_runs
    from flowers_torch.training.optimization import learning_rate, make_optimizer, set_learning_rate
    from flowers_torch.training.stopping import StopTraining

# The public names by their module. They are imported on first use, so `import flowers_torch` does not load torch.
_MODULES = {
    name: module
    for module, names in {
        "api.classifier": ("Classifier",),
        "api.training": ("TrainResult", "resume", "train"),
        "deploy.predictor": ("Prediction",),
        "errors": ("FlowersError",),
        "models.blocks": ("BasicBlock", "ConvolutionalBlock", "IdentityBlock", "PreActivationBlock"),
        "models.factory": ("create_model",),
        "models.freeze": ("apply_rules", "freeze_table", "rules_for", "set_train_mode"),
        "models.heads": ("set_head",),
        "models.own": ("register_module",),
        "models.registry": ("list_models",),
        "models.resnet": ("resnet50", "resnet101", "resnet152"),
        "runs.compare": ("compare_runs",),
        "runs.listing": ("list_runs",),
        "training.optimization": ("learning_rate", "make_optimizer", "set_learning_rate"),
        "training.stopping": ("StopTraining",),
    }.items()
    for name in names
}

__all__ = ["BasicBlock", "Classifier", "ConvolutionalBlock", "FlowersError", "IdentityBlock", "PreActivationBlock"]
__all__ += ["Prediction", "StopTraining", "TrainResult", "__version__", "apply_rules", "compare_runs", "create_model"]
__all__ += ["freeze_table", "learning_rate", "list_models", "list_runs", "make_optimizer", "register_module"]
__all__ += ["resnet50", "resnet101", "resnet152", "resume", "rules_for", "set_head", "set_learning_rate"]
__all__ += ["set_train_mode", "train"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    if isinstance(found, FunctionType):
        found = import_module(f"{__name__}.api.arguments").for_python(found)
        found.__module__ = __name__  # where pickle finds it
    return globals().setdefault(name, found)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
