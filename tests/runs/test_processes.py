"""Runs and commands in two processes: the results of one process, for half of the work in each."""

import contextlib
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from subprocess import PIPE, STDOUT
from typing import Any

import pytest
import torch

from flowers_torch import cli
from flowers_torch.config import Config, Stage
from flowers_torch.data.quality import scan
from flowers_torch.deploy.predictor import Predictor
from flowers_torch.files.tensors import safe_load
from flowers_torch.runs import feature_cache, recipe
from flowers_torch.runs.dataset import on_this_machine, open_images

MakeConfig = Callable[..., Config]


def in_processes(folder: Path, work: Callable[[], Any], size: int = 2) -> list[dict[str, Any]]:
    """For each of some forked processes of one start: its result, its output, and what it computed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    children = []
    for rank in range(size):
        child = os.fork()
        if child == 0:
            try:
                torch.set_num_threads(1)
                os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
                os.environ |= {"LOCAL_WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
                os.environ["FLOWERS_TORCH_CACHE"] = str(folder / "cache")
                (folder / f"{rank}.json").write_text(json.dumps(observed(work)))
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(size)]


def observed(work: Callable[[], Any]) -> dict[str, Any]:
    """What a piece of work returns and prints, and the photos that were inspected, embedded and classified for it."""
    counts, inspected = {"embedded": 0, "classified": 0}, list[None]()
    inspect, run_backbone, classify = scan.Worker.inspect, feature_cache.FeatureCache._run_backbone, Predictor.classify

    def count_inspected(self: Any, *arguments: Any) -> Any:
        inspected.append(None)  # from several threads
        return inspect(self, *arguments)

    def count_embedded(self: Any, *arguments: Any) -> Any:
        for rows in run_backbone(self, *arguments):
            counts["embedded"] += len(rows)
            yield rows

    def count_classified(self: Any, inputs: Any, *arguments: Any) -> Any:
        counts["classified"] += len(inputs)
        return classify(self, inputs, *arguments)

    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as out:
        patch.setattr(scan.Worker, "inspect", count_inspected)
        patch.setattr(feature_cache.FeatureCache, "_run_backbone", count_embedded)
        patch.setattr(Predictor, "classify", count_classified)
        result = work()
    return {"result": result, "out": out.getvalue(), **counts, "inspected": len(inspected)}


def outcome(folder: Path) -> dict[str, Any]:
    """What a run leaves, without the seconds that it took."""
    found = {name: (folder / name).read_text() for name in ("predictions.csv", "split.json")}
    metrics = json.loads((folder / "metrics.json").read_text())
    del metrics["best_epoch"]["seconds"], metrics["best_epoch"]["images_per_second"]
    return found | {"metrics": metrics, "weights": safe_load(folder / "model.safetensors")[0]}


def both(tmp_path: Path, work: Callable[[Path], Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """`work` in one process, and in two, each with a cache of its own."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    (alone,) = in_processes(tmp_path / "one", lambda: work(tmp_path / "one/run"), 1)
    return alone, in_processes(tmp_path / "two", lambda: work(tmp_path / "two/run"))


def test_a_fitted_head_is_that_of_one_process(make_config: MakeConfig, tmp_path: Path) -> None:
    """Photos are inspected, hashed and embedded by halves. Every number is the same to the bit."""
    config = make_config(
        Stage(name="head", epochs=1, train="head", optimizer="lbfgs", cached_views=2, augment="mirror")
    )

    def work(out: Path) -> Any:
        return str(recipe.train(config, out).folder)

    alone, two = both(tmp_path, work)
    one, other = outcome(tmp_path / "one/run"), outcome(tmp_path / "two/run")
    weights, theirs = one.pop("weights"), other.pop("weights")
    assert one == other
    assert all(torch.equal(value, theirs[name]) for name, value in weights.items())
    assert alone["inspected"] == 60 and [each["inspected"] for each in two] == [30, 30]
    batches = config.batch_size
    for each in two:  # a batch that is left over is computed twice
        assert alone["embedded"] / 2 <= each["embedded"] <= alone["embedded"] / 2 + 5 * batches
    assert "in each of 2 processes" in (tmp_path / "two/run/log.txt").read_text()
    assert not two[1]["out"]


def test_steps_on_cached_features_are_those_of_one_process(make_config: MakeConfig, tmp_path: Path) -> None:
    """Gradients of halves are averaged, so the weights differ by the rounding of float32."""
    stage = Stage(name="head", epochs=3, train="head", lr=0.01, cached_views=2, augment="light")  # random views, too
    config = make_config(stage)

    def work(out: Path) -> Any:
        return [row["val_loss"] for row in recipe.train(config, out).history]

    alone, two = both(tmp_path, work)
    assert two[0]["result"] == two[1]["result"] == pytest.approx(alone["result"], rel=1e-5)
    weights, theirs = (outcome(tmp_path / name / "run")["weights"] for name in ("one", "two"))
    assert all(torch.allclose(value, theirs[name], rtol=1e-4, atol=1e-6) for name, value in weights.items())
    assert 0 < two[1]["embedded"] < alone["embedded"]


