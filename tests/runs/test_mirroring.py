"""Runs on classes that a mirror exchanges: what is decided, said and stored, and that nothing is mirrored then."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageOps

from flowers_torch.config import Config, Stage
from flowers_torch.data.augment.names import AUGMENTATIONS
from flowers_torch.data.augment.preview import variants
from flowers_torch.data.quality.filter import filter_images
from flowers_torch.data.sources.folders import find_images
from flowers_torch.deploy.predictor import Predictor
from flowers_torch.errors import UsageError
from flowers_torch.models.checkpoint import load_classifier
from flowers_torch.models.recommended import Backbone
from flowers_torch.report.image_sections import augmentation_sheet
from flowers_torch.report.run_summary import read_run
from flowers_torch.runs import ranking, recipe
from flowers_torch.runs.evaluate import evaluate_data, evaluate_run
from flowers_torch.runs.experiment import Experiment
from flowers_torch.runs.update import update
from flowers_torch.training.device import choose_runtime

MakeConfig = Callable[..., Config]
CPU = choose_runtime("cpu", "fp32")
FIT = Stage(name="head", train="head", optimizer="lbfgs", augment="mirror")


def draw_arrows(root: Path, names: tuple[str, str], count: int = 40, seed: int = 0) -> Path:
    """Light arrows to the right and to the left on dark squares."""
    rng = np.random.default_rng(seed)
    for name in names:
        (root / name).mkdir(parents=True)
        for index in range(count):
            image = Image.new("RGB", (40, 40), tuple(int(x) for x in rng.integers(0, 110, 3)))
            x, y, s = rng.integers(8, 16), rng.integers(12, 28), rng.integers(6, 10)
            tip = [(x, y - s), (x, y + s), (x + 2 * s, y)]
            ImageDraw.Draw(image).polygon(tip, tuple(int(x) for x in rng.integers(190, 255, 3)))
            pixels = np.asarray(image) + rng.normal(0, 4, (40, 40, 3))
            image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
            (ImageOps.mirror(image) if name == names[1] else image).save(root / name / f"{seed}-{index}.png")
    return root


@pytest.fixture(scope="module")
def arrows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_arrows(tmp_path_factory.mktemp("arrows") / "neutral", ("one", "two"))


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_arrows(tmp_path_factory.mktemp("arrows") / "named", ("right", "left"), count=10)


@pytest.fixture(scope="module")
def unmirrored(arrows: Path, make_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that found out that a mirror exchanges its classes."""
    out = tmp_path_factory.mktemp("mirror") / "run"
    recipe.train(make_config(FIT, data=str(arrows), groups="none", mirror="auto"), out)
    return out


def test_a_measurement_decides_and_is_explained(
    unmirrored: Path, arrows: Path, make_config: MakeConfig, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "flowers_torch"):
        Experiment.new(make_config(FIT, data=str(arrows), groups="none", mirror="auto"))
    (line,) = [line for line in caplog.messages if line.startswith("mirror")]
    assert line.startswith("mirror   no: mirrored, ") and "photos of one and two recognized as the other" in line
    assert load_classifier(unmirrored)[1].mirror is False
    assert 'mirror = "auto"' in (unmirrored / "config.toml").read_text()


@pytest.mark.parametrize("mirror", ["auto", "yes", "no"])
def test_names_decide(mirror: str, named: Path, make_config: MakeConfig, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "flowers_torch"):
        experiment, _ = Experiment.new(make_config(data=str(named), mirror=mirror))
    lines = [line for line in caplog.messages if line.startswith("mirror")]
    assert experiment.info.mirror is (mirror == "yes")
    assert len(lines) == (mirror == "auto") and all("no: left and right are different classes" in x for x in lines)


def test_colors_are_mirrored(photo_folder: Path, make_config: MakeConfig, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "flowers_torch"):
        experiment, _ = Experiment.new(make_config(mirror="auto"))
    assert experiment.info.mirror is True
    assert sum(line.startswith("mirror   yes: ") for line in caplog.messages) == 1


def test_where_nothing_is_mirrored_nothing_is_measured(
    arrows: Path, make_config: MakeConfig, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "flowers_torch"):
        Experiment.new(make_config(Stage(augment="none"), data=str(arrows), groups="none", mirror="auto"))
        config = make_config(data=str(arrows), groups="none", mirror="auto")
        ranking.rank_models(config, [Backbone("test_resnet", "none", 32)])
    assert not any(line.startswith("mirror") for line in caplog.messages)


