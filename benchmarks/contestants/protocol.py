"""The arguments of every contestant and the lines that it prints. Needs only the standard library.

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
    parser.add_argument("--steps", type=int, default=0, help="only time so many steps on random images")
    parser.add_argument("--forward", action="store_true", help="with --steps: forward passes only")
    parser.add_argument("--bf16", action="store_true", help="mixed precision in bfloat16")
    parser.add_argument("--workers", type=int, default=0, help="of PyTorch's data loaders")
    parser.add_argument("--device", default="cpu", help="of PyTorch: cpu or cuda")
    parser.add_argument("--logits", action="store_true", help="print those of the validation photos, too")
    return parser


def pair(text: str, kind: type = float) -> tuple[Any, Any]:
    """Both numbers of "1,8"."""
    first, second = text.split(",")
    return kind(first), kind(second)


def print_progress(**values: Any) -> None:
    """A line of progress, with the time and the peak memory so far."""
    started = float(os.environ.get("BENCHMARK_STARTED", time.time()))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": time.time() - started, "bytes": peak} | values), flush=True)


def logits_of(args: argparse.Namespace, logits: Any) -> dict[str, Any]:
    """Logits (N, classes) of the validation photos for a line of progress, if they are wanted."""
    return {"val_logits": [[round(value, 4) for value in row] for row in logits.tolist()]} if args.logits else {}


def print_rate(step: Any, images: int, steps: int, **more: Any) -> None:
    """Images a second of a function that does one step; the first two calls choose kernels."""
    step(), step()
    started = time.perf_counter()
    for _ in range(steps):
        step()
    print_progress(images_per_second=images * steps / (time.perf_counter() - started), **more)
