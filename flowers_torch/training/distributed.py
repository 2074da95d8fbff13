"""Several processes on one network: torchrun starts and restarts them, torch's DDP adds up their gradients.

Each process takes its share of every batch and of the validation photos. What is added up over the processes
is what one process would have computed, so the same batch size and learning rate give the same run.
"""

import contextlib
import dataclasses
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from flowers_torch.errors import DistributedError, PeerLostError, StoppedError, UsageError, printable
from flowers_torch.log import log

ENVIRONMENT = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # what torchrun sets
# What gloo and NCCL say when the process at the other end is gone.
LOST = (
    *("Connection closed by peer", "Connection reset by peer", "Connection refused", "Broken pipe"),
    *("timeout caused pair closure", "Timed out waiting", "collective operation timeout"),
    *("ncclRemoteError", "remote process exited", "communicator was aborted"),
)

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Distributed:
    """The processes of a run, as one of them sees them; by default there is only this one."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # on this machine
    restarts: int = 0  # of all processes so far, by torchrun

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files and talks."""
        return self.rank == 0

    def device(self, wanted: str) -> str:
        """The device of this process: where there are GPUs, each process takes its own."""
        if self.size > 1 and wanted in ("auto", "cuda") and torch.cuda.is_available():
            return f"cuda:{self.local_rank}"
        return wanted

    def sum(self, values: Tensor) -> Tensor:
        """Sums over the processes, on the device of the values: nothing here waits for a GPU."""
        if self.size == 1:
            return values
        total = values.clone()
        dist.all_reduce(total)
        return total

    def most(self, value: float) -> float:
        """The largest of the processes' values."""
        if self.size == 1:
            return value
        largest = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return largest.item()

    @contextlib.contextmanager
    def main_first(self) -> Iterator[None]:
        """The others come in when the main process has come out; should it fail, they never do."""
        if not self.is_main:
            self.wait()
        yield
        if self.is_main:
            self.wait()

    def tell(self, value: T) -> T:
        """The main process's value, in every process."""
        told = [value]
        if self.size > 1:
            dist.broadcast_object_list(told)
        return told[0]

    def wait(self) -> None:
        """Returns when every process has come here."""
        if self.size > 1:
            dist.barrier()

    def share(self, items: Sequence[T]) -> list[T]:
        """This process's share, as many as every other's: some come twice where it does not work out even."""
        most = -(-len(items) // self.size)
        return [items[min(place * self.size + self.rank, len(items) - 1)] for place in range(most)]

    def gather(self, values: Tensor, count: int) -> Tensor:
        """Values (n, ...) of all shares in the order of the items, each once: (count, ...)."""
        if self.size == 1:
            return values
        parts = [torch.empty_like(values) for _ in range(self.size)]
        dist.all_gather(parts, values.contiguous())
        return torch.stack(parts, dim=1).flatten(0, 1)[:count]  # guard: T03

    def wrap(self, model: nn.Module) -> nn.Module:
        """The network as a training step calls it: its gradients are averaged over the processes."""
        if self.size == 1:
            return model
        on_gpu = next(model.parameters()).device.type == "cuda"
        return DistributedDataParallel(model, device_ids=[self.local_rank] if on_gpu else None)

    def copy_buffers(self, model: nn.Module) -> None:
        """Takes the main process's buffers, such as batch norm's statistics."""
        self._copy(model.buffers())

    def copy_model(self, model: nn.Module) -> None:
        """Takes the main process's weights and buffers."""
        self._copy(model.state_dict().values())

    def _copy(self, tensors: Iterable[Tensor]) -> None:
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor.detach(), src=0)

    def check_same(self, facts: dict[str, str]) -> None:
        """Makes sure that all processes are about to do the same.

        Raises:
            DistributedError: names the first fact in which a process differs from the main one.
        """
        if self.size == 1:
            return
        gathered: list[Any] = [None] * self.size
        dist.all_gather_object(gathered, facts)
        for rank, theirs in enumerate(gathered):
            for name, value in gathered[0].items():
                if theirs.get(name) != value:  # guard: T05
                    what = (
                        f"{name} is {printable(value, 60)} in process 0 and {printable(theirs.get(name), 60)}"
                    )
                    self.fail(
                        DistributedError(f"{what} in process {rank}", "start all with the same command")
                    )

    def fail(self, error: Exception) -> None:
        """Ends every process for a reason that all know of; the main one says it."""
        raise error if self.is_main else PeerLostError()


SINGLE_PROCESS = Distributed()


def sync_gradients_if(last: bool, network: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Gradients add up inside, and are exchanged over the processes only with the last part of a batch."""
    if last or not isinstance(network, DistributedDataParallel):
        return contextlib.nullcontext()
    return network.no_sync()


@contextlib.contextmanager
def distributed_context(device: str = "auto") -> Iterator[Distributed]:
    """The processes that torchrun started, in contact with each other; this one alone without torchrun.

    Args:
        device: As the user wants it: whether to meet over NCCL too.

    Raises:
        UsageError: the environment is set by half, or the processes cannot meet.
        PeerLostError: another process failed, and has said why, or was killed.
    """
    if "RANK" not in os.environ and "WORLD_SIZE" not in os.environ:
        yield SINGLE_PROCESS
        return
    there = [name for name in ENVIRONMENT if name in os.environ]
    if missing := [name for name in ENVIRONMENT if name not in os.environ]:  # guard: T09
        raise UsageError(
            f"the environment has {', '.join(there)} but not {', '.join(missing)}",
            "start with torchrun, or unset them",
        )
    rank, size, local_rank = (int(os.environ[name]) for name in ENVIRONMENT[:3])
    one_machine = os.environ.get("LOCAL_WORLD_SIZE") == str(size)
    if one_machine:  # nobody else needs to reach them
        loopback = "lo0" if sys.platform == "darwin" else "lo"
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)  # guard: T10
        os.environ.setdefault("NCCL_SOCKET_IFNAME", loopback)
    on_gpu = device != "cpu" and torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(local_rank)
    restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))
    try:
        # torchrun keeps one store for all restarts (pytorch issue 135712). Under the names of before, a
        # process could read the address of one that is dead by now, and wait for it for half an hour.
        # Several machines count restarts each for itself, so there the names must stay.
        store, _, _ = next(dist.rendezvous("env://"))
        own = dist.PrefixStore(f"restart {restarts if one_machine else 0}", store)
        backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
        dist.init_process_group(backend, store=own, rank=rank, world_size=size)
    except (RuntimeError, ValueError) as error:
        raise UsageError(
            f"the processes cannot meet at {os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}:"
            f" {printable(' '.join(str(error).split()))}",
            "choose another --master-port of torchrun",
        ) from error
    world = Distributed(rank, size, local_rank, restarts)
    try:
        yield world
        dist.destroy_process_group()
    except StoppedError as error:
        error.quiet = not world.is_main  # all were stopped together
        raise
    except RuntimeError as error:
        store_lost = isinstance(error, dist.DistNetworkError | dist.DistStoreError)
        if store_lost or any(sign in str(error) for sign in LOST):
            log.info("stopped  another process was lost; its own error, or torchrun, says why")
            raise PeerLostError() from error  # guard: T02
        raise
