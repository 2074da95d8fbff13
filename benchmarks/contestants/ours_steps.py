"""A contestant: this package's own training step on resident noise, in the precision that its probe takes."""

import torch
from told import arguments, tell_rate

from flowers_torch.models.freeze import apply_rules, rules_for, set_train_mode
from flowers_torch.models.zoo import create_model
from flowers_torch.training.engine import predict_logits, train_step
from flowers_torch.training.optim import make_optimizer
from flowers_torch.training.runtime import choose_runtime, probe_precision
from flowers_torch.training.steps import Training

args = arguments(__doc__).parse_args()
runtime = choose_runtime()
model = runtime.place(create_model(args.arch, num_classes=17))
runtime = probe_precision(runtime, model, args.size, backward=not args.forward)
images = torch.randn(args.batch_size, 3, args.size, args.size)
labels = torch.arange(args.batch_size) % 17
groups = apply_rules(model, rules_for(model, "all"))
set_train_mode(model)
training = Training(model, make_optimizer("adamw", model, groups), runtime.scaler(), runtime)


def step():
    if args.forward:
        predict_logits(model, [(images, labels)], runtime)
    else:
        train_step(training, images, labels, 1e-4)


tell_rate(step, args.batch_size, args.steps)
