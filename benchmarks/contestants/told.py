"""What each contestant is told and what it tells; the standard library only, for any Python.

The photos come as a JSON file: {"classes": [...], "train": [[path, label], ...], "val": ..., "test": ...}.
Progress goes to stdout as JSON lines. Seconds count from the start of the process, imports included.
"""

import argparse
import json
import os
import resource
import time
from typing import Any


def arguments(description: str) -> argparse.ArgumentParser:
    """The flags that all contestants take."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--photos", help="JSON file of the photos")
    parser.add_argument("--arch", default="tf_efficientnet_lite0")
    parser.add_argument("--weights", help="for PyTorch a .pth of timm's names; for Keras its .h5")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--epochs", default="1,8", help="with a frozen backbone, and of everything")
    parser.add_argument("--lr", default="3e-3,6e-4", help="of both stages")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=0, help="time so many steps on resident noise, and end")
    parser.add_argument("--forward", action="store_true", help="with --steps: forward passes only")
    parser.add_argument("--bf16", action="store_true", help="mixed precision in bfloat16")
    parser.add_argument("--workers", type=int, default=0, help="of PyTorch's data loaders")
    return parser


def pair(text: str, kind: type = float) -> tuple[Any, Any]:
    """Both numbers of "1,8"."""
    first, second = text.split(",")
    return kind(first), kind(second)


def tell(**values: Any) -> None:
    """A line of progress, with the time and the most memory so far."""
    started = float(os.environ.get("BENCHMARK_STARTED", time.time()))
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": time.time() - started, "bytes": most} | values), flush=True)


def tell_rate(step: Any, images: int, steps: int, **more: Any) -> None:
    """Images a second of a function that does one step; the first two calls choose kernels."""
    step(), step()
    started = time.perf_counter()
    for _ in range(steps):
        step()
    tell(images_per_second=images * steps / (time.perf_counter() - started), **more)
