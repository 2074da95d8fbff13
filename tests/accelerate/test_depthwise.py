"""The fast gradients of depthwise convolutions are those of torch."""

import pytest
import torch
from torch import nn

from flowers_torch.accelerate.fused_step import FusedUnit
from flowers_torch.files.system import onednn_computes_bf16

BF16 = pytest.param(
    torch.bfloat16,
    marks=pytest.mark.skipif(not onednn_computes_bf16(), reason="oneDNN has no bf16 here"),
)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, BF16])
@pytest.mark.parametrize(("kernel", "dilation"), [(3, 1), (5, 1), ((3, 7), 1), (7, 2)])
def test_depthwise_gradients_are_those_of_torch(
    kernel: int | tuple[int, int], dilation: int, stride: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    rows, columns = (kernel, kernel) if isinstance(kernel, int) else kernel
    padding = (dilation * (rows // 2), dilation * (columns // 2))
    conv = nn.Conv2d(8, 8, kernel, stride, padding, dilation, groups=8)
    inputs = torch.randn(2, 8, 19, 17).contiguous(memory_format=torch.channels_last).requires_grad_()
    unit = FusedUnit(conv, None, nn.ReLU6)
    found: list[torch.Tensor] = []
    expected: list[torch.Tensor] = []
    for call, into in ((unit, found), (lambda maps: conv(maps).clamp(0, 6), expected)):
        conv.zero_grad(set_to_none=True)
        inputs.grad = None
        autocast = torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16 and call is unit)
        with autocast:
            output = call(inputs)
        output.float().square().sum().backward()
        assert conv.weight.grad is not None and conv.bias is not None and conv.bias.grad is not None
        assert inputs.grad is not None
        into += [inputs.grad.clone(), conv.weight.grad.clone(), conv.bias.grad.clone()]
    for one, other in zip(found, expected, strict=True):
        assert (one - other).norm() / other.norm() < (1e-5 if dtype is torch.float32 else 0.03)
