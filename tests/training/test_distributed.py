"""Several processes compute what one computes, and end together."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from flowers_torch.data.loading.loaders import EpochBatchSampler
from flowers_torch.errors import DistributedError, DivergedError, FlowersError, PeerLostError, UsageError
from flowers_torch.files.tensors import safe_load
from flowers_torch.models.freeze import apply_rules
from flowers_torch.training.device import Runtime
from flowers_torch.training.distributed import SINGLE_PROCESS, Distributed, distributed_context
from flowers_torch.training.optimizers import make_optimizer
from flowers_torch.training.state import EpochMetrics, TrainState
from flowers_torch.training.step import train_epoch

RUNTIME = Runtime(torch.device("cpu"), "fp32", "for a test")


def together(folder: Path, work: Callable[[Distributed], Any], size: int = 2) -> list[Any]:
    """What each of some forked processes in contact comes to; an error as [its name, text]."""
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
                    with distributed_context("cpu") as world:
                        result = work(world)
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
    with distributed_context() as world:
        assert world is SINGLE_PROCESS and world.is_main
    assert world.sum(torch.ones(2)).tolist() == [1, 1] and world.most(3) == 3 and world.tell("x") == "x"
    assert world.share([4, 5, 6]) == [4, 5, 6]
    model = nn.Linear(1, 1)
    assert world.wrap(model) is model


def test_half_an_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with (
        pytest.raises(UsageError, match="RANK, WORLD_SIZE but not LOCAL_RANK, MASTER_ADDR.*torchrun"),
        distributed_context(),
    ):
        pass


def test_a_port_in_use_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        values = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
        for name, value in (values | {"MASTER_PORT": str(taken.getsockname()[1])}).items():
            monkeypatch.setenv(name, value)
        with (
            pytest.raises(UsageError, match="cannot meet at 127.0.0.1:.*--master-port"),
            distributed_context("cpu"),
        ):
            pass


@pytest.mark.parametrize("size", [2, 3])
def test_shares_cover_everything_and_are_gathered_in_order(size: int, tmp_path: Path) -> None:
    def work(world: Distributed) -> Any:
        share = torch.tensor(world.share(list(range(7))), dtype=torch.float32)
        return [len(share), world.gather(share[:, None] * 10, 7).flatten().tolist()]

    for length, gathered in together(tmp_path, work, size):
        assert length == -(-7 // size) and gathered == [0, 10, 20, 30, 40, 50, 60]


def test_each_process_takes_its_share_of_the_same_batches() -> None:
    whole = EpochBatchSampler(30, 8, seed=0, shuffle=True)
    parts = [EpochBatchSampler(30, 8, 0, True, shard=(rank, 2)) for rank in range(2)]
    for order in (whole, *parts):
        order.epoch, order.skip = 3, 1
    for batch, first, second in zip(whole, *parts, strict=True):
        assert sorted(first + second) == sorted(batch) and abs(len(first) - len(second)) <= 1
    # A last batch with fewer than two photos for each process joins the one before.
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


def losses(world: Distributed, micro_batch: int = 0, poison: int | None = None) -> list[float]:
    """Mean losses of three epochs of 19 images in batches of 8, and a weight at the end."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(21, 3, 8, 8, generator=generator)
    labels = torch.randint(3, (21,), generator=generator)
    if poison is not None:
        images[poison] = torch.nan
    model = Net()
    optimizer = make_optimizer("sgd", model, apply_rules(model, [("*", 1.0)]), momentum=0.9)
    training = TrainState(model, optimizer, RUNTIME.scaler(), RUNTIME, torch.tensor([0.5, 1.0, 3.0]))
    training.clip_grad, training.micro_batch, training.world = 0.5, micro_batch, world
    training.called = world.wrap(model)
    order = EpochBatchSampler(21, 8, 0, True, shard=(world.rank, world.size))
    found = []
    for order.epoch in range(3):
        indices = [torch.tensor([position for _, position in batch]) for batch in order]
        batches = [(images[index], labels[index], index) for index in indices]
        sums = EpochMetrics()
        for _ in train_epoch(
            training, batches, sums, 0, lambda step: 0.1, lambda position: f"{position}.jpg"
        ):
            pass
        assert sums.photos == 21
        found.append(sums.mean_loss)
    return [*found, float(model.fc.weight[0, 0].detach()), sums.accuracy]


