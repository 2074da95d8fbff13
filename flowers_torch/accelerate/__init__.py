"""Everything that makes training and inference faster without changing a result, behind one class.

`Acceleration` is the only entry point. Nothing in `training`, `models` or `data` depends on it: they take a
network or a callable, plain or accelerated.
"""

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor, nn

from flowers_torch.accelerate.allocator import keep_freed_memory
from flowers_torch.accelerate.compiled import CompiledNetwork
from flowers_torch.accelerate.conv_bn import fuse_conv_bn
from flowers_torch.accelerate.fused_step import fused_view
from flowers_torch.accelerate.precision import autotune
from flowers_torch.errors import UsageError, printable
from flowers_torch.models.split_model import example_inputs
from flowers_torch.training.device import Runtime

# Name of each trick -> what it does. The module of the same name gives the reason and the measured gain.
TRICKS = {
    "fusion": "convolution, batch norm and activation of frozen networks in one call (conv_bn)",
    "fused_step": "the same in training, where batch norm keeps its statistics (fused_step)",
    "depthwise": "fast gradients of depthwise convolutions on a CPU (depthwise)",
    "precision": "the fastest precision, found by timing a step (precision)",
    "allocator": "freed memory stays with the process (allocator)",
    "compile": "torch.compile of the network in a training step (compiled)",
}
DEFAULT = frozenset(TRICKS) - {"compile"}


@dataclasses.dataclass(frozen=True)
class Acceleration:
    """The tricks in use.

    Each method returns the plain network, None or the unchanged runtime where its trick is off or does not
    apply, so callers need no branches.
    """

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
            raise UsageError(
                f"accelerate = {printable(repr(text), 60)}: unknown {printable(', '.join(unknown), 60)}",
                f"use auto, off, auto+compile or a list of {', '.join(TRICKS)}",
            )
        return cls(tricks)

    def training_network(
        self, model: nn.Module, runtime: Runtime, size: int, inputs: Tensor | None = None
    ) -> nn.Module:
        """A faster view of a network that shares its parameters and buffers, for training and evaluation.

        Args:
            model: On the device, in the modes that it runs in. Its layers of batch norm in inference mode
                are fused, so a change of modes needs a new view.
            size: Side of the input images in pixels.
            inputs: Example inputs of a network that takes no images, such as the tail of a split network.
        """
        fuse, depthwise = "fused_step" in self.tricks, "depthwise" in self.tricks
        if runtime.device.type != "cpu" or not (fuse or depthwise):
            return model
        inputs = runtime.images(example_inputs(size)) if inputs is None else inputs
        return fused_view(model, inputs, fuse, depthwise)

    def frozen_network(
        self, model: nn.Module, forward: Callable[[nn.Module], Tensor], dtype: torch.dtype = torch.float32
    ) -> nn.Module:
        """A faster copy of a network for inference. It does not follow later changes of the weights.

        Args:
            model: In inference mode.
            forward: Runs a network, this one or its copy, on example inputs. Layers that it does not reach
                stay as they are.
            dtype: The type of the arithmetic; the copy is called under autocast where that is not float32.
        """
        return fuse_conv_bn(model, forward, dtype) if "fusion" in self.tricks else model

    def compiled(self, network: nn.Module, batch_size: int) -> CompiledNetwork | None:
        """A compiled call of the network for batches of `batch_size`; None without the trick `compile`.

        Args:
            network: The plain network or tail: compilers and the fused view exclude each other.
            batch_size: Other batches run the network as it is.
        """
        return CompiledNetwork(network, batch_size) if "compile" in self.tricks else None

    def tuned(self, runtime: Runtime, model: nn.Module, size: int, backward: bool) -> Runtime:
        """The runtime with the fastest precision, for a network.

        Args:
            runtime: As chosen for the machine. A precision that the user set stays.
            model: On the device, in the modes of its training.
            size: Side of the input images in pixels.
            backward: Whether to time a training step; else the forward pass.
        """
        if runtime.fixed:
            return runtime
        if "precision" in self.tricks:
            return autotune(runtime, model, size, backward)
        return dataclasses.replace(runtime, precision="fp32", reason="not tuned", fixed=True)

    def set_allocator(self, runtime: Runtime) -> None:
        """Keeps freed memory in this process from now on, where a CPU computes.

        The command line calls this for the commands that train. A library must not change the allocator of
        the process that imports it.
        """
        if "allocator" in self.tricks and runtime.device.type == "cpu":
            keep_freed_memory()


AUTO = Acceleration()
