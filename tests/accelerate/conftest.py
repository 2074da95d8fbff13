"""Networks whose fusion would show a mistake."""

from collections.abc import Callable

import pytest
import torch
from torch import nn


@pytest.fixture(scope="session")
def settled() -> Callable[[nn.Module], nn.Module]:
    """Gives a network random statistics of batch norm, the memory layout of training, and no dropout."""

    def change(model: nn.Module) -> nn.Module:
        generator = torch.Generator().manual_seed(1)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None and module.running_var is not None
                module.running_mean.copy_(torch.randn(module.running_mean.shape, generator=generator) / 10)
                module.running_var.copy_(torch.rand(module.running_var.shape, generator=generator) + 0.5)
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        return model.to(memory_format=torch.channels_last)

    return change
