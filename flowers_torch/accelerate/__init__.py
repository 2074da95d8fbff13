"""Everything that makes training and inference faster without changing a result, behind `Acceleration`.

docs/acceleration.md gives the reason and the gain of each trick. `training`, `models` and `data` know of none.
"""

import dataclasses
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from flowers_torch.accelerate.compiled import CompiledNetwork
from flowers_torch.accelerate.conv_bn import fuse_conv_bn
from flowers_torch.accelerate.fused_step import fused_view
from flowers_torch.accelerate.precision import autotune
from flowers_torch.errors import UsageError, printable
from flowers_torch.files.system import keep_freed_memory, onednn_computes_bf16
from flowers_torch.models.split_model import example_inputs
from flowers_torch.training.device import Runtime

TRICKS = ("fusion", "fused_step", "depthwise", "threads", "precision", "allocator", "compile")
DEFAULT = frozenset(TRICKS) - {"compile"}
MAX_THREADS = 4  # each of which holds the maps of its images


@dataclasses.dataclass(frozen=True)
class Acceleration:
    """The tricks in use; a method changes nothing where its trick is off or does not apply."""

    tricks: frozenset[str] = DEFAULT

    @classmethod
    def parse(cls, text: str) -> "Acceleration":
        """From `auto`, `off`, `auto+compile` or a comma-separated list of `TRICKS`.

        Raises:
            UsageError: a name is unknown.
        """
        names = [name.strip() for name in text.replace("+", ",").split(",")]
        if names == ["off"]:
            return cls(frozenset())
        tricks = frozenset(names) - {"auto"} | (DEFAULT if "auto" in names else frozenset())
        if unknown := sorted(tricks - set(TRICKS)):
            what = f"accelerate = {printable(repr(text), 60)}: unknown {printable(', '.join(unknown), 60)}"
            raise UsageError(what, f"use auto, off, auto+compile or a list of {', '.join(TRICKS)}")
        return cls(tricks)

    def training_network(
        self, model: nn.Module, runtime: Runtime, size: int, inputs: Tensor | None = None
    ) -> nn.Module:
        """A faster view of a network that shares its parameters and buffers, for training and evaluation.

        Args:
            model: On the device, in the modes that it runs in; a change of modes needs a new view.
            size: Side of the input images in pixels.
            inputs: Example inputs of a network that takes no images, such as the tail of a split network.
        """
        fuse, depthwise = "fused_step" in self.tricks, "depthwise" in self.tricks
        if runtime.device.type != "cpu" or not (fuse or depthwise):
            return model
        if runtime.precision == "bf16" and not onednn_computes_bf16():  # torch's own convolutions do, slowly
            return model
        inputs = runtime.images(example_inputs(size)) if inputs is None else inputs
        return fused_view(model, inputs, fuse, depthwise)

    def frozen_network(
        self, model: nn.Module, forward: Callable[[nn.Module], Tensor], dtype: torch.dtype = torch.float32
    ) -> nn.Module:
        """A faster copy of a network for inference. It does not follow later changes of the weights.

        Args:
            model: In inference mode.
            forward: Runs a network, this one or its copy, on example inputs.
            dtype: Of the arithmetic; the copy is called under autocast where that is not float32.
        """
        return fuse_conv_bn(model, forward, dtype) if "fusion" in self.tricks else model

    def threads(self, runtime: Runtime) -> int:
        """Threads that run a frozen network side by side, each with its share of the cores; 1 but on a CPU."""
        in_use = "threads" in self.tricks and runtime.device.type == "cpu"
        return min(MAX_THREADS, torch.get_num_threads()) if in_use else 1

    def compiled(self, network: nn.Module, batch_size: int) -> CompiledNetwork | None:
        """A compiled call of a plain network for batches of `batch_size`; None without the trick `compile`."""
        return CompiledNetwork(network, batch_size) if "compile" in self.tricks else None

    def tuned(
        self, runtime: Runtime, model: nn.Module, size: int, backward: bool, images_ahead: float = math.inf
    ) -> Runtime:
        """The runtime with the fastest precision that the user leaves open; the arguments are `autotune`'s."""
        if "precision" not in self.tricks and not runtime.fixed:
            runtime = dataclasses.replace(runtime, precision="fp32", reason="not tuned", fixed=True)
        return autotune(runtime, model, size, backward, images_ahead)

    def set_allocator(self, runtime: Runtime) -> None:
        """Keeps freed memory in this process from now on, where a CPU computes; for the command line only."""
        if "allocator" in self.tricks and runtime.device.type == "cpu":
            keep_freed_memory()


AUTO, OFF = Acceleration(), Acceleration(frozenset())
