"""Several processes compute what one process computes, and end together."""

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import COMMAND, start_python
from torch import nn

from flowers_torch.data.loading.loaders import EpochBatchSampler
from flowers_torch.errors import DistributedError, DivergedError, FlowersError, PeerLostError, UsageError
from flowers_torch.files.tensors import safe_load
from flowers_torch.models.freeze import apply_rules
from flowers_torch.training.device import Runtime
from flowers_torch.training.distributed import SINGLE_PROCESS, Distributed, distributed_context
from flowers_torch.training.optimization import make_optimizer
from flowers_torch.training.state import EpochMetrics, TrainState
from flowers_torch.training.step import train_epoch

RUNTIME = Runtime(torch.device("cpu"), "fp32", "for a test")


def together(folder: Path, work: Callable[[Distributed], Any], size: int = 2) -> list[Any]:
    """Results of forked processes in one process group; an error is given as [name, text]."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(size):
        child = os.fork()
        if child == 0:
            torch.set_num_threads(1)
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
            os.environ |= {"LOCAL_WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1"}
            os.environ["MASTER_PORT"] = str(port)
            try:
                try:
                    with distributed_context("cpu") as distributed:
                        result = work(distributed)
                except FlowersError as error:
                    result = [type(error).__name__, str(error)]
                (folder / f"{rank}.json").write_text(json.dumps(result))
            finally:
                os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(size)]


def test_without_torchrun_there_is_one_process() -> None:
    with distributed_context() as distributed:
        assert distributed is SINGLE_PROCESS and distributed.is_main
    assert distributed.all_reduce_sum(torch.ones(2)).tolist() == [1, 1] and distributed.all_reduce_max(3) == 3
    assert distributed.broadcast("x") == "x"
    assert distributed.shard([4, 5, 6]) == [4, 5, 6]
    model = nn.Linear(1, 1)
    assert distributed.wrap(model) is model


def test_an_incomplete_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with (
        pytest.raises(UsageError, match="RANK, WORLD_SIZE but not LOCAL_RANK, MASTER_ADDR.*torchrun"),
        distributed_context(),
    ):
        pass


@pytest.mark.parametrize(
    ("wanted", "gpus", "expected"),
    [
        ("auto", 2, "cuda:1"),
        ("cuda", 4, "cuda:1"),
        ("auto", 0, "cpu"),  # also on a Mac: gloo exchanges nothing between its GPUs
        ("cpu", 2, "cpu"),
        ("cuda:1", 2, "--device cuda:1 is one device for 4 processes; fix: use cuda or cpu"),
        ("mps", 0, "--device mps is one device for 4 processes"),
        ("auto", 1, "2 processes of this machine need a GPU each, and torch sees 1; fix: start 1 with"),
        ("cuda", 0, "and torch sees 0"),
    ],
)
def test_each_process_has_a_gpu_of_its_own(
    wanted: str, gpus: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second process of two machines with two processes each."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    distributed = Distributed(rank=3, size=4, local_rank=1, local_size=2)
    if expected.startswith(("cuda", "cpu")):
        assert distributed.device(wanted) == expected
    else:
        with pytest.raises(UsageError, match=re.escape(expected)):
            distributed.device(wanted)
    assert Distributed(rank=0, size=1).device(wanted) == wanted


@pytest.mark.parametrize("device", ["cuda:0", "cuda"])
def test_too_few_gpus_are_refused_before_the_processes_connect(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.distributed, "rendezvous", lambda *arguments: pytest.fail("it connects"))
    for rank in ("0", "1"):
        values = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        for name, value in (values | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}).items():
            monkeypatch.setenv(name, value)
        with pytest.raises(UsageError) as found, distributed_context(device):
            pass
        assert found.value.quiet == (rank == "1")  # one line is enough


def test_a_port_in_use_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        values = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
        for name, value in (values | {"MASTER_PORT": str(taken.getsockname()[1])}).items():
            monkeypatch.setenv(name, value)
        with (
            pytest.raises(UsageError, match="cannot connect at 127.0.0.1:.*--master-port"),
            distributed_context("cpu"),
        ):
            pass


@pytest.mark.needs("linux")
@pytest.mark.parametrize("size", [2, 3])
def test_shards_cover_all_items_and_are_gathered_in_order(size: int, tmp_path: Path) -> None:
    def work(distributed: Distributed) -> Any:
        found = []
        for block in (1, 2, 5, 100):
            shard = torch.tensor(distributed.shard(list(range(7)), block), dtype=torch.float32)
            found += [len(shard), distributed.gather(shard[:, None] * 10, 7, block).flatten().tolist()]
        return found

    everything = [0, 10, 20, 30, 40, 50, 60]
    for rank, found in enumerate(together(tmp_path, work, size)):
        assert found[1::2] == [everything] * 4
        assert found[0] == -(-7 // size) and found[6] == 7  # a single block is in every shard
        assert found[2] == ([4, 3] if size == 2 else [3, 3, 3])[rank]  # of the blocks of 2, 2, 2 and 1 items


def doubled(items: Sequence[int]) -> list[tuple[int, int]]:
    """For `spread`: the double of each item, and the process that computed it."""
    return [(2 * item, int(os.environ["RANK"])) for item in items]


@pytest.mark.needs("linux")
def test_the_main_process_leads_and_spreads_its_work(tmp_path: Path) -> None:
    """Each of the processes does a share, in whole blocks; the results and their order are those of one process."""

    def work(distributed: Distributed) -> Any:
        def lead() -> Any:
            assert distributed.is_main
            return [
                distributed.spread(doubled, range(count), block) for count, block in ((7, 1), (7, 3), (1, 1), (0, 1))
            ]

        return distributed.lead(lead)

    first, *others = together(tmp_path, work, 3)
    assert others == [first] * 2
    assert [[double for double, _ in found] for found in first] == [
        list(range(0, 14, 2)),
        list(range(0, 14, 2)),
        [0],
        [],
    ]
    assert [rank for _, rank in first[0]] == [0, 1, 2, 0, 1, 2, 0]
    assert [rank for _, rank in first[1]] == [0, 0, 0, 1, 1, 1, 2]
    assert SINGLE_PROCESS.lead(lambda: SINGLE_PROCESS.spread(lambda items: items[::1], [3])) == [3]


@pytest.mark.needs("linux")
def test_an_error_of_the_main_process_ends_those_that_help_it(tmp_path: Path) -> None:
    def work(distributed: Distributed) -> Any:
        def lead() -> Any:
            distributed.spread(doubled, range(4))
            raise UsageError("it cannot", "let it")

        return distributed.lead(lead)

    first, second = together(tmp_path, work)
    assert first == [UsageError.__name__, "it cannot; fix: let it"] and second[0] == PeerLostError.__name__


@pytest.mark.needs("linux")
def test_time_outs_follow_from_the_work_ahead(tmp_path: Path) -> None:
    """A step has half an hour, and what the main process does alone an hour and 0.1 s for each photo."""

    def work(distributed: Distributed) -> Any:
        def seconds(group: Any) -> float:
            return group._get_backend(torch.device("cpu")).options._timeout.total_seconds()

        groups = [None, distributed.patient, *(distributed.with_time_for(n).patient for n in (100, 1_000_000))]
        found = [seconds(group or torch.distributed.group.WORLD) for group in groups]
        before, distributed = distributed, distributed.with_time_for(36_000)
        return [*found, distributed.broadcast(distributed.rank), before.broadcast(before.rank)]

    for found in together(tmp_path, work):
        assert found == pytest.approx([1800, 86_400, 3610, 103_600, 0, 0], abs=0.01)
    assert SINGLE_PROCESS.with_time_for(10) is SINGLE_PROCESS


def test_each_process_takes_its_shard_of_the_same_batches() -> None:
    whole = EpochBatchSampler(30, 8, seed=0, shuffle=True)
    parts = [EpochBatchSampler(30, 8, 0, True, shard=(rank, 2)) for rank in range(2)]
    for order in (whole, *parts):
        order.epoch, order.skip = 3, 1
    for batch, first, second in zip(whole, *parts, strict=True):
        assert sorted(first + second) == sorted(batch) and abs(len(first) - len(second)) <= 1
    # For prediction each process gets whole batches; the last one is repeated.
    parts = [EpochBatchSampler(35, 8, 0, False, shard=(rank, 2)) for rank in range(2)]
    first, second = ([[position for _, position in batch] for batch in order] for order in parts)
    assert first == [[*range(8)], [*range(16, 24)], [32, 33, 34]] and len(parts[1]) == 3
    assert second == [[*range(8, 16)], [*range(24, 32)], [32, 33, 34]]
    # A last batch with fewer than two images for each process joins the one before.
    assert [len(batch) for batch in EpochBatchSampler(19, 8, 0, True, shard=(0, 2))] == [4, 6]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4 * 36, 3)

    def get_classifier(self) -> nn.Module:
        return self.fc

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.conv(x).relu().flatten(1))


def losses(distributed: Distributed, micro_batch: int = 0, poison: int | None = None) -> list[float]:
    """Mean losses of three epochs of 19 images in batches of 8, and a weight at the end."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(21, 3, 8, 8, generator=generator)
    labels = torch.randint(3, (21,), generator=generator)
    if poison is not None:
        images[poison] = torch.nan
    model = Net()
    optimizer = make_optimizer("sgd", model, apply_rules(model, [("*", 1.0)]), momentum=0.9)
    training = TrainState(model, optimizer, RUNTIME.scaler(), RUNTIME, torch.tensor([0.5, 1.0, 3.0]))
    training.clip_grad, training.micro_batch, training.distributed = 0.5, micro_batch, distributed
    training.network = distributed.wrap(model)
    order = EpochBatchSampler(21, 8, 0, True, shard=(distributed.rank, distributed.size))
    found = []
    for order.epoch in range(3):
        indices = [torch.tensor([position for _, position in batch]) for batch in order]
        batches = [(images[index], labels[index], index) for index in indices]
        metrics = EpochMetrics()
        for _ in train_epoch(training, batches, metrics, 0, lambda step: 0.1, lambda position: f"{position}.jpg"):
            pass
        assert metrics.images == 21
        found.append(metrics.mean_loss)
    return [*found, float(model.fc.weight[0, 0].detach()), metrics.accuracy]


