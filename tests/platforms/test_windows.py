"""The commands under the rules of Windows, simulated by windows.py."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from forked import start_python

pytestmark = pytest.mark.needs("linux")
SIMULATION = Path(__file__).with_name("windows.py")
RUN_SIMULATION = f"import runpy; runpy.run_path({str(SIMULATION)!r}, run_name='__main__')"
ENVIRONMENT = os.environ | {
    "PYTHONPATH": str(SIMULATION.parents[2]),  # of this package, wherever a process starts
    "PYTHONIOENCODING": "cp1252",
    "OMP_NUM_THREADS": "1",
}


def start(folder: Path, *commands: list[str]) -> BaseProcess:
    """A process that runs commands with `folder` as its place for everything, and a terminal of Windows-1252."""
    output = folder / "output"
    output.write_text("")
    environment = ENVIRONMENT | {"FLOWERS_TORCH_CACHE": str(folder / "cache")}
    words = (folder, *map(json.dumps, commands))
    return start_python(RUN_SIMULATION, *words, output=output, folder=folder, environment=environment)


def wait_for(pattern: str, folder: Path, process: BaseProcess) -> str:
    """What a process in a folder prints and matches a pattern."""
    while not (found := re.search(pattern, (folder / "output").read_text(), re.M)):
        assert process.is_alive(), (folder / "output").read_text()
        time.sleep(0.01)
    return found[0]


def finish(folder: Path, process: BaseProcess, code: int = 0) -> str:
    """The output of a process in a folder that ends with an exit code."""
    process.join(300)
    output = (folder / "output").read_text()
    assert process.exitcode == code, output
    return output


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("os.open('.', os.O_RDONLY)", "PermissionError"),
        ("file = open('a', 'wb'); os.replace('b', 'a')", "PermissionError"),
        ("d = os.open('b', 0); m = mmap.mmap(d, 1, prot=1); os.close(d); os.remove('b')", "PermissionError"),
        ("open('nul.txt', 'wb')", "OSError"),
        ("os.mkdir('x:y')", "OSError"),
        ("os.mkdir('dot.')", "OSError"),
        ("open('B', 'wb')", "FileExistsError"),
        ("os.symlink('b', 'c')", "PermissionError"),
        ("import fcntl; os.sched_getaffinity(0)", "AttributeError"),
        ("import signal; signal.SIGKILL", "AttributeError"),
        ("p = multiprocessing.Process(target=print); p.start(); p.kill(); p.join()", ""),
        ("os.replace('b', 'c'); os.remove('c')", ""),
        (
            "from pathlib import Path; from flowers_torch.files.download import download; "
            "download(Path('b').absolute().as_uri(), Path('got'), ''); assert Path('got').read_bytes() == b'x'",
            "",
        ),
    ],
)
def test_the_simulation_refuses_what_windows_refuses(tmp_path: Path, code: str, error: str) -> None:
    (tmp_path / "b").write_bytes(b"x")
    script = "import mmap, multiprocessing, os, sys; sys.path.append(sys.argv[1]); import windows; windows.install('.')"
    command = [sys.executable, "-c", f"{script}; {code}", str(SIMULATION.parent)]
    run = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)
    last = run.stderr.splitlines()[-1] if run.stderr else ""
    assert last.partition(":")[0] == error, run.stderr


def test_the_commands_of_a_day(photo_folder: Path, tmp_path: Path, write_options: Callable[..., Path]) -> None:
    photos = tmp_path / "photos"
    for color, name in (("blue", "Čedok žluťoučký"), ("green", "convolvulus"), ("red", "rosé")):
        shutil.copytree(photo_folder / color, photos / name)
    write_options(tmp_path)
    process = start(
        tmp_path,
        ["check", "photos", "--out", "checked"],
        ["train", "--config", "options.toml", "--data", "photos", "--out", "run", "--workers", "1"],
        ["train", "--config", "options.toml", "--data", "photos", "--out", "run", "--overwrite"],
        ["predict", "run", "photos/rosé", "--csv"],
        ["predict", "run", "photos", "--sort-into", "sorted"],
        ["evaluate", "run"],
        ["export", "run", "--format", "safetensors"],
        ["pack", "run"],
    )
    output = finish(tmp_path, process)
    assert "Čedok" in output and "test     accuracy" in output
    assert {"model.safetensors", "report.html", "metrics.json"} <= {path.name for path in (tmp_path / "run").iterdir()}
    assert not list((tmp_path / "run").glob(".*"))  # neither a lock nor a temporary file is left
    copies = [path for path in (tmp_path / "sorted").rglob("*.png")]
    assert len(copies) == 60 and not any(path.is_symlink() for path in copies)


def test_a_killed_run_resumes_and_two_runs_do_not_share_a_folder(
    photo_folder: Path, tmp_path: Path, write_options: Callable[..., Path]
) -> None:
    write_options(tmp_path, epochs=20)
    train = ["train", "--config", "options.toml", "--data", str(photo_folder), "--out", "run"]
    process = start(tmp_path, train)
    wait_for(r"^\s+finetune 3/", tmp_path, process)
    os.kill(process.pid, signal.SIGSTOP)
    try:
        output = finish(tmp_path, start(tmp_path, ["train", "--resume", "run"]), 2)
    finally:
        process.kill()
        process.join()
    assert f"in use by process {process.pid} on " in output
    output = finish(tmp_path, start(tmp_path, ["train", "--resume", "run"]))
    assert "resume" in output and "test     accuracy" in output


def test_serve(photo_folder: Path, tmp_path: Path, write_options: Callable[..., Path]) -> None:
    write_options(tmp_path)
    train = ["train", "--config", "options.toml", "--data", str(photo_folder), "--out", "run"]
    process = start(tmp_path, train, ["serve", "run", "--port", "0"])
    address = wait_for(r"http://[\d.:]+\d", tmp_path, process)
    photo = (photo_folder / "red" / "0.png").read_bytes()
    request = urllib.request.Request(f"{address}/api/predict", photo, {"Content-Type": "image/png"})
    with urllib.request.urlopen(request, timeout=60) as response:
        assert "red" in response.read().decode()
    os.kill(process.pid, signal.SIGINT)
    finish(tmp_path, process)
