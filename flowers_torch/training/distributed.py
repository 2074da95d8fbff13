"""Several processes that train one network: torchrun starts and restarts them, DDP averages their gradients.

Each process takes its shard of every batch and of the validation images. The sums over the processes are what
one process would have computed, so the same batch size and learning rate give the same run. What the main process
decides alone, it does inside `lead`, where the others do a part of what it spreads.

Two time-outs end a run whose processes wait for each other for no good reason: `STEP_TIME` for what all do together,
and one for what the main process does alone, which is in proportion to the photos. A process that dies is noticed
immediately, because its connections close.
"""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from flowers_torch.data.spread import Spread, alone
from flowers_torch.errors import DistributedError, PeerLostError, StoppedError, UsageError, printable
from flowers_torch.files.system import loopback_interface
from flowers_torch.log import log

ENVIRONMENT = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # what torchrun sets
# Messages of gloo and NCCL when the process at the other end is gone.
LOST = (
    *("Connection closed by peer", "Connection reset by peer", "Connection refused", "Broken pipe"),
    *("timeout caused pair closure", "Timed out waiting", "collective operation timeout"),
    *("ncclRemoteError", "remote process exited", "communicator was aborted"),
)

STEP_TIME = timedelta(minutes=30)  # for a step, a batch of features or a checkpoint
START_TIME = timedelta(days=1)  # for the main process alone, as long as it may download and count the photos
HOURS_ALONE = 1.0  # for the main process alone, once the photos are counted, and
SECONDS_PER_IMAGE = 0.1  # more for each of them

T = TypeVar("T")
R = TypeVar("R")