@pytest.mark.needs("linux")
@pytest.mark.parametrize("micro_batch", [0, 2])
def test_two_processes_learn_what_one_process_learns(micro_batch: int, tmp_path: Path) -> None:
    """With class weights, clipping, momentum and a smaller last batch; up to the rounding of float32."""
    alone = losses(SINGLE_PROCESS)
    for found in together(tmp_path, lambda distributed: losses(distributed, micro_batch)):
        assert found == pytest.approx(alone, rel=1e-5)


@pytest.mark.needs("linux")
def test_the_process_that_fails_reports_the_reason(tmp_path: Path) -> None:
    """An image that spoils the loss is in one shard only. Its process names it, the other one is quiet."""
    results = sorted(together(tmp_path, lambda distributed: losses(distributed, poison=5)))
    assert results[0][0] == DivergedError.__name__ and "5.jpg" in results[0][1]
    assert results[1][0] == PeerLostError.__name__


@pytest.mark.needs("linux")
def test_a_lost_process_ends_the_others(tmp_path: Path) -> None:
    def work(distributed: Distributed) -> Any:
        if not distributed.is_main:
            os._exit(0)
        return distributed.all_reduce_sum(torch.ones(())).tolist()

    (tmp_path / "1.json").write_text("null")
    assert together(tmp_path, work)[0][0] == PeerLostError.__name__


