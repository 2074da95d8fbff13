"""Progress on disk: what is written comes back; what is best; when it is written."""

from pathlib import Path

import pytest
import torch
from torch import nn

from flowers_torch.errors import ModelFileError
from flowers_torch.models.classifier import Record, load_classifier
from flowers_torch.models.freeze import Group
from flowers_torch.models.zoo import Preprocessing, create_model
from flowers_torch.training import checkpoint
from flowers_torch.training.checkpoint import (
    MODEL_FILE,
    RESUME_FILE,
    Progress,
    Saver,
    is_better,
    read_progress,
    restore_model,
    restore_training,
    save_progress,
)
from flowers_torch.training.engine import Sums, Training, train_step
from flowers_torch.training.optim import make_optimizer
from flowers_torch.training.runtime import Runtime

RECORD = Record("test_resnet", ("a", "b"), Preprocessing(size=32))
RUNTIME = Runtime(torch.device("cpu"), "fp32", "for a test")


def training(optimizer: str = "adamw", part: str = "fc") -> Training:
    torch.manual_seed(1)
    model = create_model("test_resnet", num_classes=2)
    names = tuple(name for name, _ in model.named_parameters() if name.startswith(part))
    made = make_optimizer(optimizer, model, [Group(part, names, 1.0)])
    return Training(model, made, RUNTIME.scaler(), RUNTIME)


def step(state: Training) -> None:
    generator = torch.Generator().manual_seed(2)
    train_step(state, torch.randn(4, 3, 32, 32, generator=generator), torch.tensor([0, 1, 1, 0]), lr=0.01)


def row(loss: float, accuracy: float = 0.5) -> dict[str, float]:
    return {"val_loss": loss, "val_accuracy": accuracy}


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "rmsprop"])
def test_a_restored_state_goes_on_exactly(tmp_path: Path, optimizer: str) -> None:
    state = training(optimizer)
    step(state)
    progress = Progress(stage=1, epoch=2, step=3, sums=Sums(1.5, 2, 4), history=[row(1.0)], best=row(1.0))
    torch.manual_seed(99)
    save_progress(tmp_path / RESUME_FILE, progress, RECORD, state)
    expected_draw = torch.rand(3)
    step(state)

    other = training(optimizer)
    saved = read_progress(tmp_path / RESUME_FILE)
    restore_model(other.model, saved)
    restore_training(other, saved)
    assert saved.progress == progress and saved.record == RECORD
    assert torch.equal(torch.rand(3), expected_draw)
    step(other)
    for name, value in state.model.state_dict().items():
        assert torch.equal(other.model.state_dict()[name], value), name


def test_another_stage_s_optimiser_is_refused(tmp_path: Path) -> None:
    state = training()
    step(state)
    save_progress(tmp_path / RESUME_FILE, Progress(), RECORD, state)
    with pytest.raises(ModelFileError, match="which this stage does not"):
        restore_training(training(part="layer4"), read_progress(tmp_path / RESUME_FILE))


def test_best_is_by_loss_and_nan_never_is() -> None:
    assert is_better(row(1.0), {}) and is_better(row(0.9, 0.1), row(1.0, 0.9))
    assert not is_better(row(1.0), row(1.0))
    assert not is_better(row(torch.nan), {}) and not is_better(row(torch.nan), row(1.0))


def test_the_best_weights_are_those_of_the_best_epoch(tmp_path: Path) -> None:
    state = training()
    saver = Saver(tmp_path, Progress(), RECORD, minutes=1e9)
    saver.end_epoch(row(0.5), state.model)
    best = state.model.fc.weight.detach().clone()
    step(state)
    saver.end_epoch(row(0.7), state.model)
    saver.save_if_due(state, force=True)
    assert torch.equal(load_classifier(tmp_path)[0].fc.weight, best)
    resumed = training().model
    restore_model(resumed, read_progress(tmp_path / RESUME_FILE))
    assert torch.equal(resumed.fc.weight, state.model.fc.weight)
    assert saver.progress.epoch == 2 and saver.progress.best == row(0.5)


def test_when_it_saves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: clock[0])
    saver = Saver(tmp_path, Progress(step=1), RECORD, minutes=2)
    state, path = training(), tmp_path / RESUME_FILE

    def saves(seconds: float, **arguments: bool) -> bool:
        clock[0] += seconds
        path.unlink(missing_ok=True)
        saver.save_if_due(state, **arguments)
        return path.exists()

    assert not saves(100) and saves(21)  # within an epoch: after two minutes
    saver.end_epoch(row(1.0), state.model)
    assert not saves(5) and saves(6)  # at the end of an epoch: unless the last save is fresh
    assert not (tmp_path / MODEL_FILE).read_bytes() == b"" and saves(0, force=True)


def test_a_weights_file_is_no_resume_file(tmp_path: Path) -> None:
    torch.save(nn.Linear(1, 1).state_dict(), tmp_path / "x")
    with pytest.raises(ModelFileError, match="no resume file"):
        read_progress(tmp_path / "x")
