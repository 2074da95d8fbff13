"""A contestant: this package's own training step on random images, in the precision that tuning chooses.

With --forward --fused the network runs like the frozen backbone of a stage: batch norm is fused into the
convolutions. With --fixed-statistics batch norm uses its running statistics in training too.
"""

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from flowers_torch.accelerate import AUTO
from flowers_torch.models.factory import create_model
from flowers_torch.models.freeze import apply_rules, rules_for, set_train_mode
from flowers_torch.models.split_model import example_inputs
from flowers_torch.training.device import Runtime, choose_runtime
from flowers_torch.training.optimization import make_optimizer
from flowers_torch.training.state import TrainState
from flowers_torch.training.step import predict_logits, train_step

CLASSES = 17


@dataclasses.dataclass
class Step:
    """What a run does with a batch of images, and where."""

    runtime: Runtime
    do: Callable[[Tensor, Tensor], object]  # images (N, 3, size, size), labels (N,)


def make_step(
    arch: str,
    size: int,
    forward: bool,
    fused: bool = False,
    device: str = "cpu",
    fixed_statistics: bool = False,
) -> Step:
    """A training step of all of a network, or its forward pass."""
    runtime = choose_runtime(device)
    AUTO.set_allocator(runtime)
    model = runtime.place(create_model(arch, CLASSES))
    groups = apply_rules(model, rules_for(model, "all"))
    set_train_mode(model, "none" if fixed_statistics else "trained")
    network = AUTO.training_network(model, runtime, size)
    runtime = AUTO.tuned(runtime, model if forward else network, size, backward=not forward)
    if not forward:
        training = TrainState(model, make_optimizer("adamw", model, groups), runtime.scaler(), runtime)
        training.network = network
        return Step(runtime, lambda images, labels: train_step(training, images, labels, 1e-4))
    if fused:

        def on_examples(network: torch.nn.Module) -> Tensor:
            with torch.no_grad():
                output: Tensor = network(runtime.images(example_inputs(size)))
            return output

        model = AUTO.frozen_network(model.eval(), on_examples, runtime.dtype)
    return Step(runtime, lambda images, labels: predict_logits(model, [(images, labels)], runtime))


if __name__ == "__main__":
    from protocol import arguments, print_rate

    parser = arguments(__doc__)
    parser.add_argument("--fused", action="store_true")
    parser.add_argument("--fixed-statistics", action="store_true")
    args = parser.parse_args()
    step = make_step(args.arch, args.size, args.forward, args.fused, fixed_statistics=args.fixed_statistics)
    images = step.runtime.images(torch.randn(args.batch_size, 3, args.size, args.size))
    labels = torch.arange(args.batch_size) % CLASSES
    chosen = step.runtime.precision
    print_rate(lambda: step.do(images, labels), args.batch_size, args.steps, precision=chosen)