def test_check_and_predict_print_what_one_process_prints(
    photo_folder: Path, finished: recipe.Result, tmp_path: Path
) -> None:
    for number, command in enumerate(
        (["check", str(photo_folder), "--json"], ["predict", str(finished.folder), str(photo_folder), "--csv"])
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        alone, two = both(folder, lambda out, command=command: cli.main([*command, *size_of(command)]))
        assert alone["result"] == two[0]["result"] == two[1]["result"] == 0
        assert two[0]["out"] == alone["out"] and len(alone["out"]) > 1000 and two[1]["out"] == ""
        kind = ("inspected", "classified")[number]
        assert alone[kind] == 60 and sorted(each[kind] for each in two) == ([30, 30], [28, 32])[number]


def size_of(command: list[str]) -> list[str]:
    return ["--batch-size", "8", "--device", "cpu"] if command[0] == "predict" else ["--workers", "1"]


def test_a_photo_that_cannot_be_read_ends_both_with_one_line(
    photo_folder: Path, finished: recipe.Result, tmp_path: Path, capfd: Any
) -> None:
    """`predict` goes on, and both processes exit as one does."""
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no photo")
    command = ["predict", str(finished.folder), str(photo_folder), str(bad), "--csv", "--device", "cpu"]
    results = in_processes(tmp_path, lambda: cli.main(command))
    assert [each["result"] for each in results] == [3, 3]
    assert results[0]["out"].count("\n") == 62 and "bad.jpg" in results[0]["out"].splitlines()[-1]
    assert capfd.readouterr().err.count("1 of 61 photos could not be read") == 1


def test_another_machine_unpacks_the_photos_for_itself(
    make_config: MakeConfig, photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the main process found is used as it is, at the place where the photos are on this machine."""
    archive = shutil.make_archive(str(tmp_path / "photos"), "zip", photo_folder)
    config = make_config(data=archive)
    monkeypatch.setenv("FLOWERS_TORCH_CACHE", str(tmp_path / "first"))
    found = open_images(config)
    assert on_this_machine(found, config) is found
    (tmp_path / "first").rename(tmp_path / "elsewhere")
    monkeypatch.setenv("FLOWERS_TORCH_CACHE", str(tmp_path / "second"))
    here = on_this_machine(found, config).dataset
    assert here.paths == found.dataset.paths and here.root != found.dataset.root
    assert all((here.root / path).is_file() for path in here.paths)


@pytest.mark.slow
def test_two_machines_compute_what_one_process_computes(photo_folder: Path, tmp_path: Path) -> None:
    """Two agents of torchrun that meet over the network, each with a cache of its own."""
    root = Path(__file__).parent.parent.parent
    archive = shutil.make_archive(str(tmp_path / "photos"), "zip", photo_folder)
    options = ["--arch", "test_resnet", "--weights", "none", "--data", archive, "--device", "cpu", "--size", "32"]
    options += ["--precision", "fp32", "--threads", "1", "--head-only"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{free.getsockname()[1]}"
    meet = ["--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", f"--rdzv-endpoint={place}", "--rdzv-id=two"]
    agent = ["-m", "torch.distributed.run", *meet, "--local-addr=127.0.0.1"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}

    def start(how: list[str], out: str, cache: str) -> "subprocess.Popen[str]":
        command = [sys.executable, *how, str(root / "train.py"), *options, "--out", str(tmp_path / out)]
        places = {"FLOWERS_TORCH_CACHE": str(tmp_path / cache)}
        return subprocess.Popen(command, env=environment | places, stdout=PIPE, stderr=STDOUT, text=True)

    alone = start([], "one", "cache0")
    machines = [start(agent, "two", "cache1"), start(agent, "two", "cache2")]
    texts = [process.communicate(timeout=300)[0] for process in (alone, *machines)]
    assert [process.returncode for process in (alone, *machines)] == [0, 0, 0], "".join(texts)
    one, both = outcome(tmp_path / "one"), outcome(tmp_path / "two")
    weights, theirs = one.pop("weights"), both.pop("weights")
    assert one == both and all(torch.equal(value, theirs[name]) for name, value in weights.items())
    assert sum(text.count("stage    1 of 1") for text in texts[1:]) == 1
    assert "in each of 2 processes" in "".join(texts[1:])
