"""What tuning found about a network on this machine, stored in the cache folder for later runs."""

import dataclasses
import hashlib
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from flowers_torch.files.cache import cache_folder, prune, recall, remember
from flowers_torch.files.system import processor_name
from flowers_torch.models.heads import classifier_names, hash_backbone
from flowers_torch.training.device import DTYPES, Runtime

FORMAT = 1
MAX_AGE_SECONDS = 7 * 24 * 3600  # the machine may have been busy, or a driver may have changed
LIMITS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA")  # variables that hide what a processor can compute
FORM = {"precision": set(DTYPES), "rate": float, "measured": float}


class KnownTuning:
    """The file about a network on this machine.

    Args:
        runtime: Before tuning.
        model: The plain network, in the modes of its training.
        how: What else the outcome depends on; its `repr` counts.
    """

    def __init__(self, runtime: Runtime, model: nn.Module, *how: Any) -> None:
        self.runtime, self.path = runtime, _file(runtime, model, how)

    def recall(self) -> Runtime | None:
        """The runtime that `remember` was given in the last days."""
        found = recall(self.path, FORM)
        if found is None or not 0 <= time.time() - found["measured"] <= MAX_AGE_SECONDS:
            return None
        reason = f"{found['rate']:.1f} img/s in an earlier run"
        reason = f"{self.runtime.reason}; {reason}" if self.runtime.fixed else f"the fastest, with {reason}"
        changes = {"precision": found["precision"], "rate": found["rate"], "reason": reason}
        return dataclasses.replace(self.runtime, **changes, fixed=True)

    def remember(self, found: Runtime) -> None:
        """Stores what tuning has found."""
        remember(self.path, {"precision": found.precision, "rate": found.rate, "measured": time.time()})
        prune(self.path.parent, MAX_AGE_SECONDS)  # networks with random weights leave many files


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
