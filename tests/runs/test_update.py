"""A model that learns more photos and one more class, held against what it was."""

import contextlib
import dataclasses
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from flowers_torch.cli import main
from flowers_torch.config import Config, Stage
from flowers_torch.config_file import load_config, to_toml
from flowers_torch.data.sources.open import open_dataset
from flowers_torch.data.sources.tables import read_groups
from flowers_torch.data.splits.extension import AssignedImage
from flowers_torch.data.splits.split_file import read_split
from flowers_torch.errors import DataError, UsageError
from flowers_torch.evaluation.predictions import load_predictions
from flowers_torch.files.system import ignores_case
from flowers_torch.models.checkpoint import load_classifier
from flowers_torch.runs import recipe
from flowers_torch.runs import update as update_module
from flowers_torch.runs.update import compare_with_parent, update

STAGES = [
    Stage(name="head", train="head", epochs=1, augment="none"),
    Stage(epochs=1, lr=1e-3, augment="none"),
]


def draw(folder: Path, color: tuple[int, int, int], count: int, seed: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    for number in range(count):
        pixels = np.clip(np.array(color) + generator.normal(0, 25, (40, 48, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{seed}-{number}.png")


@pytest.fixture(scope="module")
def former(photo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on blue, green and red photos."""
    root = tmp_path_factory.mktemp("update")
    shutil.copytree(photo_folder, root / "photos")
    config = Config(arch="test_resnet", data=str(root / "photos"), weights="none", size=32, device="cpu")
    config = dataclasses.replace(config, precision="fp32", batch_size=16, stages=STAGES)
    recipe.train(config, root / "run")
    return root / "run"


@pytest.fixture(scope="module")
def updated(former: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run with ten more red photos and a class of yellow ones."""
    root = tmp_path_factory.mktemp("more")
    draw(root / "new" / "red", (190, 60, 50), 10, seed=1)
    draw(root / "new" / "yellow", (200, 190, 40), 15, seed=2)
    shutil.copy(former.parent / "photos" / "red" / "3.png", root / "new" / "red" / "known.png")
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        assert main(["update", str(former), str(root / "new"), "--out", str(root / "run")]) == 0
    (root / "said.txt").write_text(said.getvalue())
    return root / "run"


def marks(folder: Path) -> dict[str, set[str]]:
    return {part: set(photos.values()) for part, photos in read_split(folder / "split.json")["splits"].items()}


def test_known_photos_keep_their_part_and_new_ones_join(former: Path, updated: Path) -> None:
    before, after = marks(former), marks(updated)
    for part, photos in before.items():
        assert photos <= after[part]
    assert sum(map(len, after.values())) == 60 + 10 + 15  # the known one once
    labels = (updated / "labels.txt").read_text().split()
    assert labels == ["blue", "green", "red", "yellow"]


def test_the_model_starts_from_what_it_was(former: Path, updated: Path) -> None:
    said = (updated.parent / "said.txt").read_text()
    assert "3 of its 4 classes known from before" in said and "new classes: yellow" in said
    assert "test photos that neither saw" in said and "new      yellow: " in said
    assert load_classifier(updated)[1].weights == "model.safetensors"


def test_both_are_compared_on_photos_that_neither_saw(former: Path, updated: Path) -> None:
    found = json.loads((updated / "update.json").read_text())
    after = load_predictions(updated)
    known = [path for path in after.paths["test"] if "/yellow/" not in path]
    assert found["images"] == len(known) >= len(marks(former)["test"])
    assert list(found["new_classes"]) == ["yellow"]
    assert found["new_classes"]["yellow"][1] == len(after.paths["test"]) - len(known) > 0
    # The former model's own test said the same of the photos that it tested.
    own = load_predictions(former)
    right = own.logits["test"].argmax(1) == own.labels["test"]
    wrong = {path for path, good in zip(own.paths["test"], right.tolist(), strict=True) if not good}
    new_right = after.logits["test"].argmax(1) == after.labels["test"]
    ours = {
        path.removeprefix("test/"): good for path, good in zip(after.paths["test"], new_right.tolist(), strict=True)
    }
    only_new = {path.removeprefix("test/") for path in found["only_second"]}
    assert {path for path in wrong if ours[path]} == {path for path in only_new if path in own.paths["test"]}
    assert torch.tensor(found["interval"]).isfinite().all()


def test_the_report_shows_before_and_after(updated: Path) -> None:
    found = json.loads((updated / "update.json").read_text())
    page = (updated / "report.html").read_text(encoding="utf-8")
    section = page.partition('<section id="update"')[2].partition("</section>")[0]
    assert f"{found['first_correct']} of {found['images']}" in section and "new class yellow" in section
    shown = [*found["only_first"][:8], *found["only_second"][:8]]
    assert section.count("<figure>") == len(shown) and all(path in section for path in shown)
    words = [line.split()[0] for line in (updated.parent / "said.txt").read_text().splitlines()]
    assert words.index("test") < words.index("update") < words.index("report")  # which is written once


def test_what_would_spoil_the_test_is_refused_before_anything_is_written(former: Path, tmp_path: Path) -> None:
    test = sorted(read_split(former / "split.json")["splits"]["test"])[0]
    for part, seed in (("train", 5), ("test", 6)):
        for label in ("blue", "green", "red"):
            draw(tmp_path / "new" / part / label, (60, 70, 80), 2, seed)
    place = tmp_path / "new" / "train" / test.split("/")[0] / "leak.png"
    shutil.copy(former.parent / "photos" / test, place)
    with pytest.raises(DataError, match=r"leak.png \(train\) belongs with .* \(test\)"):
        update(former, str(tmp_path / "new"), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_cannot_be_updated(former: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match="holds no photo that the run does not know"):
        update(former, str(former.parent / "photos"))
    with pytest.raises(UsageError, match="is not a run with weights"):
        update(tmp_path, str(former.parent / "photos"))
    assert main(["update", str(former)]) == 2
    assert "needs new photos, or --resume" in capsys.readouterr().err
    copy = tmp_path / "run"
    shutil.copytree(former, copy)
    text = (copy / "config.toml").read_text()
    moved = shutil.copytree(former.parent / "photos", tmp_path / "photos")
    (copy / "config.toml").write_text(text.replace(str(former.parent / "photos"), str(moved)))
    (moved / "red" / "3.png").unlink()
    draw(tmp_path / "new" / "red", (190, 60, 50), 2, seed=9)
    with pytest.raises(DataError, match=r"1 photo is gone or changed since .* \(first: red/3.png\)"):
        update(copy, str(tmp_path / "new"))


def test_a_run_is_no_better_than_itself(former: Path, updated: Path, tmp_path: Path) -> None:
    """The same weights on the same photos agree on every one, however the classes are ordered."""
    copy = tmp_path / "copy"
    shutil.copytree(updated, copy, symlinks=True)
    result = compare_with_parent(updated, copy, "cpu")
    assert result.first_correct == result.second_correct and not result.only_first and result.p_value == 1
    assert result.images == len(load_predictions(updated).paths["test"])


def test_groups_of_known_and_new_photos_stay_together(
    former: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """New photos of a plant go where its known photos are; a later update knows the plants too."""
    splits = {name: split for split, members in read_split(former / "split.json")["splits"].items() for name in members}
    plants = {split: sorted(name for name in splits if splits[name] == split)[:2] for split in ("train", "val", "test")}
    rows = [f"{name},{split} plant" for split, names in plants.items() for name in names]
    (tmp_path / "known.csv").write_text("file,group\n" + "\n".join(rows))
    copy = tmp_path / "run"
    shutil.copytree(former, copy)
    text = (copy / "config.toml").read_text()
    config = dataclasses.replace(load_config(file=str(copy / "config.toml")), groups=str(tmp_path / "known.csv"))
    (copy / "config.toml").write_text(to_toml(config, text.splitlines()[0].lstrip("# ")))
    draw(tmp_path / "new" / "red", (190, 60, 50), 6, seed=7)
    named = dict(zip(("7-0.png", "7-1.png", "7-2.png"), ("test plant", "val plant", "test plant"), strict=True))
    rows = [f"red/{name},{plant}" for name, plant in named.items()] + ["red/7-3.png,fresh", "red/7-4.png,fresh"]
    (tmp_path / "new.csv").write_text("file,group\n" + "\n".join(rows))
    trained: list[Config] = []
    monkeypatch.setattr(recipe, "train", lambda config, folder, **_: trained.append(config))
    assert (
        main(
            [
                "update",
                str(copy),
                str(tmp_path / "new"),
                "--groups",
                str(tmp_path / "new.csv"),
                "--out",
                str(tmp_path / "out"),
            ]
        )
        == 0
    )
    photos = tmp_path / "out" / "photos"
    place = {path.name: path.relative_to(photos).parts[0] for path in photos.rglob("7-*.png")}
    assert {name: place[name] for name in named} == {"7-0.png": "test", "7-1.png": "val", "7-2.png": "test"}
    assert place["7-3.png"] == place["7-4.png"]
    (config,) = trained
    groups = read_groups(Path(config.groups), open_dataset(str(photos), classes="top"))
    assert sorted(groups.values()).count("test plant") == 4 and sorted(groups.values()).count("fresh") == 2
    assert Path(config.groups).parent == tmp_path / "out"


def test_without_groups_nothing_is_written_about_them(updated: Path) -> None:
    assert not (updated / "groups.csv").exists()
    assert load_config(file=str(updated / "config.toml")).groups == "duplicates"


def test_photos_and_classes_that_differ_in_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On macOS and Windows `A.jpg` would be `a.jpg`, and the class `Rose` would be `rose`."""
    files = [tmp_path / folder / name for folder, name in (("1", "a.jpg"), ("2", "A.jpg"), ("3", "A.JPG"))]
    for file in files:
        file.parent.mkdir()
        file.write_bytes(file.parent.name.encode())
    members = [AssignedImage(file, "rose", "train", file.name) for file in files]
    update_module._link_images(members, tmp_path / "linked")
    names = {path.name: path.read_text() for path in (tmp_path / "linked/train/rose").iterdir()}
    assert names == {"a.jpg": "1", "A-2.jpg": "2", "A-3.JPG": "3"}
    members.append(dataclasses.replace(members[0], label="Rose"))
    if not ignores_case(tmp_path):
        update_module._link_images(members, tmp_path / "apart")
        assert (tmp_path / "apart/train/Rose/a.jpg").read_text() == "1"
    monkeypatch.setattr(update_module, "ignores_case", lambda folder: True)
    with pytest.raises(UsageError, match="of Rose, rose some would be one folder on this disk; fix: rename"):
        update_module._link_images(members, tmp_path / "one")
    assert not (tmp_path / "one").exists()