@pytest.mark.parametrize("augmentation", [name for name in AUGMENTATIONS if name not in ("none", "mirror")])
def test_no_augmentation_mirrors(augmentation: str) -> None:
    """An image whose noise grows to the right, in color or not, inverted or not."""
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 1, (64, 64, 3)) * np.linspace(2, 60, 64)[:, None]
    image = Image.fromarray((128 + noise).clip(0, 255).astype(np.uint8))
    for mirror, low, high in ((False, 0.9, 1.0), (True, 0.3, 0.7)):
        found = [np.asarray(x, dtype=float) for x in variants(image, augmentation, 48, 100, seed=1, mirror=mirror)]
        right = [x[8:-8, 24:40].std() > x[8:-8, 8:24].std() for x in found]
        assert low <= np.mean(right) <= high


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
def test_batches_obey(augmentation: str, arrows: Path, make_config: MakeConfig) -> None:
    """Every batch of an unmirrored run differs from, or equals, that of a mirrored one as its augmentation says."""
    makes = [make_config(data=str(arrows), groups="none", mirror=mirror) for mirror in ("no", "yes")]
    runs = [Experiment.new(config)[0].loaders.training(range(8), augmentation) for config in makes]
    for run in runs:
        run.order.epoch = 1
    no, yes = (next(iter(run)) for run in runs)
    assert torch.equal(no[2], yes[2])
    if augmentation in ("none", "mirror"):
        assert torch.equal(no[0], yes[0].flip(3) if augmentation == "mirror" else yes[0])
    elif augmentation in ("light", "crop"):  # the same crops, some of them mirrored
        same = torch.tensor([torch.allclose(a, b, atol=1e-5) for a, b in zip(no[0], yes[0], strict=True)])
        flip = torch.tensor([torch.allclose(a, b.flip(2), atol=1e-5) for a, b in zip(no[0], yes[0], strict=True)])
        assert bool((same ^ flip).all()) and flip.any()
    else:
        assert not torch.equal(no[0], yes[0])


def test_a_second_view_is_left_out(unmirrored: Path, arrows: Path, make_config: MakeConfig) -> None:
    assert "features 1 view of each photo" in (unmirrored / "log.txt").read_text()
    experiment, model = Experiment.new(make_config(FIT, data=str(arrows), groups="none", mirror="yes"))
    cache, split = experiment.features, experiment.features.split(model)
    assert split is not None
    features = cache.features(split, experiment.splits["train"], "mirror", 2)
    assert features is not None and len(features) == 2 * len(experiment.splits["train"])


def test_no_mirrored_views_in_evaluation(unmirrored: Path, arrows: Path) -> None:
    for views in ("flip", "crop10"):
        for evaluate in (
            lambda views: evaluate_run(unmirrored, views=views),
            lambda views: evaluate_data(Predictor.load(unmirrored, CPU), unmirrored, find_images(arrows), views=views),
        ):
            with pytest.raises(UsageError, match=f"--tta {views} mirrors photos.*use none, scales, crop5"):
                evaluate(views)
    assert set(evaluate_run(unmirrored, views="auto").validation) == {"none", "scales", "crop5"}


def test_what_training_did_not_measure_is_measured_before_mirrored_views(
    arrows: Path, make_config: MakeConfig, tmp_path: Path
) -> None:
    fit = dataclasses.replace(FIT, cached_views=1, augment="none")
    result = recipe.train(make_config(fit, data=str(arrows), groups="none", mirror="auto"), tmp_path / "run")
    assert load_classifier(result.folder)[1].mirror is True
    with pytest.raises(UsageError, match="--tta flip mirrors photos.*use none, scales, crop5"):
        evaluate_run(result.folder, views="flip")
    assert "flip" not in evaluate_run(result.folder, views="auto").validation


def test_the_report_shows_no_mirrored_photo(unmirrored: Path, arrows: Path) -> None:
    run, path = read_run(unmirrored), sorted((arrows / "one").iterdir())[0]
    sheets = [augmentation_sheet(run, [path], mirror)[0][1:] for mirror in (False, True)]
    assert len(set(sheets[0])) == 1 and len(set(sheets[1])) == 2  # augment = "mirror"


def test_mirrored_copies(named: Path, tmp_path: Path) -> None:
    """Copies of one picture where left and right are one class, and pictures of two classes where not."""
    for name, mirror, expected in (("left", "auto", 0), ("left", "no", 0), ("left", "yes", 6), ("top", "auto", 6)):
        root = tmp_path / f"{name}-{mirror}"
        for other in (name, "right"):
            (root / other).mkdir(parents=True)
        rng = np.random.default_rng(0)
        for index in range(6):
            pixels = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
            image = Image.fromarray(pixels).resize((120, 120), Image.Resampling.BICUBIC)
            image.save(root / "right" / f"{index}.png")
            ImageOps.mirror(image).save(root / name / f"{index}.png")
        assert len(filter_images(find_images(root), mirror=mirror).duplicates) == expected


def test_an_update_stays_unmirrored(unmirrored: Path, tmp_path: Path) -> None:
    more = draw_arrows(tmp_path / "more", ("one", "two"), count=6, seed=5)
    folder = update(unmirrored, str(more), out=tmp_path / "updated")
    assert load_classifier(folder)[1].mirror is False
    assert 'mirror = "no"' in (folder / "config.toml").read_text()


def test_a_resumed_run_obeys_its_checkpoint(unmirrored: Path) -> None:
    experiment, _ = Experiment.open(unmirrored, device="cpu")
    assert experiment.info.mirror is False and experiment.loaders.mirror is False
