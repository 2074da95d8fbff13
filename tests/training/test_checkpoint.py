"""Checkpoints: what is written is read back, which weights are the best, and when they are written."""

import types
from pathlib import Path

import pytest
import torch
from torch import nn

from flowers_torch.data.preprocessing import Preprocessing
from flowers_torch.errors import ModelFileError, ResourceError
from flowers_torch.files.tensors import safe_load, safe_save
from flowers_torch.models.checkpoint import ModelInfo, load_classifier, save_classifier
from flowers_torch.models.factory import create_model
from flowers_torch.models.freeze import Group
from flowers_torch.training import checkpoint
from flowers_torch.training.checkpoint import (
    MODEL_FILE,
    PREVIOUS_FILE,
    RESUME_FILE,
    Checkpointer,
    RunState,
    is_better,
    read_checkpoint,
    read_newest_checkpoint,
    restore_model,
    restore_train_state,
    save_checkpoint,
)
from flowers_torch.training.device import Runtime
from flowers_torch.training.optimization import make_optimizer
from flowers_torch.training.state import EpochMetrics, TrainState
from flowers_torch.training.step import train_step

INFO = ModelInfo("test_resnet", ("a", "b"), Preprocessing(size=32))
RUNTIME = Runtime(torch.device("cpu"), "fp32", "for a test")


def training(optimizer: str = "adamw", part: str = "fc") -> TrainState:
    torch.manual_seed(1)
    model = create_model("test_resnet", num_classes=2)
    names = tuple(name for name, _ in model.named_parameters() if name.startswith(part))
    made = make_optimizer(optimizer, model, [Group(part, names, 1.0)])
    return TrainState(model, made, RUNTIME.scaler(), RUNTIME)


def step(state: TrainState) -> None:
    generator = torch.Generator().manual_seed(2)
    train_step(state, torch.randn(4, 3, 32, 32, generator=generator), torch.tensor([0, 1, 1, 0]), lr=0.01)


def row(loss: float, accuracy: float = 0.5) -> dict[str, float]:
    whole = {"stage": "head", "epoch": 1, "lr": None, "train_loss": 1.0, "train_accuracy": 0.5, "val_loss": 1.0}
    whole |= {"seconds": 1.0, "images_per_second": 9.0, "changes": 0}
    return {**whole, "val_calibrated_loss": loss, "val_accuracy": accuracy}


def test_a_run_on_the_cpu_leaves_the_gpu_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading its random stream would start CUDA and take some of its memory."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda *device: pytest.fail("it starts CUDA"))
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda *arguments: pytest.fail("it starts CUDA"))
    save_checkpoint(tmp_path / RESUME_FILE, RunState(), INFO, training())
    saved = read_checkpoint(tmp_path / RESUME_FILE)
    saved.tensors["random/cuda"] = torch.zeros(16, dtype=torch.uint8)  # as of a run that began on a GPU
    restore_train_state(training(), saved)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "rmsprop"])
def test_a_restored_state_continues_exactly(tmp_path: Path, optimizer: str) -> None:
    state = training(optimizer)
    step(state)
    run_state = RunState(
        stage=1, epoch=2, step=3, metrics=EpochMetrics(1.5, 2, 4), history=2 * [row(1.0)], best=row(1.0)
    )
    torch.manual_seed(99)
    save_checkpoint(tmp_path / RESUME_FILE, run_state, INFO, state)
    expected_draw = torch.rand(3)
    step(state)

    other = training(optimizer)
    saved = read_checkpoint(tmp_path / RESUME_FILE)
    restore_model(other.model, saved)
    restore_train_state(other, saved)
    assert saved.state == run_state and saved.info == INFO
    assert torch.equal(torch.rand(3), expected_draw)
    step(other)
    for name, value in state.model.state_dict().items():
        assert torch.equal(other.model.state_dict()[name], value), name


def test_a_checkpoint_of_other_parameters_is_refused(tmp_path: Path) -> None:
    state = training()
    step(state)
    save_checkpoint(tmp_path / RESUME_FILE, RunState(), INFO, state)
    with pytest.raises(ModelFileError, match="which this stage does not"):
        restore_train_state(training(part="layer4"), read_checkpoint(tmp_path / RESUME_FILE))


def test_the_best_epoch_has_the_lowest_finite_loss() -> None:
    assert is_better(row(1.0), {}) and is_better(row(0.9, 0.1), row(1.0, 0.9))
    assert not is_better(row(1.0), row(1.0))
    assert not is_better(row(torch.nan), {}) and not is_better(row(torch.nan), row(1.0))


