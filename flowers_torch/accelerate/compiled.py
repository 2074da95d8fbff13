"""`torch.compile` of the network in a training step."""

import time
from typing import Any

import torch
from torch import Tensor, nn

from flowers_torch.errors import UsageError, plural, printable
from flowers_torch.log import log


class CompiledNetwork:
    """Calls a network, compiled for batches of one size and as it is for others.

    What runs depends on the size of the batch alone, so a resumed run repeats the same arithmetic.

    Args:
        network: In the modes of its training, which do not change from then on.
        batch_size: Images of the batches that are compiled.
    """

    def __init__(self, network: nn.Module, batch_size: int) -> None:
        self.network, self.batch_size = network, batch_size
        self._call: Any = None

    def __call__(self, images: Tensor) -> Any:
        """The output of the network."""
        if len(images) != self.batch_size:
            return self.network(images)
        from torch import _dynamo

        started, is_first = time.perf_counter(), self._call is None
        if is_first:
            _dynamo.reset()  # the compiler counts the networks of earlier stages and gives up after some
            self._call = torch.compile(self._forward, dynamic=False)
        try:
            output = self._call(images)
        except _dynamo.exc.TorchDynamoException as error:
            reason = printable(" ".join(str(error).split()), 160)
            raise UsageError(f"torch.compile fails: {reason}", 'use accelerate = "auto"') from error
        if is_first:
            seconds = time.perf_counter() - started
            log.info(f"compile  compiled for batches of {plural(self.batch_size, 'image')} in {seconds:.1f} s")
        return output

    def _forward(self, images: Tensor) -> Any:
        return self.network(images)
