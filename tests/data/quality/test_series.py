"""Series of photos are found by folders, names, times and looks, and what they do to a test is measured."""

import argparse
import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flowers_torch.commands import check
from flowers_torch.data.quality.series import find_series, measure_series, thumbnail_vectors
from flowers_torch.data.sources.folders import find_images
from flowers_torch.data.sources.tables import read_groups


def put(root: Path, name: str, seed: int, variant: int = 0, time: str = "") -> None:
    """A picture of random patches; variants of a seed look alike."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(60, 200, (6, 6, 3))
    pixels = pixels + np.random.default_rng(variant).integers(-25, 25, (6, 6, 3))
    exif = Image.Exif()
    if time:
        exif.get_ifd(0x8769)[0x9003] = time
    image = Image.fromarray(pixels.astype(np.uint8)).resize((96, 96), Image.Resampling.BICUBIC)
    image.save(path, "JPEG", quality=92, exif=exif)


def plants(root: Path, form: str = "{label}/plant{plant}_{i:02}.jpg") -> Path:
    """Two classes of four plants with five photos each; a plant looks like itself only."""
    for plant in range(8):
        for i in range(5):
            put(root, form.format(label="ab"[plant % 2], plant=plant, i=i), plant, 100 * plant + i)
    return root


@pytest.mark.parametrize(
    ("form", "kind"),
    [
        ("{label}/plant{plant}_{i:02}.jpg", "file names"),
        ("{label}/IMG_{plant} ({i}).jpg", "file names"),
        ("{label}/rose-{plant}b-{i}.jpg", "file names"),
        ("{label}/plant{plant}/{i}x.jpg", "inner folders"),
    ],
)
def test_series_by_name(tmp_path, form, kind):
    dataset = find_images(plants(tmp_path / "set", form), classes="top")
    series = find_series(dataset)
    assert series.kind == kind and len(set(series.groups.values())) == 8 and len(series.groups) == 40


@pytest.mark.parametrize(
    "form", ["{label}/{plant}{i:02}.jpg", "{label}/{label}.{plant}{i}.jpg", "{label}/x{plant}{i}y.jpg"]
)
def test_numbered_photos_are_not_a_series(tmp_path, form):
    assert find_series(find_images(plants(tmp_path / "set", f"{{label}}/{form}"))) is None


def test_series_by_time(tmp_path):
    for number in range(24):
        day, second = divmod(number, 4)
        put(tmp_path, f"{'ab'[day % 2]}/{number}x.jpg", number, time=f"2024:05:{day + 1:02} 10:00:{5 * second:02}")
    put(tmp_path, "a/no_time.jpg", 99)
    put(tmp_path, "a/bad_time.jpg", 98, time="yesterday")
    series = find_series(find_images(tmp_path))
    assert series.kind == "times" and len(set(series.groups.values())) == 6 and len(series.groups) == 24


def test_the_score_with_and_without_series(tmp_path):
    """The nearest photo is of the same plant; other plants of the class do not look alike."""
    dataset = find_images(plants(tmp_path / "set"))
    series = find_series(dataset)
    scores = measure_series(dataset, series.groups, lambda chosen: thumbnail_vectors(dataset, chosen))
    assert scores.ignored == 1.0 and scores.together < 0.75 and scores.images == 40
    alone = {index: str(index) for index in range(40)}
    scores = measure_series(dataset, alone, lambda chosen: thumbnail_vectors(dataset, chosen))
    assert scores.ignored == scores.together == 1.0
    by_class = {index: str(label) for index, label in enumerate(dataset.labels)}
    assert measure_series(dataset, by_class, lambda chosen: thumbnail_vectors(dataset, chosen)) is None


def run(*words: object) -> int:
    parser = argparse.ArgumentParser()
    check.add_arguments(parser)
    return check.run(parser.parse_args([str(word) for word in words])) or 0


@pytest.fixture
def thumbnails(tmp_path, monkeypatch):
    """No network: thumbnails are compared."""
    from flowers_torch.errors import UsageError

    def absent():
        raise UsageError("not installed")

    monkeypatch.setenv("FLOWERS_TORCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("flowers_torch.models.offline.offline_weights_path", absent)


def test_check_proposes_groups(tmp_path, thumbnails, capsys):
    dataset = find_images(plants(tmp_path / "set"))
    assert run(dataset.root, "--out", tmp_path / "out", "--workers", 1) == 0
    out = capsys.readouterr().out
    read, splits, unused, *_ = out.splitlines()
    assert read == "read     set: 40 photos of 2 classes (a (20), b (20)); one folder per class"
    assert splits.startswith("splits   none is given; training takes 24 train, 8 val, 8 test (asked: 24, 8, 8)")
    assert unused == "not used nothing: every folder, column and photo is used"
    assert "40 photos are in 8 series by their file names" in out and f"--groups {tmp_path}/out/groups.csv" in out
    assert "thumbnails of 16 x 16 pixels, is of the same class for 100% of 40 photos" in out
    groups = read_groups(tmp_path / "out/groups.csv", dataset)
    assert len(groups) == 40 and len(set(groups.values())) == 8


def test_check_measures_the_groups_of_a_table(tmp_path, thumbnails, capsys):
    plants(tmp_path / "set", "{label}/{plant}{i:02}.jpg")
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file", "label", "plant", "weather"])
        for path in sorted((tmp_path / "set").rglob("*.jpg")):
            table.writerow([path.relative_to(tmp_path), path.parent.name, path.name[0], "dry"])
    assert run(tmp_path / "labels.csv", "--json", "--workers", 1) == 0
    found = {finding["kind"]: finding for finding in json.loads(capsys.readouterr().out)["findings"]}
    assert "in 8 series by their column plant" in found["series"]["what"]
    assert found["series"]["todo"] == "keep each in one split with --groups column:plant"
    assert "column weather" in found["unused"]["what"] or "plant" in found["unused"]["what"]
