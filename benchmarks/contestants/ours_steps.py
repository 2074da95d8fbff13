"""A contestant: this package's own training step on resident noise, in the precision that its probe takes.

With --forward --folded the network runs as the frozen front of a stage does: batch norm folded, activations
fused. With --stored batch norm keeps its statistics in training too.
"""

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from flowers_torch.accelerate.conv_bn import fold, noise
from flowers_torch.accelerate.fused_step import fuse
from flowers_torch.models.factory import create_model
from flowers_torch.models.freeze import apply_rules, rules_for, set_train_mode
from flowers_torch.training.optimizers import make_optimizer
from flowers_torch.training.device import Runtime, autotune_precision, choose_runtime, keep_freed_memory
from flowers_torch.training.state import TrainState
from flowers_torch.training.step import predict_logits, train_step

CLASSES = 17


@dataclasses.dataclass
class Step:
    """What a run does with a batch of images, and where."""

    runtime: Runtime
    do: Callable[[Tensor, Tensor], object]  # images (N, 3, size, size), labels (N,)


def make_step(
    arch: str, size: int, forward: bool, folded: bool = False, device: str = "cpu", stored: bool = False
) -> Step:
    """A training step of all of a network, or its forward pass."""
    runtime = choose_runtime(device)
    if device == "cpu":
        keep_freed_memory()
    model = runtime.place(create_model(arch, CLASSES))
    groups = apply_rules(model, rules_for(model, "all"))
    set_train_mode(model, "none" if stored else "trained")
    called = fuse(model, runtime.images(noise(size)))
    runtime = autotune_precision(runtime, model if forward else called, size, backward=not forward)
    if not forward:
        training = TrainState(model, make_optimizer("adamw", model, groups), runtime.scaler(), runtime)
        training.called = called
        return Step(runtime, lambda images, labels: train_step(training, images, labels, 1e-4))
    if folded:

        def on_noise(network: torch.nn.Module) -> Tensor:
            with torch.no_grad():
                answer: Tensor = network(runtime.images(noise(size)))
            return answer

        model = fold(model.eval(), on_noise, runtime.dtype)
    return Step(runtime, lambda images, labels: predict_logits(model, [(images, labels)], runtime))


if __name__ == "__main__":
    from told import arguments, tell_rate

    parser = arguments(__doc__)
    parser.add_argument("--folded", action="store_true")
    parser.add_argument("--stored", action="store_true")
    args = parser.parse_args()
    step = make_step(args.arch, args.size, args.forward, args.folded, stored=args.stored)
    images = step.runtime.images(torch.randn(args.batch_size, 3, args.size, args.size))
    labels = torch.arange(args.batch_size) % CLASSES
    chosen = step.runtime.precision
    tell_rate(lambda: step.do(images, labels), args.batch_size, args.steps, precision=chosen)
