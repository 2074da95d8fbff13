"""The short programs of examples/ run as they stand, with a small network in place of the one that they name."""

import contextlib
import re
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowers_torch import TrainResult, train

EXAMPLES = Path(__file__).parents[2] / "examples"
PROGRAMS = (
    "folder other_data own_network callbacks endpoint neighbors sweep ci_job residual_net dashboard"
).split()  # residual_net is run by test_examples.py
SMALL = 'size=32, device="cpu", precision="fp32", batch_size=8'
# What would download or take minutes, and what the test runs in its place.
SMALLER = {
    r'"tf_efficientnet_lite0", "offline"': f'"test_resnet", "none", {SMALL}',
    r'\("resnet18", "mobilenetv3_small_100"\)': '("test_resnet", "cifar_resnet")',
    r'"my_photos", network, ': f'"my_photos", network, "none", {SMALL}, ',
    r"size=96, ": f"{SMALL}, ",
}
SUMMARY: dict[str, Any] = {"size": 32, "device": "cpu", "precision": "fp32", "batch_size": 8, "quiet": True}


def code_lines(source: str) -> list[str]:
    """Lines of a program without its docstring, comments and blank lines."""
    lines = source.split('"""', 2)[2].splitlines()
    return [line for line in lines if line.strip() and not line.strip().startswith("#")]


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_is_short(name: str) -> None:
    source = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")
    assert len(code_lines(source)) <= 15 and ";" not in "".join(code_lines(source))
    assert f"examples/{name}.py" in source.split('"""')[1] or f"{name}:app" in source.split('"""')[1]


@pytest.fixture(scope="module")
def finished(photo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    folder = tmp_path_factory.mktemp("finished") / "photos-test_resnet-1"
    return train(photo_folder, "test_resnet", "none", head_only=True, out=folder, **SUMMARY)


@pytest.fixture
def place(photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder that the programs assume."""
    (tmp_path / "my_photos").symlink_to(photo_folder)
    (tmp_path / "new_photos").symlink_to(photo_folder)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def with_run(place: Path, finished: TrainResult) -> Path:
    """The same, with a run that `latest` names."""
    shutil.copytree(finished.folder, place / "runs" / finished.folder.name)
    return place


def run(name: str) -> dict[str, Any]:
    """Runs a program and returns its names."""
    source = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")
    for pattern, smaller in SMALLER.items():
        source = re.sub(pattern, smaller, source)
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(source, f"{name}.py", "exec"), names)
    return names


def test_folder(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = run("folder")
    printed = capsys.readouterr().out
    assert re.search(r"accuracy [01]\.\d{3} \(0\.\d{3} \.\. [01]\.\d{3}\), report in runs/", printed)
    assert printed.count(".png ") == 60 and (names["result"].folder / "report.html").is_file()


@pytest.mark.slow
def test_other_data(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pandas")
    pytest.importorskip("datasets")
    run("other_data")
    assert capsys.readouterr().out.count("TrainResult(accuracy") == 4


def test_own_network(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("own_network")
    printed = capsys.readouterr().out
    assert "TrainResult(accuracy" in printed and "(2): Linear(in_features=" in printed and "out_features=3" in printed


@pytest.mark.slow
def test_callbacks(place: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "sweep")
    run("callbacks")
    lines = [record.getMessage() for record in caplog.records if record.name == "sweep"]
    assert 4 <= len(lines) <= 6 and re.fullmatch(r"head 1: loss \d\.\d{3}", lines[0])
    assert len(capsys.readouterr().out.splitlines()) == 2  # the sweep is quiet


def test_endpoint(with_run: Path, photo_folder: Path) -> None:
    pytest.importorskip("fastapi")
    httpx = pytest.importorskip("httpx")
    app = run("endpoint")["app"]
    photo = (photo_folder / "green/3.png").read_bytes()

    async def ask(content: bytes) -> Any:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app") as client:
            headers = {"content-type": "application/octet-stream"}
            return await client.post("/predict", content=content, headers=headers)

    import asyncio

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda content: asyncio.run(ask(content)), [photo] * 31 + [b"no photo"]))
    assert {response.status_code for response in found[:-1]} == {200} and found[-1].status_code == 422
    assert len({response.text for response in found[:-1]}) == 1
    assert found[0].json()["classes"][0]["class"] == "green" and "not an image" in found[-1].json()["detail"]


def test_neighbors(with_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = run("neighbors")
    lines = capsys.readouterr().out.splitlines()
    assert names["vectors"].shape[0] == 60 and len(lines) == 10
    assert np.mean([line.count("/blue/") == 4 for line in lines]) > 0.7


@pytest.mark.slow
def test_sweep(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pandas")
    names = run("sweep")
    assert names["table"].shape == (4, 5) and list(names["table"].val) == sorted(names["table"].val, reverse=True)
    assert "photos" in capsys.readouterr().out or names["table"].val.max() > 0


@pytest.mark.slow
def test_ci_job(with_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    with contextlib.suppress(SystemExit):
        run("ci_job")
    printed = capsys.readouterr().out
    assert printed.startswith("accuracy ") and (with_run / "model.onnx").is_file() == printed.endswith("model.onnx\n")


def test_dashboard(with_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pandas")
    run("dashboard")
    page = (with_run / "dashboard.html").read_text()
    assert 'href="runs/photos-test_resnet-1/report.html"' in page and "test_resnet" in page
    assert "dashboard.html: 1 of runs/" in capsys.readouterr().out


def test_the_programs_need_only_what_their_first_lines_install() -> None:
    known = {*sys.stdlib_module_names, "torch", "torchvision", "timm", "flowers_torch"}
    for name in PROGRAMS:
        source = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")
        used = {match.split(".")[0] for match in re.findall(r"^(?:from|import) ([\w.]+)", source, re.M)}
        doc = source.split('"""')[1]
        for package in used - known:
            extra = {"datasets": "hf"}.get(package, package)
            assert extra in doc, f"{name} needs {package}"
