"""The call of a network made faster for batches of one size: by torch.compile, or replayed as a CUDA graph.

Both cost time once a stage, which is said. What runs is a function of the batch's size alone, not of what
came before, so an interrupted run goes on with the same arithmetic.
"""

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from flowers_torch.errors import UsageError, printable
from flowers_torch.log import log
from flowers_torch.training.runtime import Runtime

Call = Callable[[Tensor], Any]


class CompiledStep:
    """Calls a network: batches of one size by what `make` makes of it, others as they are.

    Args:
        network: In the modes of its training, which do not change from then on.
        photos: Of the batches that are worth it.
        make: From the network and the first such batch to a function that answers alike.
        done: What the line about the time says was done.
    """

    def __init__(self, network: nn.Module, photos: int, make: Callable[[nn.Module, Tensor], Call], done: str):
        self.network, self.photos, self.make, self.done = network, photos, make, done
        self.made: Call | None = None

    def __call__(self, images: Tensor) -> Any:
        """What the network answers in training."""
        if len(images) != self.photos:
            return self.network(images)
        if self.made is not None:
            return self.made(images)
        started = time.perf_counter()
        self.made = self.make(self.network, images)
        answer = self.made(images)
        seconds = time.perf_counter() - started
        if self.made is not self.network:  # else it was said why not
            log.info(f"quick    {self.done} for batches of {self.photos} photos, in {seconds:.1f} s")
        return answer


def compile_step(
    network: nn.Module,
    runtime: Runtime,
    batch_size: int,
    micro_batch: int = 0,
    processes: int = 1,
    compiled: bool = False,
    cuda_graph: bool = False,
) -> CompiledStep | None:
    """A faster call of a network, or None where none is wanted or, as the log then says, none is possible.

    Args:
        network: What a training step calls.
        runtime: Device and precision.
        batch_size: Photos of a full batch.
        micro_batch: Photos that go through the network at once; 0: the whole batch.
        processes: That train together.
        compiled: Wanted: `torch.compile`.
        cuda_graph: Wanted: forward and backward pass as CUDA graphs; `compiled` goes first.
    """
    if not (compiled or cuda_graph):
        return None
    wanted = "compile" if compiled else "cuda_graph"
    if processes > 1:
        log.info(f"quick    {wanted} is left out: it is for a single process")
        return None
    parts = math.ceil(batch_size / (micro_batch or batch_size))
    if compiled:
        return CompiledStep(network, math.ceil(batch_size / parts), _compile, "compiled")
    if runtime.device.type != "cuda" or parts > 1:
        reason = (
            f"on {runtime.device} there is none" if parts == 1 else "micro-batches add up their gradients"
        )
        log.info(f"quick    cuda_graph is left out: {reason}")
        return None

    def make(network: nn.Module, images: Tensor) -> Call:
        return _capture(network, images, runtime)

    return CompiledStep(network, batch_size, make, "captured as CUDA graphs")


def _compile(network: nn.Module, images: Tensor) -> Call:
    import torch._dynamo

    torch._dynamo.reset()  # else it gives up after some stages or folds, counting those of before

    def forward(images: Tensor) -> Any:
        return network(images)

    call: Call = torch.compile(forward, dynamic=False)  # static shapes: the backward pass is compiled along

    def guarded(images: Tensor) -> Any:
        try:
            return call(images)
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = printable(" ".join(str(error).split()), 160)
            raise UsageError(f"torch.compile fails: {reason}", "leave out --compile") from error

    return guarded


class _Whole(nn.Module):
    """A network inside of another module, whose `forward` may be replaced without harm to the network."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Any:
        return self.network(images)


def _capture(network: nn.Module, images: Tensor, runtime: Runtime) -> Call:
    """The network with both passes as CUDA graphs; the network itself, which is said, where that fails.

    Random numbers stay right: torch counts those that a graph draws, and draws others at each replay.
    """
    whole = _Whole(network)
    buffers = {name: value.clone() for name, value in network.named_buffers()}
    state = torch.cuda.get_rng_state(runtime.device)
    half = torch.autocast("cuda", runtime.dtype, enabled=runtime.precision != "fp32", cache_enabled=False)
    try:
        with half:
            # The input is a static place, into which each batch is copied: not the batch's own memory.
            call: Call = torch.cuda.make_graphed_callables(whole, (images.clone(),), allow_unused_input=True)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        log.info(f"quick    no CUDA graph: {printable(str(error).splitlines()[0], 120)}")
        call = network
    finally:  # warming up has moved batch norm and drawn random numbers
        for name, value in network.named_buffers():
            value.copy_(buffers[name])
        torch.cuda.set_rng_state(state, runtime.device)
    return call
