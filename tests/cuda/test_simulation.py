"""The simulated GPU finds what a real one would refuse, and what would wait for it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from waiting import no_waiting

MISMATCHES: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "sum": lambda there, here: there + here,
    "product": lambda there, here: there @ here,
    "list": lambda there, here: torch.cat([there, here]),
    "in place": lambda there, here: here.add_(there),
    "index": lambda there, here: here[there.long()],
    "where": lambda there, here: torch.where(there > 0, there, here),
    "layer": lambda there, here: nn.functional.linear(here, there),
    "loss": lambda there, here: nn.functional.cross_entropy(there, here[0].long()),
    "zero-dimensional": lambda there, here: there.sum() + here,
    "foreach": lambda there, here: torch._foreach_lerp_([there], [here], 0.5),
    "backward": lambda there, here: Crooked.apply(there.requires_grad_()).sum().backward(),
}
WAITS: dict[str, Callable[[Tensor], Any]] = {
    "item": lambda there: there.sum().item(),
    "bool": lambda there: bool(there.any()),
    "float": lambda there: float(there.mean()),
    "list": lambda there: there.tolist(),
    "cpu": lambda there: there.cpu(),
    "numpy": lambda there: there.cpu().numpy(),
    "device": lambda there: there.to("cpu"),
    "mask": lambda there: there[there > 0],
    "assigned mask": lambda there: there.index_put_((there > 0,), torch.zeros((), device="cuda")),
    "equal": lambda there: torch.equal(there, there),
    "nonzero": lambda there: there.nonzero(),
    "unique": lambda there: there.unique(),
    "indices": lambda there: there[torch.tensor([0])],
    "to the device": lambda there: torch.zeros(3).to("cuda"),
    "not pinned": lambda there: torch.zeros(3).to("cuda", non_blocking=True),
    "new": lambda there: torch.tensor([1.0, 2.0], device="cuda"),
    "new beside": lambda there: there.new_tensor([1.0, 2.0]),
    "weights": lambda there: nn.Conv2d(3, 4, 1, bias=False).to("cuda", memory_format=torch.channels_last),
    "network": lambda there: nn.Linear(3, 3, bias=False).cuda(),
    "repeated": lambda there: there.repeat_interleave(there[0].long(), 0),
    "copy": lambda there: there.copy_(torch.zeros(3, 3)),
    "synchronize": lambda there: torch.cuda.synchronize(),
}
FREE: dict[str, Callable[[Tensor], Any]] = {
    "number": lambda there: there + 1 + torch.tensor(2.0),
    "pinned": lambda there: there + torch.zeros(3).pin_memory().to("cuda", non_blocking=True),
    "to the host": lambda there: there.to("cpu", non_blocking=True),
    "new": lambda there: there + torch.arange(3, device=there.device) + there.new_zeros(3) + torch.ones_like(there),
    "indices": lambda there: there[torch.arange(2, device="cuda")],
    "slice": lambda there: there[:2].T.contiguous(),
    "one hot": lambda there: nn.functional.one_hot(there.long().clamp(0, 2), 3),
    "backward": lambda there: there.requires_grad_().square().sum().backward(),
}


class Crooked(torch.autograd.Function):
    """Its gradient is on the CPU."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return values * 2

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * torch.ones(3, 3)


@pytest.mark.parametrize("name", MISMATCHES)
def test_tensors_of_two_devices_are_refused(name: str, gpu: Any) -> None:
    there, here = torch.ones(3, 3, device="cuda"), torch.ones(3, 3)
    with pytest.raises(RuntimeError, match="same device"):
        MISMATCHES[name](there, here)


@pytest.mark.parametrize("name", WAITS)
def test_what_waits_is_counted(name: str, gpu: Any) -> None:
    there = torch.ones(3, 3, device="cuda")
    assert there.is_cuda and there.device == torch.device("cuda:0") and not gpu.waits
    WAITS[name](there)
    assert len(gpu.waits) == 1, gpu.waits
    if name != "synchronize":  # torch does not count it
        with pytest.raises(RuntimeError, match="called a synchronizing CUDA operation"), no_waiting():
            WAITS[name](there)


def test_an_error_in_a_block_that_must_not_wait_ends_with_it(gpu: Any) -> None:
    """torch's warning, which is an error in tests, would leave its mode on; then every later test fails."""
    there = torch.ones(3, 3, device="cuda")
    with no_waiting():
        there + 1
    with pytest.raises(ZeroDivisionError), no_waiting():
        1 / 0  # noqa: B018
    assert gpu.waits.has_warned and there.sum().item() == 9


@pytest.mark.parametrize("name", FREE)
def test_what_does_not_wait_is_not_counted(name: str, gpu: Any) -> None:
    FREE[name](torch.ones(3, 3, device="cuda"))
    assert not gpu.waits
