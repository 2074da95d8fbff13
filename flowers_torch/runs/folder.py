"""The folder that a run leaves behind: how to repeat it, what came of it, and the model itself."""

import contextlib
import os
import platform
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import PIL
import torch

from flowers_torch import __version__
from flowers_torch.errors import FlowersError, ResourceError, UsageError, printable
from flowers_torch.files.atomic import open_own
from flowers_torch.files.reading import read_json
from flowers_torch.files.system import caseless, expand_home, installed_version, lock_file, processor_name

# Everything that training writes; --overwrite removes these and nothing else.
FILES = (
    *("model.safetensors", "resume.safetensors", "resume.previous.safetensors", "config.toml", "command.txt"),
    *("environment.json", "labels.txt", "split.json", "bad_files.jsonl", "history.csv", "metrics.json"),
    *("predictions.csv", "predictions.safetensors", "log.txt", "report.html", "label_issues.json"),
    *(f"exported/model.{kind}" for kind in "onnx int8.onnx pt2 safetensors html int8.html".split()),
    *(f"packed/{name}" for name in ("model.safetensors", "README.md", "hubconf.py", "config.json", "SHA256SUMS")),
    *(f"figures/{name}.svg" for name in "loss accuracy learning_rate reliability".split()),
    *(f"figures/{name}.svg" for name in ("selective_prediction", "learning_curve")),
)
LOCK_FILE = ".lock"
SUMMARY_FILE = "crossval.json"  # of a cross-validation, whose folder holds a run for each fold


def new_run_folder(out: str, data: str, arch: str, overwrite: bool = False, root: Path = Path("runs")) -> Path:
    """Makes the folder of a new run: `out`, or the next free `<root>/<data>-<arch>-<n>` if that is empty.

    `overwrite` clears the files of an earlier run out of `out`.

    Raises:
        UsageError: the folder holds something already.
    """
    if not out:
        stem = "".join(c if c.isalnum() or c in "._-" else "_" for c in f"{data}-{arch}")
        taken = {caseless(path.name) for path in root.iterdir()} if root.is_dir() else set()
        number = next(n for n in range(1, len(taken) + 2) if caseless(f"{stem}-{n}") not in taken)
        folder = root / f"{stem}-{number}"
    else:
        folder = expand_home(out)
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"--out {printable(folder)} is a file", "name a folder")
        if folder.is_dir() and any(folder.iterdir()):
            if not overwrite:  # guard: K04
                fix = "add --overwrite, use --resume, or name another"
                raise UsageError(f"--out {printable(folder)} is not empty", fix)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if overwrite:
            with run_lock(folder):
                for name in FILES:
                    if not (folder / name).parent.is_symlink() or "/" not in name:  # guard: S11 clear
                        (folder / name).unlink(missing_ok=True)
    except OSError as error:  # guard: C16 folder
        raise _not_writable(folder, error) from error
    return folder


@contextlib.contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Keeps every other run off a run folder, and clears away what a killed run was writing.

    The lock is the system's, so it is free as soon as the process that holds it is dead.

    Raises:
        UsageError: another run is at work in the folder.
        ResourceError: the folder cannot be written.
    """
    path = folder / LOCK_FILE
    try:
        file = open(path, "a+", encoding="utf-8", errors="replace", opener=open_own)
    except OSError as error:
        raise _not_writable(folder, error) from error
    with file:
        if not lock_file(file):
            file.seek(0)
            what = f"{printable(folder)} is in use by {printable(file.read(200).strip())}"
            raise UsageError(what, "wait for it, or name another folder")
        try:
            if os.fstat(file.fileno()).st_nlink == 0:  # its last holder removed it in this moment
                raise UsageError(f"{printable(folder)} was in use until now", "start again")
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
            for stray in folder.glob(".*.tmp"):
                stray.unlink(missing_ok=True)  # guard: C18
        except OSError as error:
            raise _not_writable(folder, error) from error
        try:
            yield
        finally:
            removed = _remove(path)  # guard: S6 finished
    if not removed:  # Windows does not remove open files
        _remove(path)


def _remove(path: Path) -> bool:
    try:
        path.unlink()
        return True
    except OSError:
        return False


def folder_of_launch(out: str, root: Path = Path("runs")) -> Path | None:
    """The folder of the run that this torchrun began before it restarted its processes, if any."""
    for folder in [expand_home(out)] if out else sorted(root.glob("*")):
        with contextlib.suppress(FlowersError):
            if read_json(folder / "environment.json", "a record", {"launch": str})["launch"] == _launch():
                return folder
    return None


def _launch() -> str:
    """Names a start of torchrun, the same before and after a restart of its processes; empty without it."""
    job = os.environ.get("TORCHELASTIC_RUN_ID", "")
    return f"{socket.gethostname()} {os.getppid()}" if job == "none" else job


def find_run(name: str | Path, root: Path = Path("runs")) -> Path:
    """The run that a person means: a folder or a weights file, by its path or its name below `root`.

    `latest` is the run below `root` that was last written to.

    Raises:
        UsageError: there is no such run, or it is a cross-validation, which has several networks.
    """
    path = _find(name, root)
    if (path / SUMMARY_FILE).is_file():
        folds = sorted(each.parent for each in path.glob("*/config.toml"))
        fix = f"name one of its folds, such as {printable(folds[0])}" if folds else "train a run"
        raise UsageError(f"{printable(path)} is a cross-validation, and each fold has its own network", fix)
    return path


def _find(name: str | Path, root: Path) -> Path:
    if str(name) == "latest":
        folders = [path.parent for path in root.glob("*/config.toml")]
        if not folders:
            raise UsageError(f"no run in {printable(root.absolute())}", "name the run folder")
        return max(folders, key=last_written)
    path = expand_home(name)
    for candidate in (path, root / path):
        if candidate.exists():
            return candidate
    what = f"there is no run {printable(name)}: expected a folder, a file, a name below runs/ or latest"
    raise UsageError(what, "list the runs with: flowers-torch runs")


def find_run_folder(name: str | Path, root: Path = Path("runs")) -> Path:
    """The folder of the run that a person means; a weights file stands for the run folder that it lies in."""
    path = _find(name, root)
    if not path.is_dir() and not (path.parent / "config.toml").is_file():
        raise UsageError(f"{printable(path)} is not in a run folder", "name a run folder")
    return path if path.is_dir() else path.parent


def last_written(folder: Path) -> int:
    """When a run folder was last written to, in nanoseconds."""
    return max(file.lstat().st_mtime_ns for file in folder.iterdir())  # a link may lead nowhere


def _not_writable(folder: Path, error: OSError) -> ResourceError:
    what = f"cannot write to {printable(folder)}: {error.strerror or error}"
    return ResourceError(what, "choose another folder with --out")


def environment() -> dict[str, Any]:
    """Versions and the machine."""
    return {
        "flowers_torch": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": installed_version("torchvision"),
        "timm": installed_version("timm"),
        "pillow": PIL.__version__,
        "system": platform.platform(),
        "processor": processor_name(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "executable": sys.executable,
        "launch": _launch(),
    }
