"""What tuning found about a network on this machine, stored in the cache folder for later runs."""

import contextlib
import dataclasses
import hashlib
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from flowers_torch.files.cache import cache_folder, recall, remember
from flowers_torch.files.system import processor_name
from flowers_torch.models.heads import classifier_names, hash_backbone
from flowers_torch.training.device import DTYPES, Runtime

FORMAT = 1
MAX_AGE_SECONDS = 7 * 24 * 3600  # the machine may have been busy, or a driver may have changed
LIMITS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA")  # variables that hide what a processor can compute
FORM = {"precision": set(DTYPES), "rate": float, "measured": float}


def recall_tuning(runtime: Runtime, model: nn.Module, *how: Any) -> Runtime | None:
    """The runtime that `remember_tuning` was given for the same network, modes and machine in the last days.

    Args:
        runtime: Before tuning.
        model: The plain network, in the modes of its training.
        how: What else the outcome depends on; its `repr` counts.
    """
    found = recall(_file(runtime, model, how), FORM)
    if found is None or not 0 <= time.time() - found["measured"] <= MAX_AGE_SECONDS:
        return None
    reason = f"{found['rate']:.1f} img/s in an earlier run"
    reason = f"{runtime.reason}; {reason}" if runtime.fixed else f"the fastest, with {reason}"
    return dataclasses.replace(runtime, precision=found["precision"], reason=reason, rate=found["rate"], fixed=True)


def remember_tuning(runtime: Runtime, model: nn.Module, *how: Any, found: Runtime) -> None:
    """Stores what tuning has `found`; the other arguments are those of `recall_tuning`."""
    values = {"precision": found.precision, "rate": found.rate, "measured": time.time()}
    path = _file(runtime, model, how)
    remember(path, values)
    with contextlib.suppress(OSError):  # networks with random weights leave many files
        for file in path.parent.iterdir():
            if time.time() - file.stat().st_mtime > MAX_AGE_SECONDS:
                file.unlink()


def _file(runtime: Runtime, model: nn.Module, how: Sequence[Any]) -> Path:
    """By everything that the outcome depends on: the machine, and the network but for its classifier."""
    gpu = torch.cuda.get_device_name(runtime.device) if runtime.device.type == "cuda" else ""
    limits = (torch.backends.cpu.get_cpu_capability(), [os.environ.get(name) for name in LIMITS])
    machine = (processor_name(), limits, torch.get_num_threads(), gpu)
    modes = [(type(module).__name__, module.training) for module in model.modules()]
    trained = [(name, tuple(value.shape), value.requires_grad) for name, value in model.named_parameters()]
    what = (FORMAT, torch.__version__, machine, runtime.precision, runtime.fixed, modes, trained, how)
    digest = hashlib.blake2b(repr(what).encode(), digest_size=16)
    hash_backbone(model, classifier_names(model), digest)
    return cache_folder() / "tuning" / f"{digest.hexdigest()}.json"
