"""A learning-rate sweep for one stage of a configuration."""

from flowers_torch.config import Config
from flowers_torch.errors import UsageError, printable
from flowers_torch.runs.experiment import Experiment
from flowers_torch.runs.stage import make_train_state
from flowers_torch.training.lr_finder import Sweep, lr_find


def find_learning_rate(config: Config, number: int, lowest: float, highest: float, steps: int) -> Sweep:
    """Trains a stage, given by its position, for a few steps at increasing learning rates."""
    experiment, model = Experiment.new(config)
    stage = config.stages[number]
    state = make_train_state(experiment, model, stage, number)
    size = experiment.info.preprocessing.size
    state.network = experiment.acceleration.training_network(model, experiment.runtime, size)
    batches = experiment.loaders.training(experiment.splits["train"], stage.augment, stage.mixup)
    return lr_find(state, batches, lowest, highest, steps)


def stage_number(config: Config, name: str | None) -> int:
    """The position of a stage by its name; the last stage without a name.

    Raises:
        UsageError: there is no such stage, or it has no learning rate.
    """
    names = [stage.name for stage in config.stages]
    name = name or names[-1]
    if name not in names:
        raise UsageError(f"--stage {printable(name, 40)}: there is no such stage", f"use {', '.join(names)}")
    number = names.index(name)
    if config.stages[number].is_fitted:
        others = [stage.name for stage in config.stages if not stage.is_fitted]
        fix = f"use --stage {others[-1]}" if others else f"set stages.{name}.optimizer=adamw"
        raise UsageError(f"stage {name} is fitted by L-BFGS, which has no learning rate", fix)
    return number
