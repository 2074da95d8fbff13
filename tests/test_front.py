"""Answers of a frozen front: the same training as without them, in less time, and never stale ones."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flowers_torch import front, recipe
from flowers_torch.cli import guarded
from flowers_torch.config import Config, Stage, load_config
from flowers_torch.errors import UsageError
from flowers_torch.files import safe_load
from flowers_torch.models.cut import Cut
from flowers_torch.prepare import prepare

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
    real = Cut.front

    def counted(self: Cut, images: Tensor, model: nn.Module | None = None) -> Tensor:
        if model is None:  # else it is folding that tries its copies
            asked.append(len(images))
        return real(self, images, model)

    monkeypatch.setattr(Cut, "front", counted)
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
        return sum(fronts_asked) - 2  # without the two pictures of cut()'s proof

    first = asked_by("first", head())
    assert first > 0
    assert asked_by("same", head(lr=0.02)) == 0
    assert asked_by("size", head(), size=40) > 0  # other preprocessing
    assert asked_by("seed", head(), seed=1) > 0  # other weights, other parts
    for path in (tmp_path / "cache" / "features").iterdir():
        path.write_bytes(path.read_bytes()[:-5] + b"wrong")
    assert asked_by("damaged", head()) == first


def test_a_store_beyond_the_memory_is_a_file_that_leaves_nothing(photo_folder: Path, tmp_path: Path) -> None:
    tail = head(train="layer2")
    within = recipe.train(config(photo_folder, tmp_path / "within", tail))
    beyond = recipe.train(config(photo_folder, tmp_path / "beyond", tail, store_gib=0.0))
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
    assert Stage(**({"train": "head", "epochs": 9} | changes)).stored_views() == expected


def test_mirrored_views_are_the_photo_and_its_mirror_image(photo_folder: Path, tmp_path: Path) -> None:
    from flowers_torch.prepare import part_batches

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


@pytest.mark.parametrize("changes", [{"head_hidden": 8}, {"dropout": 0.1}, {"head_norm": True}])
def test_lbfgs_is_for_linear_heads(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="lbfgs needs train = head"):
        load_config(overrides={"stages.0.optimizer": "lbfgs", "stages.0.train": "head", **changes})
