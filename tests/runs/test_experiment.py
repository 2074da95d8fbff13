"""The fixed inputs of a run: new, resumed, opened."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from flowers_torch.config import Config, Stage
from flowers_torch.config_file import load_config
from flowers_torch.errors import DataError, UsageError
from flowers_torch.evaluation.predictions import load_predictions
from flowers_torch.models.factory import create_model
from flowers_torch.runs import recipe
from flowers_torch.runs.experiment import Experiment, images_ahead
from flowers_torch.runs.prediction import predict_indices
from flowers_torch.training.distributed import Distributed

MakeConfig = Callable[..., Config]


def test_what_is_chosen_becomes_part_of_the_configuration(make_config: MakeConfig) -> None:
    experiment, model = Experiment.new(make_config(precision="auto"))
    assert experiment.config.precision == experiment.runtime.precision != "auto"
    assert experiment.info.preprocessing.size == 32 and experiment.folder == Path()
    assert sum(map(len, experiment.splits.values())) == len(experiment.dataset)
    with pytest.raises(dataclasses.FrozenInstanceError):
        experiment.config = Config()  # type: ignore[misc]


def test_the_plan_says_what_a_run_computes_and_for_how_long(
    make_config: MakeConfig, caplog: pytest.LogCaptureFixture
) -> None:
    head = Stage(name="head", epochs=9, train="head", cached_views=2)
    with caplog.at_level("INFO", "flowers_torch"):
        experiment, _ = Experiment.new(make_config(head, Stage(name="finetune", epochs=3, train="all")))
    train, val, test = (len(experiment.splits[split]) for split in ("train", "val", "test"))
    assert images_ahead(experiment.config, experiment.splits) == 2 * train + val + 3 * (train + val) + test
    assert f"each epoch has {train} photos of 32 px, 8 per step; at most about " in caplog.text
    assert "device   cpu, fp32 (set by the user; " in caplog.text


def test_the_demo_is_small_enough_for_a_slow_cpu() -> None:
    """Operations of its steps, three forward passes each. Two AVX2 cores at 2 GHz could do 128 G/s."""
    config = load_config("inception_v3", "demo")
    assert [(stage.train, stage.epochs) for stage in config.stages] == [("head", 1), ("all", 7)]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        create_model(config.arch, 6).eval()(torch.zeros(1, 3, config.size, config.size))
    train, held_out = 540, 180
    images = sum(stage.epochs * (train * (1 if stage.train == "head" else 3) + held_out) for stage in config.stages)
    assert counter.get_total_flops() * (images + held_out) < 6.2e12


def test_too_small_an_input_is_refused_before_any_image_is_read(tmp_path: Path) -> None:
    config = Config(arch="inception_v3", data=str(tmp_path / "none"), weights="none", size=32)
    with pytest.raises(UsageError, match="--size 32 is too small for inception_v3"):
        Experiment.new(config)


def test_each_process_needs_two_images_of_a_batch(make_config: MakeConfig) -> None:
    class Main(Distributed):
        def broadcast(self, value):  # type: ignore[no-untyped-def]
            return value

    with pytest.raises(UsageError, match="--batch-size 8 is too small for 5 processes; fix: use 10 or more"):
        Experiment.new(make_config(), Main(size=5))


def test_an_opened_run_predicts_what_it_predicted(finished: recipe.Result) -> None:
    experiment, model = Experiment.open(finished.folder, "cpu")
    stored = load_predictions(finished.folder)
    for split in ("val", "test"):
        found = predict_indices(experiment, model, experiment.splits[split])
        assert torch.equal(found.labels, stored.labels[split])
        torch.testing.assert_close(found.logits, stored.logits[split], rtol=1e-4, atol=1e-4)
    features = predict_indices(experiment, model, experiment.splits["test"], from_features=True)
    torch.testing.assert_close(features.logits, stored.logits["test"], rtol=1e-3, atol=1e-3)


def test_a_run_whose_images_moved_or_changed_is_not_opened(
    photo_folder: Path, make_config: MakeConfig, tmp_path: Path
) -> None:
    shutil.copytree(photo_folder, tmp_path / "photos")
    recipe.train(make_config(make_config().stages[0], data=str(tmp_path / "photos")), tmp_path / "run")
    (tmp_path / "photos").rename(tmp_path / "moved")
    with pytest.raises(DataError, match="the photos of .* are not at .*photos; fix: .*--data"):
        Experiment.open(tmp_path / "run")
    Experiment.open(tmp_path / "run", data=str(tmp_path / "moved"))
    (tmp_path / "moved" / "red" / "0.png").unlink()
    with pytest.raises(DataError, match="1 missing"):
        Experiment.open(tmp_path / "run", data=str(tmp_path / "moved"))
    with pytest.raises(DataError, match="is not a run folder"):
        Experiment.open(tmp_path)
