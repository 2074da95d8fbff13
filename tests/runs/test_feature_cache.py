"""Cached features: the same training in less time, and never outdated ones."""

import dataclasses
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flowers_torch.accelerate import Acceleration
from flowers_torch.config import Config, Stage
from flowers_torch.data.preprocessing import Preprocessing
from flowers_torch.data.sources.open import open_dataset
from flowers_torch.errors import ResourceError, UsageError
from flowers_torch.files.cache import prune
from flowers_torch.files.tensors import safe_load, safe_save
from flowers_torch.models.split_model import SplitModel
from flowers_torch.report import image_sections
from flowers_torch.report.image_sections import Source
from flowers_torch.runs import feature_cache, feature_files, recipe, results
from flowers_torch.runs.experiment import Experiment
from flowers_torch.runs.feature_cache import FeatureCache
from flowers_torch.training.device import Runtime

MakeConfig = Callable[..., Config]


def head(**changes: Any) -> Stage:
    values = {"name": "head", "train": "head", "epochs": 3, "cached_views": 3, "lr": 0.01}
    return Stage(**(values | changes))


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWERS_TORCH_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Number of images in each batch that a backbone is run on."""
    counts: list[int] = []
    real, frozen_network = SplitModel.backbone, Acceleration.frozen_network

    def backbone(self: SplitModel, images: Tensor, network: nn.Module | None = None) -> Tensor:
        counts.append(len(images))
        return real(self, images, network)

    def not_counted(*arguments: Any) -> nn.Module:
        before = len(counts)
        network = frozen_network(*arguments)
        del counts[before:]
        return network

    monkeypatch.setattr(SplitModel, "backbone", backbone)
    monkeypatch.setattr(Acceleration, "frozen_network", not_counted)
    return counts


@pytest.mark.parametrize("augment", ["light", "crop", "mirror", "rand"])
def test_a_stage_on_cached_features_equals_the_plain_one(make_config: MakeConfig, tmp_path: Path, augment: str) -> None:
    cached, plain = (
        recipe.train(make_config(head(augment=augment, cached_views=views), dropout=0.3), tmp_path / f"{views}")
        for views in (3, 0)
    )
    assert "features" in {path.name for path in (tmp_path / "cache").iterdir()}
    for ours, theirs in zip(cached.history, plain.history, strict=True):
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-5)
        assert ours["val_loss"] == pytest.approx(theirs["val_loss"], rel=1e-5)
    ours, theirs = (safe_load(run.folder / "model.safetensors")[0] for run in (cached, plain))
    for name, value in ours.items():
        assert torch.allclose(value, theirs[name], rtol=1e-4, atol=1e-5), name


def test_later_epochs_repeat_the_cached_views(make_config: MakeConfig, tmp_path: Path, computed: list[int]) -> None:
    recipe.train(make_config(head(epochs=5, cached_views=2, augment="light")), tmp_path / "run")
    train, val, test = 36, 12, 12
    # The training images once more as prediction sees them: the detector is fitted on these.
    assert sum(computed) == 2 * train + val + test + train
    computed.clear()
    recipe.train(make_config(head(epochs=5, cached_views=2, augment="mirror")), tmp_path / "mirror")
    assert sum(computed) == train  # one of the two views was known


def test_features_are_read_again_only_while_they_hold(
    make_config: MakeConfig, tmp_path: Path, computed: list[int]
) -> None:
    def count(name: str, stage: Stage, **changes: Any) -> int:
        computed.clear()
        recipe.train(make_config(stage, **changes), tmp_path / name)
        return sum(computed)

    mirrored = head(augment="mirror")
    first = count("first", mirrored)
    assert first > 0
    assert count("same", head(augment="mirror", lr=0.02)) == 0
    assert count("size", mirrored, size=40) > 0  # other preprocessing
    assert count("seed", mirrored, seed=1) > 0  # other weights, other splits
    for path in (tmp_path / "cache" / "features").iterdir():
        path.write_bytes(path.read_bytes()[:-5] + b"wrong")
    assert count("damaged", mirrored) == first


def test_features_of_another_form_are_computed_again(
    make_config: MakeConfig, tmp_path: Path, computed: list[int]
) -> None:
    experiment, model = Experiment.new(make_config(head()))
    first = experiment.features.of_frozen(model, [0, 1, 2])
    (path,) = (tmp_path / "cache" / "features").iterdir()
    tensors, metadata = safe_load(path)
    features = tensors["features"]
    hostile: list[tuple[dict[str, Tensor], dict[str, Any]]] = [
        ({"features": features[:2]}, metadata),
        ({"features": features[:, :5]}, metadata),
        ({"features": features.double()}, metadata),
        ({"features": features[0]}, metadata),
        ({"features": features * torch.nan}, metadata),
        ({"x": features}, metadata),
        (tensors, {"images": metadata["images"][:1]}),
        (tensors, {"images": [[], 1, None]}),
        (tensors, {}),
    ]
    for number, (found, about) in enumerate(hostile):
        safe_save(found, path, about)
        computed.clear()
        assert torch.equal(experiment.features.of_frozen(model, [0, 1, 2]), first) and sum(computed) == 3, number


def test_features_depend_on_weights_and_options(make_config: MakeConfig, tmp_path: Path, computed: list[int]) -> None:
    """Also where the backbone was fused before its weights changed."""
    experiment, model = Experiment.new(make_config(head()))
    cache, images = experiment.features, [0, 1, 2]

    def features(cache: FeatureCache) -> Tensor:
        computed.clear()
        return cache.of_frozen(model, images)

    first = features(cache)
    assert sum(computed) == 3 and torch.equal(features(cache), first) and not computed
    info = dataclasses.replace(experiment.info, model_options={"output_stride": 16})
    other = FeatureCache(cache.loaders, info, cache.acceleration, cache.max_bytes)
    assert torch.equal(features(other), first) and sum(computed) == 3  # the same tensors in another network
    with torch.no_grad():
        next(model.parameters()).mul_(1.5)
    changed = features(cache)
    assert sum(computed) == 3
    (tmp_path / "cache" / "features").rename(tmp_path / "elsewhere")
    assert torch.equal(features(cache), changed) and not torch.allclose(changed, first)


def test_features_are_the_inputs_of_the_classifier_and_the_same_when_read(make_config: MakeConfig) -> None:
    indices = [*range(0, 60, 7)]
    experiment, model = Experiment.new(make_config(head()))
    features = experiment.features.of_frozen(model, indices)
    with torch.no_grad():
        images = torch.cat([images for images, _, _ in experiment.loaders.in_order(indices)])
        expected = model.eval().forward_head(model.forward_features(images), pre_logits=True)
    assert float((features - expected).norm() / expected.norm()) < 1e-5
    again, model = Experiment.new(make_config(head()))
    assert torch.equal(again.features.of_frozen(model, indices), features)


def test_images_of_a_single_view_are_not_kept_in_memory(make_config: MakeConfig) -> None:
    for views, kept in ((1, []), (2, [(True, 32)])):
        experiment, model = Experiment.new(make_config(head(), size=32, mirror="yes"))
        cache = experiment.features
        split = cache.split(model)
        assert split is not None
        cache.features(split, experiment.splits["train"], "mirror", views)
        assert list(experiment.loaders.cache.arrays) == kept


def test_a_network_is_split_again_only_for_another_head(make_config: MakeConfig) -> None:
    experiment, model = Experiment.new(make_config(head()))
    cache = experiment.features
    first = cache.split(model)
    assert first is not None and cache.split(model) is first
    model.reset_classifier(5)  # type: ignore[operator]
    second = cache.split(model)
    assert second is not None and second is not first
    assert second.head_of(model)(torch.zeros(2, second.width)).shape == (2, 5)


def test_an_image_is_read_once_for_its_digest(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment, _ = Experiment.new(make_config(head()))
    opened: list[Path] = []
    real = feature_cache.open_regular
    monkeypatch.setattr(feature_cache, "open_regular", lambda path: (opened.append(path), real(path))[1])
    first, second = experiment.features._hash_images([3, 1]), experiment.features._hash_images([1, 2, 3])
    assert second == [first[1], second[1], first[0]] and len(set(second)) == 3 and len(opened) == 3


def test_only_views_without_randomness_are_cached_on_disk(make_config: MakeConfig, tmp_path: Path) -> None:
    """Files that nobody used for long are removed."""
    features = tmp_path / "cache" / "features"
    features.mkdir(parents=True)
    for name, days in (("old", 91), ("new", 89)):
        (features / name).write_bytes(b"x" * 1000)
        os.utime(features / name, (time.time() - days * 86400,) * 2)
    recipe.train(make_config(head(epochs=2, cached_views=2, augment="crop")), tmp_path / "run")
    assert len(list(features.glob("*.safetensors"))) == 1  # the images as prediction sees them
    assert not (features / "old").exists() and (features / "new").exists()


def test_beyond_the_size_limit_the_oldest_files_are_removed(tmp_path: Path) -> None:
    (tmp_path / "features").mkdir()
    for age, name in enumerate("abc"):
        (tmp_path / "features" / name).write_bytes(b"x" * 1000)
        os.utime(tmp_path / "features" / name, (time.time() - age,) * 2)
    prune(tmp_path / "features", max_age=60, max_bytes=2500)
    assert {path.name for path in (tmp_path / "features").iterdir()} == {"a", "b"}


def test_a_cache_that_cannot_be_written_ends_no_run(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*arguments: Any) -> None:
        raise ResourceError("no space left", "free space")

    monkeypatch.setattr(feature_files, "safe_save", full)
    with caplog.at_level("INFO", logger="flowers_torch"):
        result = recipe.train(make_config(head()), tmp_path / "run")
    assert result.test.images == 12
    assert "features are not cached on disk: no space left" in caplog.text


def test_the_report_searches_similar_photos_among_more_where_features_are_cached(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched = []

    def write_report(folder: Path, info: Any, source: Source) -> Path:
        searched.append(source.similar_pool)
        return folder / "report.html"

    monkeypatch.setattr(results, "write_report", write_report)
    for train in ("head", "all"):
        recipe.train(make_config(head(epochs=1, train=train)), tmp_path / train)
    assert searched == [results.SIMILAR_POOL, image_sections.SIMILAR_POOL] and searched[0] > searched[1]


@pytest.mark.parametrize("pool", [3, 10_000])
def test_so_many_training_photos_are_compared_with_a_mistake(pool: int, photo_folder: Path) -> None:
    dataset = open_dataset(photo_folder)
    wrong, *train = dataset.paths
    labels = torch.tensor([dataset.labels[0]])
    run: Any = SimpleNamespace(paths=[wrong], labels=labels, predicted=[1], classes=dataset.classes)
    run.split = {"train": train[:-1]}
    asked: list[int] = []

    def features(indices: Sequence[int]) -> Tensor:
        asked.append(len(indices) - 1)  # but the mistake
        return torch.eye(len(indices))

    source = Source(dataset, [], nn.Identity(), Runtime(torch.device("cpu"), "fp32", ""), features=features)
    found = image_sections.find_similar(run, [0], Preprocessing(), dataclasses.replace(source, similar_pool=pool))
    members = sum(dataset.labels[dataset.paths.index(name)] in (0, 1) for name in train[:-1])
    assert asked == [min(pool, members)] and len(found[0]) == image_sections.SIMILAR


def test_features_beyond_the_memory_are_not_cached(
    make_config: MakeConfig, tmp_path: Path, computed: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="flowers_torch"):
        result = recipe.train(make_config(head(), cache_gib=0.0), tmp_path / "run")
    assert "features exceed cache_gib" in caplog.text
    assert not computed and len(result.history) == 3
    experiment, model = Experiment.new(make_config(head(), cache_gib=0.0))
    with pytest.raises(UsageError, match="features exceed cache_gib; fix: .*raise cache_gib"):
        experiment.features.of_frozen(model, [0, 1])
