"""The demo dataset: reproducible, and its classes do not differ by color."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from flowers_torch.data.sources import demo
from flowers_torch.data.sources.demo import FORMS, draw_demo, draw_picture
from flowers_torch.data.sources.flowers17 import CLASSES
from flowers_torch.data.sources.folders import find_images
from flowers_torch.errors import UsageError


def contents(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*.jpg")}


def mean_colors(root: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Standardized mean red, green, blue of every image, and its class, in random order."""
    dataset = find_images(root, "demo")
    means = [np.asarray(Image.open(root / path).convert("RGB")).mean((0, 1)) for path in dataset.paths]
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0))
    x, y = torch.tensor(np.array(means), dtype=torch.float32)[order], torch.tensor(dataset.labels)[order]
    return (x - x.mean(0)) / x.std(0), y


def folds(y: torch.Tensor, count: int = 3) -> list[torch.Tensor]:
    """Stratified masks of test images: disjoint and complete."""
    place = torch.zeros_like(y)
    for label in y.unique():
        members = (y == label).nonzero()[:, 0]
        place[members] = torch.arange(len(members)) % count
    return [place == fold for fold in range(count)]


def logistic_regression(x: torch.Tensor, y: torch.Tensor, test: torch.Tensor) -> float:
    """Accuracy on `test` of a multinomial logistic regression on colors and their products."""
    x = torch.cat((x, x * x, x * x.roll(1, 1)), 1)
    weights = torch.zeros(x.shape[1] + 1, int(y.max()) + 1, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=50, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = torch.nn.functional.cross_entropy(x[~test] @ weights[1:] + weights[0], y[~test])
        value.backward()
        return value

    optimizer.step(loss)
    return float(((x[test] @ weights[1:] + weights[0]).argmax(1) == y[test]).float().mean())


def nearest_neighbors(x: torch.Tensor, y: torch.Tensor, test: torch.Tensor, k: int) -> float:
    """Accuracy on `test` of a vote of the k nearest colors elsewhere."""
    nearest = torch.cdist(x[test], x[~test]).topk(k, largest=False).indices
    return float((y[~test][nearest].mode(1).values == y[test]).float().mean())


def check_colors_do_not_reveal_the_class(root: Path) -> None:
    x, y = mean_colors(root)
    accuracies = {"logistic regression": np.mean([logistic_regression(x, y, test) for test in folds(y)])}
    for k in (5, 15):
        accuracies[f"{k} neighbors"] = np.mean([nearest_neighbors(x, y, test, k) for test in folds(y)])
    assert max(accuracies.values()) < 0.70, accuracies
    assert max(accuracies.values()) > 0.25, (
        accuracies
    )  # forms do prefer colors, so a working classifier finds something


def test_mean_colors_do_not_reveal_the_class(tmp_path):
    draw_demo(tmp_path, per_class=30, size=32)  # small images have a mean color too
    check_colors_do_not_reveal_the_class(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_mean_colors_of_the_full_demo(tmp_path, seed):
    draw_demo(tmp_path, seed=seed)
    check_colors_do_not_reveal_the_class(tmp_path)


def test_the_color_check_finds_a_leak(tmp_path):
    for label, color in enumerate(((200, 90, 90), (90, 200, 90), (90, 90, 200))):
        (tmp_path / str(label)).mkdir()
        for index in range(10):
            shade = tuple(c + 2 * index for c in color)
            Image.new("RGB", (8, 8), shade).save(tmp_path / str(label) / f"{index}.png")
    with pytest.raises(AssertionError):
        check_colors_do_not_reveal_the_class(tmp_path)


def test_same_arguments_give_the_same_bytes(tmp_path):
    draw_demo(tmp_path / "a", per_class=3, size=32)
    draw_demo(tmp_path / "b", classes=3, per_class=2, size=32)
    large, small = contents(tmp_path / "a"), contents(tmp_path / "b")
    assert len(large) == 18 and len(small) == 6
    assert small == {name: large[name] for name in small}
    assert len(set(large.values())) == 18  # all images differ


@pytest.mark.parametrize("works", [True, False])
def test_several_processes_draw_the_same(works, tmp_path, monkeypatch):
    """Also where one of them fails: its shard is drawn again."""
    draw_demo(tmp_path / "alone", classes=3, per_class=3, size=16)
    started = []

    def start(folder, shard):
        started.append(shard)
        command = [sys.executable, "-c", "raise SystemExit(1)"]
        return real(folder, shard) if works else subprocess.Popen(command)

    real = demo._start_drawing
    monkeypatch.setattr(demo, "_start_drawing", start)
    monkeypatch.setattr(demo, "usable_cores", lambda: 8)
    monkeypatch.setattr(demo, "IMAGES_PER_PROCESS", 4)
    draw_demo(tmp_path / "together", classes=3, per_class=3, size=16)
    assert started == [(3, 3, 16, 0, 1, 2)]
    assert contents(tmp_path / "together") == contents(tmp_path / "alone")


def test_another_seed_draws_other_images(tmp_path):
    draw_demo(tmp_path / "a", classes=2, per_class=2, size=32)
    draw_demo(tmp_path / "b", classes=2, per_class=2, size=32, seed=1)
    first, second = contents(tmp_path / "a"), contents(tmp_path / "b")
    assert first.keys() == second.keys() and not set(first.values()) & set(second.values())


def test_the_demo_is_a_folder_of_class_folders(tmp_path):
    draw_demo(tmp_path, per_class=2)
    dataset = find_images(tmp_path, "demo")
    assert dataset.classes == tuple(FORMS) and len(dataset) == 12
    for path in dataset.paths:
        with Image.open(tmp_path / path) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (96, 96))


def test_names_are_not_those_of_flowers17():
    assert not set(FORMS) & set(CLASSES)


@pytest.mark.parametrize("form", FORMS)
def test_a_form_keeps_its_picture_at_any_size(form):
    small, large = (draw_picture(form, size, np.random.default_rng(3)) for size in (48, 96))
    difference = np.asarray(large.reduce(2), float) - np.asarray(small, float)
    # Sensor noise is drawn for each pixel; the flower and the background are the same.
    assert np.sqrt(np.mean(difference**2)) < 16


@pytest.mark.parametrize(
    "arguments", [{"classes": 1}, {"classes": 7}, {"per_class": 0}, {"size": 8}], ids=lambda a: "".join(a)
)
def test_numbers_out_of_range(tmp_path, arguments):
    with pytest.raises(UsageError, match="fix: "):
        draw_demo(tmp_path / "demo", **arguments)
    assert not (tmp_path / "demo").exists()


def test_a_folder_that_holds_something_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="mixed"):
        draw_demo(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