def test_the_best_weights_are_those_of_the_best_epoch(tmp_path: Path) -> None:
    state = training()
    checkpointer = Checkpointer(tmp_path, RunState(), INFO, minutes=1e9)
    checkpointer.end_epoch(row(0.5), state.model)
    best = state.model.fc.weight.detach().clone()
    step(state)
    checkpointer.end_epoch(row(0.7), state.model)
    checkpointer.save_if_due(state, force=True)
    assert torch.equal(load_classifier(tmp_path)[0].fc.weight, best)
    resumed = training().model
    restore_model(resumed, read_checkpoint(tmp_path / RESUME_FILE))
    assert torch.equal(resumed.fc.weight, state.model.fc.weight)
    assert checkpointer.state.epoch == 2 and checkpointer.state.best == row(0.5)


def test_when_a_checkpoint_is_due(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    # Only the clock of this module.
    monkeypatch.setattr(checkpoint, "time", types.SimpleNamespace(monotonic=lambda: clock[0]))
    checkpointer = Checkpointer(tmp_path, RunState(step=1), INFO, minutes=2)
    state, path = training(), tmp_path / RESUME_FILE

    def saves(seconds: float, **arguments: bool) -> bool:
        clock[0] += seconds
        path.unlink(missing_ok=True)
        checkpointer.save_if_due(state, **arguments)
        return path.exists()

    assert not saves(100) and saves(21)  # within an epoch: after two minutes
    checkpointer.end_epoch(row(1.0), state.model)
    assert not saves(25) and saves(6)  # at the end of an epoch: unless the last save is fresh
    assert not (tmp_path / MODEL_FILE).read_bytes() == b"" and saves(0, force=True)


def test_a_weights_file_is_not_a_checkpoint(tmp_path: Path) -> None:
    save_classifier(training().model.state_dict(), INFO, tmp_path / MODEL_FILE)
    torch.save(nn.Linear(1, 1).state_dict(), tmp_path / "foreign")
    with pytest.raises(ModelFileError, match="is not a checkpoint of a run"):
        read_checkpoint(tmp_path / MODEL_FILE)
    with pytest.raises(ModelFileError):
        read_checkpoint(tmp_path / "foreign")


def saved_twice(folder: Path) -> TrainState:
    """A folder with two checkpoints, of steps 1 and 2."""
    state = training()
    for number in (1, 2):
        step(state)
        save_checkpoint(folder / RESUME_FILE, RunState(step=number), INFO, state, {"batch_size": "8"})
    return state


def test_a_damaged_checkpoint_is_replaced_by_the_previous_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    saved_twice(tmp_path)
    assert read_newest_checkpoint(tmp_path).state.step == 2 and not caplog.text
    assert read_newest_checkpoint(tmp_path).fingerprint == {"batch_size": "8"}
    content = bytearray((tmp_path / RESUME_FILE).read_bytes())
    content[-1] ^= 1
    (tmp_path / RESUME_FILE).write_bytes(content)
    assert read_newest_checkpoint(tmp_path).state.step == 1
    assert "checksum" in caplog.text and PREVIOUS_FILE in caplog.text and "WARNING" in caplog.text
    (tmp_path / RESUME_FILE).unlink()  # killed between the two renames of a save
    assert read_newest_checkpoint(tmp_path).state.step == 1
    (tmp_path / PREVIOUS_FILE).write_bytes(b"")
    with pytest.raises(ModelFileError, match="empty or incomplete"):
        read_newest_checkpoint(tmp_path)
    (tmp_path / PREVIOUS_FILE).unlink()
    with pytest.raises(ModelFileError, match="holds no checkpoint"):
        read_newest_checkpoint(tmp_path)


def test_a_checkpoint_of_a_newer_format_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "FORMAT", 99)
    saved_twice(tmp_path)
    with pytest.raises(ModelFileError, match="update: pip install"):
        read_newest_checkpoint(tmp_path)


def test_the_micro_batch_is_restored(tmp_path: Path) -> None:
    state = training()
    state.micro_batch = 4
    save_checkpoint(tmp_path / RESUME_FILE, RunState(), INFO, state)
    for wanted, then in ((0, 4), (8, 4), (2, 2)):
        other = training()
        other.micro_batch = wanted
        restore_train_state(other, read_newest_checkpoint(tmp_path))
        assert other.micro_batch == then


def test_a_run_folder_that_is_gone_is_not_created_again(tmp_path: Path) -> None:
    checkpointer = Checkpointer(tmp_path / "run", RunState(step=1), INFO, minutes=0)
    for save in (checkpointer.save, checkpointer.check_space):
        with pytest.raises(ResourceError, match="is gone"):
            save(training())
    assert not list(tmp_path.iterdir())


