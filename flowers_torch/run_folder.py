"""The folder that a run leaves behind: how to repeat it, what came of it, and the model itself."""

import platform
import shlex
import sys
from pathlib import Path
from typing import Any

import PIL
import timm
import torch
import torchvision

from flowers_torch import __version__
from flowers_torch.errors import UsageError, printable
from flowers_torch.files import write_json, write_text

# Everything that training writes; --overwrite removes these and nothing else.
FILES = (
    "model.safetensors",
    "resume.safetensors",
    "config.toml",
    "command.txt",
    "environment.json",
    "labels.txt",
    "split.json",
    "bad_files.jsonl",
    "history.csv",
    "metrics.json",
    "predictions.csv",
    "predictions.safetensors",
    "log.txt",
    "figures/curves.png",
)


def new_run_folder(
    out: str, data: str, arch: str, overwrite: bool = False, root: Path = Path("runs")
) -> Path:
    """Makes the folder of a new run.

    Args:
        out: As the user wants it; empty for the next free `runs/<data>-<arch>-<n>`.
        data: Name of the data set.
        arch: Name of the network.
        overwrite: Clear the files of an earlier run out of `out`.
        root: Where numbered runs go.

    Raises:
        UsageError: the folder holds something already.
    """
    if not out:
        stem = "".join(c if c.isalnum() or c in "._-" else "_" for c in f"{data}-{arch}")
        taken = {path.name for path in root.glob(f"{stem}-*")} if root.is_dir() else set()
        number = next(n for n in range(1, len(taken) + 2) if f"{stem}-{n}" not in taken)
        folder = root / f"{stem}-{number}"
    else:
        folder = Path(out).expanduser()
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"--out {printable(folder)} is a file", "name a folder")
        if folder.is_dir() and any(folder.iterdir()):
            if not overwrite:
                raise UsageError(
                    f"--out {printable(folder)} is not empty",
                    "add --overwrite, use --resume, or name another",
                )
            for name in FILES:
                (folder / name).unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def write_origin(folder: Path, config_toml: str, classes: tuple[str, ...], argv: list[str]) -> None:
    """Writes what repeats the run: resolved configuration, command, class names, versions."""
    write_text(folder / "config.toml", config_toml)
    write_text(folder / "command.txt", shlex.join(argv) + "\n")
    write_text(folder / "labels.txt", "".join(f"{name}\n" for name in classes))
    write_json(folder / "environment.json", environment())


def environment() -> dict[str, Any]:
    """Versions and the machine."""
    return {
        "flowers_torch": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "timm": timm.__version__,
        "pillow": PIL.__version__,
        "system": platform.platform(),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "executable": sys.executable,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()
