"""Answers of a frozen front: the same training as without them, in less time, and never stale ones."""

import csv
import dataclasses
import os
import time
import tomllib
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flowers_torch.accelerate import Acceleration
from flowers_torch.cli import guarded, main
from flowers_torch.config import Config, Stage
from flowers_torch.config_file import load_config
from flowers_torch.data.loading.image_cache import allocate
from flowers_torch.errors import ResourceError, UsageError
from flowers_torch.files.tensors import safe_load
from flowers_torch.models.freeze import apply_rules, rules_for
from flowers_torch.models.split_model import SplitModel, split_network
from flowers_torch.runs import feature_cache as front
from flowers_torch.runs import recipe
from flowers_torch.runs.cost import stage_cost
from flowers_torch.runs.experiment import part_batches, prepare

STAGE = {"lr": 0.01, "augment": "light"}


def config(data: Path, out: Path, *stages: Stage, **changes: Any) -> Config:
    values = {"size": 32, "batch_size": 8, "precision": "fp32", "weights": "none", "device": "cpu"} | changes
    return Config(arch="test_resnet", data=str(data), out=str(out), stages=list(stages), **values)


def head(**changes: Any) -> Stage:
    return Stage(**({"name": "head", "train": "head", "epochs": 3, "views": 3} | STAGE | changes))


