"""The commands on a Mac with Apple silicon, simulated by macos.py."""

import contextlib
import json
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from flowers_torch.cli import main
from flowers_torch.data.loading.gpu_cache import to_device
from flowers_torch.deploy.predictor import Predictor
from flowers_torch.files import system
from flowers_torch.runs import stage as stage_module
from flowers_torch.training.device import choose_runtime

sys.path.append(str(Path(__file__).parent))
from macos import MPSTensor, simulated

pytestmark = [
    pytest.mark.needs("linux"),
    # What torch itself calls for a norm of such tensors.
    pytest.mark.filterwarnings("ignore:at..frobenius_norm is deprecated:UserWarning"),
]
WriteOptions = Callable[..., Path]


@pytest.fixture(autouse=True)
def mac() -> Iterator[None]:
    with simulated():
        yield


@pytest.fixture(scope="module")
def train(photo_folder: Path, write_options: WriteOptions) -> Callable[..., dict[str, Any]]:
    """Trains in folder/run and returns the metrics."""

    def make(folder: Path, **options: str) -> dict[str, Any]:
        path = write_options(folder, **{"device": "mps"} | options)
        assert main(["train", "--config", str(path), "--data", str(photo_folder), "--out", str(folder / "run")]) == 0
        metrics: dict[str, Any] = json.loads((folder / "run/metrics.json").read_text())
        return metrics

    return make


@pytest.fixture(scope="module")
def run(train: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("mac")
    with simulated():
        train(folder)
    return folder / "run"


def backward_of_batch_norm(layout: torch.memory_format) -> torch.Tensor:
    images = torch.randn(2, 3, 4, 4).to("mps").to(memory_format=layout).requires_grad_()
    network = torch.nn.BatchNorm2d(3).to("mps")
    network(images).square().sum().backward()
    return network.weight.grad  # type: ignore[return-value]


GRID = torch.zeros(1, 2, 2, 2)
REFUSED: dict[str, tuple[Callable[[], Any], type[BaseException]]] = {
    "float64": (lambda: torch.zeros(3, dtype=torch.float64).to("mps"), TypeError),
    "double": (lambda: torch.zeros(3, device="mps").double(), TypeError),
    "devices": (lambda: torch.zeros(3, device="mps") + torch.zeros(3), RuntimeError),
    "waiting": (lambda: torch.zeros(3).to("mps", non_blocking=True), AssertionError),
    "layout": (lambda: backward_of_batch_norm(torch.channels_last), AssertionError),
    "border": (lambda: F.grid_sample(GRID.to("mps"), GRID.to("mps"), "bilinear", "border", False), RuntimeError),
    "pooling": (lambda: F.adaptive_avg_pool2d(torch.rand(1, 1, 5, 5).to("mps"), 4), RuntimeError),
    "oneDNN": (lambda: torch.ops.mkldnn._convolution_pointwise, AttributeError),
}


@pytest.mark.parametrize("name", REFUSED)
def test_the_simulation_refuses_what_mps_refuses(name: str) -> None:
    action, error = REFUSED[name]
    with pytest.raises(error):
        action()


def test_the_simulation_computes() -> None:
    assert isinstance(backward_of_batch_norm(torch.contiguous_format), MPSTensor)
    assert torch.arange(3, device="mps").add_(1).tolist() == [1, 2, 3]
    assert float((torch.ones(2, 2).to("mps") @ torch.ones(2, 2, device="mps")).sum()) == 8
    assert torch.full((), 2.0, device="mps").device.type == "mps"


def test_the_runtime_of_a_mac() -> None:
    runtime = choose_runtime()
    assert (runtime.device.type, runtime.precision) == ("mps", "fp32") and runtime.fixed
    network = runtime.place(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)))
    assert network[0].weight.is_contiguous() and network[0].weight.device.type == "mps"
    images = runtime.images(torch.randn(2, 3, 8, 8).contiguous(memory_format=torch.channels_last))
    assert images.is_contiguous() and images.device.type == "mps"
    assert to_device(torch.tensor([1, 2]), "mps").tolist() == [1, 2]
    assert system.onednn_convolution() is None


def test_a_run_computes_what_the_cpu_computes(run: Path, train: Callable[..., Any], tmp_path: Path) -> None:
    ours = json.loads((run / "metrics.json").read_text())
    theirs = train(tmp_path, device="cpu")
    assert ours["test"]["loss"] == pytest.approx(theirs["test"]["loss"], rel=1e-3)
    assert ours["test"]["accuracy"] == theirs["test"]["accuracy"]


def test_an_interrupted_run_resumes(
    run: Path, photo_folder: Path, tmp_path: Path, write_options: WriteOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, steps = stage_module.train_epoch, iter(range(8))

    def interrupted(*arguments: Any) -> Iterator[float]:
        for rate in real(*arguments):
            if next(steps, None) is None:
                raise KeyboardInterrupt
            yield rate

    monkeypatch.setattr(stage_module, "train_epoch", interrupted)
    options = write_options(tmp_path, device="mps")
    command = ["train", "--config", str(options), "--data", str(photo_folder), "--out", str(tmp_path / "run")]
    assert main(command) == 130
    monkeypatch.setattr(stage_module, "train_epoch", real)
    assert main(["train", "--resume", str(tmp_path / "run")]) == 0
    resumed, whole = (json.loads((each / "metrics.json").read_text()) for each in (tmp_path / "run", run))
    assert resumed["test"] == whole["test"]


def test_the_commands_of_a_day(
    run: Path, photo_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = str(photo_folder / "red" / "0.png")
    assert main(["predict", str(run), photo, "--csv", "--gradcam", str(tmp_path / "explained")]) == 0
    assert "red" in capsys.readouterr().out and list((tmp_path / "explained").iterdir())
    assert main(["evaluate", str(run)]) == 0
    assert main(["check", str(photo_folder), "--out", str(tmp_path / "checked")]) == 0
    assert main(["export", str(run), "--format", "safetensors", "--out", str(tmp_path / "model.safetensors")]) == 0
    assert main(["doctor"]) == 0
    assert "mps" in capsys.readouterr().out


def test_an_augmentation_that_repeats_the_border(train: Callable[..., Any], tmp_path: Path) -> None:
    assert train(tmp_path, augment="alexnet")["test"]["images"] > 0


def test_serve(run: Path, photo_folder: Path) -> None:
    pytest.importorskip("starlette", reason="needs starlette, of the extra serve")
    from flowers_torch.commands.serve import listen, make_server
    from flowers_torch.deploy.serve import Limits, Service, make_app

    service = Service(Predictor.load(run, choose_runtime()), "run", Limits())
    with listen("127.0.0.1", 0) as listener, contextlib.ExitStack() as stack:
        server = make_server(make_app(service))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        stack.callback(thread.join)
        stack.callback(setattr, server, "should_exit", True)
        while not server.started and thread.is_alive():
            time.sleep(0.01)
        photo = (photo_folder / "red" / "0.png").read_bytes()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/api/predict"
        request = urllib.request.Request(url, photo, {"Content-Type": "image/png"})
        with urllib.request.urlopen(request, timeout=60) as response:
            assert "red" in response.read().decode()