def test_disk_space_is_checked_before_a_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = saved_twice(tmp_path)
    checkpointer = Checkpointer(tmp_path, RunState(), INFO, minutes=1)
    weights = sum(value.nbytes for value in state.model.state_dict().values())
    there = sum(path.stat().st_size for path in tmp_path.iterdir())

    def room(free: float) -> None:
        monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _: types.SimpleNamespace(free=free))

    room(4.2 * weights - there)  # three checkpoints with the optimizer state of a small head, and the best weights
    checkpointer.check_space(state)
    room(3.9 * weights - there)
    with pytest.raises(ResourceError, match="MB more for its checkpoints"):
        checkpointer.check_space(state)


def test_only_one_of_several_processes_writes(tmp_path: Path) -> None:
    checkpointer = Checkpointer(tmp_path, RunState(), INFO, minutes=0, writes=False)
    state = training()
    checkpointer.end_epoch(row(0.5), state.model)
    checkpointer.save(state)
    assert not list(tmp_path.iterdir()) and checkpointer.best_weights().keys() == state.model.state_dict().keys()


def test_a_change_restarts_the_epoch_and_is_recorded() -> None:
    state = RunState(stage=1, epoch=2, step=3, metrics=EpochMetrics(1.0, 2, 3), seconds=4.0)
    state.restart_epoch({"options": "seed 0 -> 1"})
    assert state.changes == [{"stage": 1, "epoch": 2, "options": "seed 0 -> 1"}]
    assert (state.step, state.metrics, state.seconds) == (0, EpochMetrics(), 0.0)


def changed(path: Path, change: dict[str, object], tensors: dict[str, torch.Tensor | None] | None = None) -> Path:
    """Writes a checkpoint again with other values of its state, or other tensors."""
    old, metadata = safe_load(path)
    kept = {name: value for name, value in (old | (tensors or {})).items() if value is not None}
    safe_save(
        kept,
        path,
        metadata
        | {k: v for k, v in change.items() if k in metadata}
        | {"state": metadata["state"] | {k: v for k, v in change.items() if k not in metadata}},
    )
    return path


@pytest.mark.parametrize(
    "change",
    [
        *({"stage": value} for value in (-1, None, "head", 2**70, 1.5)),
        *({"metrics": value} for value in ([], {}, {"loss": "x", "correct": 0, "images": 0})),
        *({"history": value} for value in ("x", {}, [1], [{"epoch": 1}], [row(1.0) | {"val_loss": "x"}])),
        *({"best": value} for value in ([1], {"stage": 3}, row(1.0) | {"train_accuracy": 7})),
        *({"changes": [1]}, {"elapsed": "x"}, {"other": 1}),
        *({"scaler": [1]}, {"micro_batch": -1}, {"fingerprint": {"a": []}}),
    ],
)
def test_hostile_state_is_not_a_checkpoint(tmp_path: Path, change: dict[str, object]) -> None:
    save_checkpoint(tmp_path / RESUME_FILE, RunState(history=[row(1.0)], best=row(1.0)), INFO, training())
    with pytest.raises(ModelFileError, match="resume.safetensors is not a checkpoint of a run"):
        read_checkpoint(changed(tmp_path / RESUME_FILE, change))


def test_a_checkpoint_has_a_row_for_each_epoch(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / RESUME_FILE, RunState(history=[row(1.0)]), INFO, training())
    assert read_checkpoint(changed(tmp_path / RESUME_FILE, {"epoch": 1})).state.epoch == 1
    with pytest.raises(ModelFileError, match="it is in epoch 2 after 1"):
        read_checkpoint(changed(tmp_path / RESUME_FILE, {"epoch": 2}))


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "rmsprop"])
def test_hostile_optimizer_state(tmp_path: Path, optimizer: str) -> None:
    state = training(optimizer)
    step(state)
    path = tmp_path / RESUME_FILE
    save_checkpoint(path, RunState(), INFO, state)
    fields = [name for name in safe_load(path)[0] if name.startswith("optimizer/fc.weight/")]
    for field in fields:
        # Without its only field a parameter has no state, as before its first step.
        for value in (torch.zeros(7), None)[: len(fields)]:
            save_checkpoint(path, RunState(), INFO, state)
            with pytest.raises(ModelFileError, match="state of fc.weight is not complete, or of another shape"):
                restore_train_state(training(optimizer), read_checkpoint(changed(path, {}, {field: value})))


def test_hostile_random_state(tmp_path: Path) -> None:
    for value in (None, torch.zeros(3), torch.zeros(7, dtype=torch.uint8)):
        save_checkpoint(tmp_path / RESUME_FILE, RunState(), INFO, training())
        path = changed(tmp_path / RESUME_FILE, {}, {"random/cpu": value})
        with pytest.raises(ModelFileError, match="is not a checkpoint of this stage"):
            restore_train_state(training(), read_checkpoint(path))