@pytest.mark.needs("linux")
def test_processes_with_different_settings_are_refused(tmp_path: Path) -> None:
    def work(distributed: Distributed) -> Any:
        distributed.check_equal({"batch_size": "8", "seed": str(distributed.rank)})

    first, second = together(tmp_path, work)
    text = "seed is 0 in process 0 and 1 in process 1; fix: start all with the same command"
    assert first == [DistributedError.__name__, text]
    assert second[0] == PeerLostError.__name__


@pytest.mark.needs("linux")
def test_the_main_process_goes_first_and_broadcasts(tmp_path: Path) -> None:
    def work(distributed: Distributed) -> Any:
        with distributed.main_first():
            if distributed.is_main:
                (tmp_path / "downloaded").write_text("x")
            there = (tmp_path / "downloaded").exists()
        network = os.environ["GLOO_SOCKET_IFNAME"][:2]  # of one machine: the loopback
        summed = distributed.all_reduce_sum(torch.tensor([distributed.rank, 1])).tolist()
        return [
            there,
            network,
            distributed.broadcast(distributed.rank),
            distributed.all_reduce_max(distributed.rank),
            summed,
        ]

    assert together(tmp_path, work) == [[True, "lo", 0, 1, [1, 2]]] * 2


@pytest.mark.slow
def test_two_processes_fit_the_head_that_one_process_fits(photo_folder: Path, tmp_path: Path) -> None:
    """Both compute features, the main process fits the head by L-BFGS and broadcasts it: everything is the same."""
    root = Path(__file__).parent.parent.parent
    options = ["--arch", "test_resnet", "--weights", "none", "--data", str(photo_folder), "--device", "cpu"]
    options += ["--size", "32", "--precision", "fp32", "--threads", "1", "--head-only"]
    two = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # as torchrun sets it
    for name, how in (("one", []), ("two", two)):
        command = [sys.executable, *how, str(root / "train.py"), *options, "--out", str(tmp_path / name)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
    one, both = (safe_load(tmp_path / name / "model.safetensors")[0] for name in ("one", "two"))
    assert all(torch.equal(value, one[name]) for name, value in both.items())
    for file in ("predictions.csv", "split.json"):
        one, both = ((tmp_path / name / file).read_text() for name in ("one", "two"))
        assert one == both, file


@pytest.mark.parametrize(
    ("message", "is_lost"),
    [("NCCL_DEBUG is not a valid option of gloo", False), ("gloo: Connection closed by peer [::1]", True)],
)
def test_only_the_end_of_a_peer_is_reported_as_a_lost_process(message: str, is_lost: bool, tmp_path: Path) -> None:
    code = (
        "from flowers_torch.runs.experiment import Experiment\n"
        f"def fails(*arguments): raise RuntimeError({message!r})\n"
        "Experiment.new = fails\n"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    where = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    where |= {"MASTER_PORT": str(port), "LOCAL_WORLD_SIZE": "1"}
    words, output = ("train", "--data", "demo", "--device", "cpu"), tmp_path / "output"
    done = start_python(code + COMMAND, *words, output=output, folder=tmp_path, environment=where)
    done.join(60)
    assert done.exitcode
    assert ("another process was lost" in output.read_text()) == is_lost
    assert (message in output.read_text()) != is_lost