def weights(result: recipe.Result) -> dict[str, Tensor]:
    return safe_load(result.folder / "model.safetensors")[0]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWERS_TORCH_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def fronts_asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Number of photos in each batch that a front was run on."""
    asked: list[int] = []
    real, frozen_network = SplitModel.backbone, Acceleration.frozen_network

    def counted(self: SplitModel, images: Tensor, model: nn.Module | None = None) -> Tensor:
        asked.append(len(images))
        return real(self, images, model)

    def not_counted(*arguments: Any) -> nn.Module:
        count = len(asked)
        network = frozen_network(*arguments)
        del asked[count:]
        return network

    monkeypatch.setattr(SplitModel, "backbone", counted)
    monkeypatch.setattr(Acceleration, "frozen_network", not_counted)
    return asked


@pytest.mark.parametrize("augment", ["light", "crop", "mirror", "rand"])
def test_a_stored_head_stage_is_the_plain_one(photo_folder: Path, tmp_path: Path, augment: str) -> None:
    stored = recipe.train(config(photo_folder, tmp_path / "stored", head(augment=augment), dropout=0.3))
    plain = recipe.train(
        config(photo_folder, tmp_path / "plain", head(augment=augment, views=0), dropout=0.3)
    )
    assert "features" in {path.name for path in (tmp_path / "cache").iterdir()}
    for ours, theirs in zip(stored.history, plain.history, strict=True):
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-5)
        assert ours["val_loss"] == pytest.approx(theirs["val_loss"], rel=1e-5)
    theirs_by_name = weights(plain)
    for name, value in weights(stored).items():
        assert torch.allclose(value, theirs_by_name[name], rtol=1e-4, atol=1e-5), name


def test_a_stored_tail_stage_is_the_plain_one_up_to_bf16(photo_folder: Path, tmp_path: Path) -> None:
    results = []
    for views in (2, 0):
        tail = Stage(name="tail", train="layer2", epochs=2, views=views, **STAGE)
        results.append(recipe.train(config(photo_folder, tmp_path / f"{views}", tail, ema=0.5)))
    for ours, theirs in zip(results[0].history, results[1].history, strict=True):
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=2e-2)
        assert ours["val_loss"] == pytest.approx(theirs["val_loss"], rel=5e-2)


def test_few_views_come_again_in_later_epochs(
    photo_folder: Path, tmp_path: Path, fronts_asked: list[int]
) -> None:
    recipe.train(config(photo_folder, tmp_path / "run", head(epochs=5, views=2)))
    train, val, test, proof = 39, 11, 10, 2
    # Training photos once more, as prediction sees them: from these a model knows what is familiar.
    assert sum(fronts_asked) == 2 * train + val + proof + test + train
    fronts_asked.clear()
    recipe.train(config(photo_folder, tmp_path / "mirror", head(epochs=5, views=2, augment="mirror")))
    assert sum(fronts_asked) == proof + train  # of the two views one was known


def test_answers_are_found_again_and_only_while_they_hold(
    photo_folder: Path, tmp_path: Path, fronts_asked: list[int]
) -> None:
    def asked_by(name: str, *stages: Stage, **changes: Any) -> int:
        fronts_asked.clear()
        recipe.train(config(photo_folder, tmp_path / name, *stages, **changes))
        return sum(fronts_asked) - 2  # without the two example inputs of split_network()

    mirrored = head(augment="mirror")
    first = asked_by("first", mirrored)
    assert first > 0
    assert asked_by("same", head(augment="mirror", lr=0.02)) == 0
    assert asked_by("size", mirrored, size=40) > 0  # other preprocessing
    assert asked_by("seed", mirrored, seed=1) > 0  # other weights, other parts
    for path in (tmp_path / "cache" / "features").iterdir():
        path.write_bytes(path.read_bytes()[:-5] + b"wrong")
    assert asked_by("damaged", mirrored) == first


def test_only_views_without_chance_are_kept_and_old_features_go(photo_folder: Path, tmp_path: Path) -> None:
    features = tmp_path / "cache" / "features"
    features.mkdir(parents=True)
    for name, days in (("old", 91), ("new", 89)):
        (features / name).write_bytes(b"x" * 1000)
        os.utime(features / name, (time.time() - days * 86400,) * 2)
    flags = ["--data", str(photo_folder), "--arch", "test_resnet", "--weights", "none", "--size", "32"]
    flags += ["--set", "stages=[{name = 'head', train = 'head', epochs = 2, views = 2, augment = 'crop'}]"]
    assert main(["train", *flags, "--out", str(tmp_path / "run"), "--quiet"]) == 0
    kept = [path for path in features.iterdir() if path.suffix == ".safetensors"]
    assert len(kept) == 1  # the photos as prediction sees them
    assert not (features / "old").exists() and (features / "new").exists()


def test_features_beyond_their_size_go_oldest_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(front, "MOST_FEATURE_BYTES", 2500)
    for age, name in enumerate("abc"):
        (tmp_path / name).write_bytes(b"x" * 1000)
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    front.prune_features(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} >= {"a", "b"} and not (tmp_path / "c").exists()


def test_features_are_those_of_the_network_and_the_same_when_read(photo_folder: Path, tmp_path: Path) -> None:
    run = prepare(config(photo_folder, tmp_path / "run", head()))
    photos = [*range(0, 60, 7)]
    computed = front.pooled_features(run, photos)
    assert computed is not None
    batches = part_batches(dataclasses.replace(run, split={"asked": photos}), "asked")
    with torch.no_grad():
        images = torch.cat([images for images, _, _ in batches])
        expected = run.model.eval().forward_head(run.model.forward_features(images), pre_logits=True)
    assert float((computed - expected).norm() / expected.norm()) < 1e-5
    again = front.pooled_features(prepare(config(photo_folder, tmp_path / "run", head())), photos)
    assert again is not None and torch.equal(again, computed)


def test_features_of_other_weights_or_options_are_computed_anew(
    photo_folder: Path, tmp_path: Path, fronts_asked: list[int]
) -> None:
    """Also by a backbone that was fused before its weights changed."""
    run = prepare(config(photo_folder, tmp_path / "run", head()))
    apply_rules(run.model, rules_for(run.model, "head"))
    made = split_network(run.model, 32)
    assert made is not None
    asked = dataclasses.replace(run, split={"asked": [0, 1, 2]})

    def answers() -> Tensor:
        fronts_asked.clear()
        found = front.answers(asked, made, "asked", "none", 1, str)
        assert found is not None
        return found

    first = answers()
    assert sum(fronts_asked) == 3 and torch.equal(answers(), first) and not fronts_asked
    other = dataclasses.replace(run.info, model_options={"output_stride": 16})
    asked = dataclasses.replace(asked, info=other)  # the same tensors in another network
    assert torch.equal(answers(), first) and sum(fronts_asked) == 3
    with torch.no_grad():
        next(run.model.parameters()).mul_(1.5)
    changed = answers()
    assert sum(fronts_asked) == 3
    made = split_network(run.model, 32)
    (tmp_path / "cache" / "features").rename(tmp_path / "elsewhere")
    assert torch.equal(answers(), changed) and not torch.allclose(changed, first)


def test_a_cache_that_cannot_be_written_ends_no_run(
    photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*arguments: Any) -> None:
        raise ResourceError("no space left", "make room")

    monkeypatch.setattr(front, "safe_save", full)
    with caplog.at_level("INFO", logger="flowers_torch"):
        result = recipe.train(config(photo_folder, tmp_path / "run", head()))
    assert result.test.images == 10
    assert "features are not kept for next time: no space left" in caplog.text


def test_photos_and_answers_share_one_budget(photo_folder: Path, tmp_path: Path) -> None:
    run = prepare(config(photo_folder, tmp_path / "run", head()))
    assert run.room() == 2 * 2**30
    part_batches(run, "val")
    photos = 60 * 3 * 32 * 32
    assert run.room() == 2 * 2**30 - photos
    store = torch.empty(1000, dtype=torch.bfloat16)
    run.stores.append(weakref.ref(store))
    assert run.room() == 2 * 2**30 - photos - 2000
    del store
    assert run.room() == 2 * 2**30 - photos
    in_a_file = allocate((1000,), torch.bfloat16, 0, tmp_path)
    assert in_a_file is not None
    run.stores.append(weakref.ref(in_a_file))
    assert run.room() == 2 * 2**30 - photos


@pytest.mark.parametrize("augment", ["mirror", "light"])
def test_a_stored_stage_can_be_planned_and_augmented_photo_by_photo(
    photo_folder: Path, tmp_path: Path, augment: str, caplog: pytest.LogCaptureFixture
) -> None:
    for stage in (head(augment=augment), head(augment=augment, optimizer="lbfgs", views=2)):
        wanted = config(photo_folder, tmp_path / stage.optimizer, stage, batch_augment=False)
        cost = stage_cost(prepare(wanted), stage)
        assert cost.front_seconds > cost.epoch_seconds >= 0 and cost.memory_bytes > 0
        assert recipe.train(wanted).test.images == 10


def test_a_store_beyond_the_memory_is_a_file_that_leaves_nothing(
    photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files: list[str] = []
    real = torch.from_file
    monkeypatch.setattr(
        torch, "from_file", lambda name, **options: (files.append(name), real(name, **options))[1]
    )
    tail = head(train="layer2")
    within = recipe.train(config(photo_folder, tmp_path / "within", tail))
    assert not files
    beyond = recipe.train(config(photo_folder, tmp_path / "beyond", tail, cache_gib=0.0))
    assert len(files) >= 2
    theirs = weights(within)
    assert all(torch.equal(value, theirs[name]) for name, value in weights(beyond).items())
    assert not list((tmp_path / "cache").rglob("*.tmp"))


def test_without_room_the_front_runs_in_every_epoch(
    photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(front, "allocate", lambda *arguments: None)
    with caplog.at_level("INFO", logger="flowers_torch"):
        result = recipe.train(config(photo_folder, tmp_path / "run", head(train="layer2")))
    assert "no room" in caplog.text and len(result.history) == 3


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 2),
        ({"epochs": 1}, 1),
        ({"train": "all"}, 0),
        ({"views": 0}, 0),
        ({"train": "layer2", "views": 4}, 4),
        ({"mixup": 0.2}, 0),
        ({"batch_norm": "all"}, 0),
    ],
)
def test_views(changes: dict[str, Any], expected: int) -> None:
    stage = Stage(**({"train": "head", "epochs": 9} | changes))
    assert stage.stored_views(1000) == expected
    assert stage.stored_views(1_000_000) == (expected if "views" in changes else min(expected, 1))


def test_features_that_exceed_the_budget_are_not_stored(
    photo_folder: Path, tmp_path: Path, fronts_asked: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="flowers_torch"):
        recipe.train(config(photo_folder, tmp_path / "steps", head(views=2), cache_gib=0.0))
    assert "no room for what the frozen part answers" in caplog.text and sum(fronts_asked) == 2
    with pytest.raises(UsageError, match="lbfgs cannot store the features here; fix: raise cache_gib"):
        recipe.train(config(photo_folder, tmp_path / "head", head(optimizer="lbfgs"), cache_gib=0.0))


def test_mirrored_views_are_the_photo_and_its_mirror_image(photo_folder: Path, tmp_path: Path) -> None:
    from flowers_torch.runs.experiment import part_batches

    run = prepare(config(photo_folder, tmp_path / "run", head()))
    batches = part_batches(run, "train", "mirror")
    views = []
    for epoch in (0, 1, 2):
        batches.order.epoch = epoch
        views.append(torch.cat([images for images, _, _ in batches]))
    plain = torch.cat([images for images, _, _ in part_batches(run, "train")])
    assert torch.allclose(views[0], plain, atol=1e-6)
    assert torch.equal(views[1], views[0].flip(3)) and torch.equal(views[2], views[0])


def test_a_linear_head_is_fitted_at_once_and_the_next_stage_goes_on_from_it(
    photo_folder: Path, tmp_path: Path
) -> None:
    fit = Stage(name="head", train="head", optimizer="lbfgs", views=2, augment="mirror")
    tune = Stage(name="tune", train="head", epochs=1, lr=1e-9, augment="none", views=0)
    result = recipe.train(config(photo_folder, tmp_path / "run", fit, tune))
    head_row, tune_row = result.history
    assert head_row["train_accuracy"] > 0.9
    assert tune_row["train_loss"] == pytest.approx(head_row["train_loss"], abs=0.02)
    alone = recipe.train(config(photo_folder, tmp_path / "alone", fit))
    assert alone.test.accuracy >= 0.8


def test_head_only_from_the_command_line(photo_folder: Path, tmp_path: Path) -> None:
    arguments = ["--data", str(photo_folder), "--arch", "test_resnet", "--weights", "none", "--size", "32"]
    arguments += ["--out", str(tmp_path / "run"), "--precision", "fp32", "--head-only"]
    assert guarded("train", arguments) == 0
    done = load_config(file=str(tmp_path / "run" / "config.toml"))
    assert [stage.optimizer for stage in done.stages] == ["lbfgs"] and done.head_hidden == 0
    assert "lr" not in tomllib.loads((tmp_path / "run" / "config.toml").read_text())["stages"][0]


def test_a_stage_that_l_bfgs_fits_shows_no_learning_rate(
    photo_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--data", str(photo_folder), "--arch", "test_resnet", "--weights", "none", "--size", "32"]
    arguments += ["--precision", "fp32", "--device", "cpu", "--set", "stages.head.optimizer=lbfgs"]
    arguments += ["--set", "stages.head.augment=mirror", "--epochs", "1,1"]
    assert main(["lr-find", *arguments, "--stage", "head"]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "stage head is fitted by L-BFGS, which has no learning rate; fix: use --stage finetune" in told
    assert main(["lr-find", *arguments[:-2], "--head-only"]) == 2
    assert "fix: set stages.head.optimizer=adamw" in capsys.readouterr().err

    assert main(["train", *arguments, "--dry-run"]) == 0
    head_lines, finetune_lines = capsys.readouterr().out.split("stage 1")[1].split("stage 2")
    assert " lr" not in head_lines and "L-BFGS" in head_lines and " lr" in finetune_lines

    assert main(["train", *arguments, "--out", str(tmp_path / "run")]) == 0
    head_lines, finetune_lines = capsys.readouterr().out.split("stage 1")[1].split("stage 2")
    assert " lr" not in head_lines and " lr" in finetune_lines
    with (tmp_path / "run" / "history.csv").open() as file:
        rates = [row["lr"] for row in csv.DictReader(file)]
    assert rates[0] == "" and float(rates[1]) >= 0
    head_table = (tmp_path / "run" / "report.html").read_text().split("<h3>Stage head")[1].split("<h3>")[0]
    assert "L-BFGS" in head_table and " lr" not in head_table


@pytest.mark.parametrize("changes", [{"head_hidden": 8}, {"dropout": 0.1}, {"head_norm": True}])
def test_lbfgs_is_for_linear_heads(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="lbfgs needs train = head"):
        load_config(overrides={"stages.head.optimizer": "lbfgs", "stages.head.train": "head", **changes})