@pytest.mark.parametrize("micro_batch", [0, 2])
def test_two_processes_learn_what_one_learns(micro_batch: int, tmp_path: Path) -> None:
    """Class weights, clipping, momentum and a ragged last batch included; to the rounding of float32."""
    alone = losses(SINGLE_PROCESS)
    for found in together(tmp_path, lambda world: losses(world, micro_batch)):
        assert found == pytest.approx(alone, rel=1e-5)


def test_one_process_says_why_all_end(tmp_path: Path) -> None:
    """A photo that spoils the loss is in one share only; its process names it, the other is quiet."""
    results = sorted(together(tmp_path, lambda world: losses(world, poison=5)))
    assert results[0][0] == DivergedError.__name__ and "5.jpg" in results[0][1]
    assert results[1][0] == PeerLostError.__name__


def test_a_lost_process_ends_the_others(tmp_path: Path) -> None:
    def work(world: Distributed) -> Any:
        if not world.is_main:
            os._exit(0)
        return world.sum(torch.ones(())).tolist()

    (tmp_path / "1.json").write_text("null")
    assert together(tmp_path, work)[0][0] == PeerLostError.__name__


def test_different_facts_are_refused_by_the_main_process(tmp_path: Path) -> None:
    def work(world: Distributed) -> Any:
        world.check_same({"batch_size": "8", "seed": str(world.rank)})

    first, second = together(tmp_path, work)
    text = "seed is 0 in process 0 and 1 in process 1; fix: start all with the same command"
    assert first == [DistributedError.__name__, text]
    assert second[0] == PeerLostError.__name__


def test_the_main_process_goes_first_and_tells(tmp_path: Path) -> None:
    def work(world: Distributed) -> Any:
        with world.main_first():
            if world.is_main:
                (tmp_path / "fetched").write_text("x")
            there = (tmp_path / "fetched").exists()
        network = os.environ["GLOO_SOCKET_IFNAME"][:2]  # of one machine: the loopback
        summed = world.sum(torch.tensor([world.rank, 1])).tolist()
        return [there, network, world.tell(world.rank), world.most(world.rank), summed]

    assert together(tmp_path, work) == [[True, "lo", 0, 1, [1, 2]]] * 2


@pytest.mark.slow
def test_two_processes_fit_the_head_that_one_fits(photo_folder: Path, tmp_path: Path) -> None:
    """The main process fits it by L-BFGS; the second stage then trains on from it in both."""
    root = Path(__file__).parent.parent.parent
    options = ["--arch", "test_resnet", "--weights", "none", "--data", str(photo_folder), "--device", "cpu"]
    options += ["--size", "32", "--precision", "fp32", "--threads", "1", "--head-only"]
    two = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # which torchrun would set for its processes alone
    for name, how in (("one", []), ("two", two)):
        command = [sys.executable, *how, str(root / "train.py"), *options, "--out", str(tmp_path / name)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
    one, both = (safe_load(tmp_path / name / "model.safetensors")[0] for name in ("one", "two"))
    assert all(torch.equal(value, one[name]) for name, value in both.items())
    tests = [json.loads((tmp_path / name / "metrics.json").read_text())["test"] for name in ("one", "two")]
    assert tests[0]["correct"] == tests[1]["correct"]


@pytest.mark.parametrize(
    ("message", "is_lost"),
    [("NCCL_DEBUG is not a valid option of gloo", False), ("gloo: Connection closed by peer [::1]", True)],
)
def test_only_a_peer_s_end_is_called_a_lost_process(message: str, is_lost: bool, tmp_path: Path) -> None:
    code = (
        "import sys; from flowers_torch import cli, recipe\n"
        f"def fails(*arguments): raise RuntimeError({message!r})\n"
        "recipe.prepare_together = fails\n"
        "sys.exit(cli.main(['train', '--data', 'demo', '--device', 'cpu']))"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    where = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    environment = os.environ | where | {"MASTER_PORT": str(port), "LOCAL_WORLD_SIZE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode != 0
    assert ("another process was lost" in done.stdout) == is_lost
    assert (message in done.stderr) != is_lost