@dataclasses.dataclass(frozen=True)
class Distributed:
    """The processes of a run, as seen by one of them; by default there is only this one."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # on this machine
    restarts: int = 0  # of all processes so far, by torchrun
    local_size: int = 1  # processes on this machine
    patient: Any = None  # process group for waiting for the main process; None for the usual one

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files and the log."""
        return self.rank == 0

    def device(self, wanted: str) -> str:
        """The device of this process: of several processes each takes a GPU of its own, or all take the CPU.

        Raises:
            UsageError: the user wants a certain GPU for all, or there are fewer GPUs than processes.
        """
        if self.size == 1 or wanted == "cpu":
            return wanted
        gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if wanted == "auto" and not gpus:
            return "cpu"  # gloo exchanges nothing between GPUs of Apple
        if wanted not in ("auto", "cuda"):
            what = f"--device {printable(wanted, 40)} is one device for {self.size} processes"
            raise UsageError(what, "use cuda or cpu")
        if self.local_size > gpus:
            what = f"{self.local_size} processes of this machine need a GPU each, and torch sees {gpus}"
            raise UsageError(what, f"start {gpus} with --nproc-per-node, or add --device cpu")
        return f"cuda:{self.local_rank}"

    def all_reduce_sum(self, values: Tensor) -> Tensor:
        """Sums over the processes, on the device of the values, without waiting for a GPU."""
        if self.size == 1:
            return values
        total = values.clone()
        dist.all_reduce(total)
        return total

    def all_reduce_max(self, value: float) -> float:
        """The largest of the processes' values."""
        if self.size == 1:
            return value
        largest = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return largest.item()

    @contextlib.contextmanager
    def main_first(self) -> Iterator[None]:
        """The other processes enter when the main process has left; if it fails, they never do."""
        if not self.is_main:
            self.barrier()
        yield
        if self.is_main:
            self.barrier()

    def lead(self, work: Callable[[], T]) -> T:
        """What `work` returns in the main process, in every process; the others help with what it spreads."""
        if self.is_main:
            result = work()
            self.broadcast((None, result))
            return result
        while True:
            nothing: tuple[Any, Any] = (None, None)
            task, content = self.broadcast(nothing)
            if task is None:
                done: T = content
                return done
            items, block = content
            dist.gather_object(task(self._shard_of(items, block, self.rank)), group=self.patient)

    @property
    def spread(self) -> Spread:
        """Computes a function of a list in all processes; only inside `lead`, in the main process.

        The function and its results must be picklable, so it is one of a module, with its arguments bound.
        """
        return alone if self.size == 1 else self._spread

    def _spread(self, work: Callable[[Sequence[T]], list[R]], items: Sequence[T], block: int = 1) -> list[R]:
        self.broadcast((work, (items, block)))
        parts: list[Any] = [None] * self.size
        dist.gather_object(work(self._shard_of(items, block, 0)), parts, group=self.patient)
        places = [self._shard_of(range(len(items)), block, rank) for rank in range(self.size)]
        found = {i: r for own, results in zip(places, parts, strict=True) for i, r in zip(own, results, strict=True)}
        return [found[place] for place in range(len(items))]

    def _shard_of(self, items: Sequence[T], block: int, rank: int) -> list[T]:
        """Every so many blocks of items, for one of the processes."""
        return [item for place, item in enumerate(items) if place // block % self.size == rank]

    def broadcast(self, value: T) -> T:
        """The main process's value, in every process."""
        values = [value]
        if self.size > 1:
            dist.broadcast_object_list(values, group=self.patient)
        return values[0]

    def barrier(self) -> None:
        """Returns when every process has reached it."""
        if self.size > 1:
            dist.barrier(group=self.patient)

    def with_time_for(self, images: int) -> "Distributed":
        """These processes, waiting for the main one as long as it may need alone for so many images.

        It lists and compares them, fits linear heads on their features, and writes files.
        """
        if self.size == 1:
            return self
        limit = timedelta(hours=HOURS_ALONE, seconds=SECONDS_PER_IMAGE * images)
        step, hours = STEP_TIME.total_seconds() / 60, limit.total_seconds() / 3600
        log.info(f"time-out {step:.0f} minutes for a step, {hours:.1f} hours for what the main process does alone")
        return dataclasses.replace(self, patient=dist.new_group(backend="gloo", timeout=limit))

    def shard(self, items: Sequence[T], block: int = 1) -> list[T]:
        """This process's shard: every so many blocks of items; where they do not suffice, the last one is repeated.

        All processes have equally many blocks. With the batch size as block they see the batches that one process sees.
        """
        blocks = -(-len(items) // block)
        chosen = (min(turn * self.size + self.rank, blocks - 1) for turn in range(-(-blocks // self.size)))
        return [item for number in chosen for item in items[number * block : (number + 1) * block]]

    def gather(self, values: Tensor, count: int, block: int = 1) -> Tensor:
        """Values (n, ...) of all shards of `count` items in their order, each once: (count, ...)."""
        if self.size == 1:
            return values
        turns = -(-count // (block * self.size))
        padded = values.new_zeros((turns * block, *values.shape[1:]))
        padded[: len(values)] = values
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(parts, padded)
        blocks = [part.unflatten(0, (turns, block)) for part in parts]
        return torch.stack(blocks, dim=1).flatten(0, 2)[:count]  # guard: T03

    def wrap(self, model: nn.Module) -> nn.Module:
        """The network as a training step calls it: DDP averages its gradients over the processes."""
        if self.size == 1:
            return model
        on_gpu = next(model.parameters()).device.type == "cuda"
        return DistributedDataParallel(model, device_ids=[self.local_rank] if on_gpu else None)

    def broadcast_tensors(self, tensors: Iterable[Tensor]) -> None:
        """Copies the main process's values into the tensors of every process."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor.detach(), src=0)

    def check_equal(self, values: dict[str, str]) -> None:
        """Checks that all processes are about to do the same.

        Raises:
            DistributedError: names the first value in which a process differs from the main one.
        """
        if self.size == 1:
            return
        gathered: list[Any] = [None] * self.size
        dist.all_gather_object(gathered, values)
        for rank, theirs in enumerate(gathered):
            for name, value in gathered[0].items():
                if theirs.get(name) != value:  # guard: T05
                    here, there = printable(value, 60), printable(theirs.get(name), 60)
                    what = f"{name} is {here} in process 0 and {there} in process {rank}"
                    self.fail(DistributedError(what, "start all with the same command"))

    def fail(self, error: Exception) -> NoReturn:
        """Ends every process for a reason that all of them know; the main one reports it."""
        raise error if self.is_main else PeerLostError()


SINGLE_PROCESS = Distributed()


def device_of_process(wanted: str) -> str:
    """The device that a process of torchrun uses: its own GPU where there are any."""
    if "LOCAL_RANK" in os.environ and wanted in ("auto", "cuda") and torch.cuda.is_available():
        return f"cuda:{os.environ['LOCAL_RANK']}"
    return wanted


def sync_gradients_if(last: bool, network: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Gradients are exchanged over the processes only with the last micro-batch of a batch."""
    if last or not isinstance(network, DistributedDataParallel):
        return contextlib.nullcontext()
    return network.no_sync()


@contextlib.contextmanager
def distributed_context(device: str = "auto") -> Iterator[Distributed]:
    """The process group that torchrun started, or this process alone without torchrun.

    Args:
        device: The option of the user; NCCL is used too unless it is cpu.

    Raises:
        UsageError: the environment is incomplete, or the processes cannot connect.
        PeerLostError: another process failed and reported why, or was killed.
    """
    if "RANK" not in os.environ and "WORLD_SIZE" not in os.environ:
        yield SINGLE_PROCESS
        return
    there = [name for name in ENVIRONMENT if name in os.environ]
    if missing := [name for name in ENVIRONMENT if name not in os.environ]:  # guard: T09
        what = f"the environment has {', '.join(there)} but not {', '.join(missing)}"
        raise UsageError(what, "start with torchrun, or unset them")
    rank, size, local_rank = (int(os.environ[name]) for name in ENVIRONMENT[:3])
    one_machine = os.environ.get("LOCAL_WORLD_SIZE") == str(size)
    if one_machine:  # no other machine needs to reach them
        for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            if interface := loopback_interface():
                os.environ.setdefault(name, interface)  # guard: T10
    restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", local_rank + 1))
    distributed = Distributed(rank, size, local_rank, restarts, local_size)
    try:
        on_gpu = distributed.device(device).startswith("cuda")
    except UsageError as error:
        error.quiet = local_rank > 0  # all processes of this machine find the same
        raise
    try:
        # torchrun keeps one store for all restarts (pytorch issue 135712). Under the same prefix a process
        # could read the address of one that is dead, and wait for it for half an hour. On several machines
        # each one counts its own restarts, so the prefix must stay the same there.
        store, _, _ = next(dist.rendezvous("env://"))
        own = dist.PrefixStore(f"restart {restarts if one_machine else 0}", store)
        backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
        dist.init_process_group(backend, store=own, rank=rank, world_size=size, timeout=STEP_TIME)
        patient = dist.new_group(backend="gloo", timeout=START_TIME)
    except (RuntimeError, ValueError) as error:
        place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        what = f"the processes cannot connect at {place}: {printable(' '.join(str(error).split()))}"
        raise UsageError(what, "choose another --master-port of torchrun") from error
    distributed = dataclasses.replace(distributed, patient=patient)
    try:
        yield distributed
        dist.destroy_process_group()
    except StoppedError as error:
        error.quiet = not distributed.is_main  # all were stopped together
        raise
    except RuntimeError as error:
        store_lost = isinstance(error, dist.DistNetworkError | dist.DistStoreError)
        if store_lost or any(sign in str(error) for sign in LOST):
            log.info("stopped  another process was lost; its own error or torchrun says why")
            raise PeerLostError() from error  # guard: T02
        raise
