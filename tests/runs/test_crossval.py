"""Cross-validation from the command line: each image is tested once, by a run that did not train on it."""

import csv
import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from flowers_torch.cli import main
from flowers_torch.data.dataset import ImageDataset
from flowers_torch.evaluation.metrics import wilson
from flowers_torch.report.crossval_page import class_rows, confusions, mistakes
from flowers_torch.report.templating import percent
from flowers_torch.runs import crossval
from flowers_torch.runs.ensemble import run_folders


@pytest.fixture(scope="module")
def finished(photo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("crossval") / "out"
    flags = ["--data", str(photo_folder), "--arch", "test_resnet", "--weights", "none", "--size", "32"]
    flags += ["--epochs", "1,1", "--device", "cpu", "--precision", "fp32", "--folds", "3", "--out", str(out)]
    assert main(["crossval", *flags]) == 0
    return out


def test_every_image_is_tested_once(finished: Path) -> None:
    with (finished / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    files = [row["file"] for row in rows]
    assert len(files) == len(set(files)) == 60
    for fold in range(3):
        split = json.loads((finished / f"seed0-fold{fold}" / "split.json").read_text())["splits"]
        assert sorted(split["test"]) == sorted(row["file"] for row in rows if row["fold"] == str(fold))
        assert not set(split["test"]) & (set(split["train"]) | set(split["val"]))


def test_the_summary(finished: Path) -> None:
    summary = json.loads((finished / "crossval.json").read_text())
    accuracies = [run["accuracy"] for run in summary["runs"]]
    assert summary["n"] == 3 and summary["mean"] == pytest.approx(sum(accuracies) / 3)
    assert summary["std"] >= 0 and summary["finished"]
    (whole,) = summary["by_seed"]
    assert whole["images"] == 60 and whole["accuracy"] == sum(run["correct"] for run in summary["runs"]) / 60


def test_photos_to_test_on_are_refused(photo_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    flags = ["--data", str(photo_folder), "--test", str(photo_folder), "--out", str(out)]
    assert main(["crossval", *flags]) == 2 and not out.exists()
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "--test cannot be used with crossval, which tests every photo of --data once; fix: leave out --test" in line


def test_the_report(finished: Path, photo_folder: Path) -> None:
    page = (finished / "report.html").read_text(encoding="utf-8")
    summary = json.loads((finished / "crossval.json").read_text())
    assert all(f'href="seed0-fold{fold}/report.html"' in page for fold in range(3))
    low, high = summary["by_seed"][0]["interval_95"]
    assert low <= summary["by_seed"][0]["accuracy"] <= high and percent(low) in page and percent(high) in page
    with (finished / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    wrong = [row["file"] for row in rows if row["correct"] == "0"]
    assert page.count("<figure>") == min(len(wrong), 36) and all(name in page for name in wrong[:36])
    assert {row["name"]: row["photos"] for row in class_rows(rows, 1)} == {"blue": 20, "green": 20, "red": 20}


def test_repeats_count_each_photo_once() -> None:
    row = {"fold": 0, "label": "a", "predicted": "b", "probability": "0.9"}
    rows = [
        row | {"seed": seed, "file": f"a/{n}.png", "correct": str(int(n > seed))} for seed in (0, 1) for n in range(4)
    ]
    (found,) = class_rows(rows, 2)
    assert (found["photos"], found["recall"]) == (4, 5 / 8) and found["interval"] == wilson(2.5, 4)
    assert confusions(rows) == [("a", "b", 3)]
    shown = mistakes(rows, 2, ImageDataset("", Path("/nowhere"), ("a",), ("a/0.png",), (0,)))
    assert [photo["file"] for photo in shown] == ["a/0.png", "a/1.png"] and shown[0][
        "often"
    ] == "wrong in 2 of 2 repeats"


def test_the_report_shows_no_file_outside_of_the_photos(tmp_path: Path) -> None:
    Image.new("RGB", (40, 40)).save(tmp_path / "private.png")
    (tmp_path / "photos").mkdir()
    dataset = ImageDataset("", tmp_path / "photos", ("a",), ("a/0.png",), (0,))
    row = {"file": "../private.png", "label": "a", "predicted": "<b>", "probability": "1", "correct": "0", "seed": 0}
    assert [photo["src"] for photo in mistakes([row], 1, dataset)] == [""]


def test_an_interrupted_cross_validation_continues(
    finished: Path, photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the second fold: the first one stays, the others end as they would have."""
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    shutil.rmtree(out / "seed0-fold2")
    (out / "seed0-fold1" / "metrics.json").unlink()
    runs = json.loads((out / "crossval.json").read_text())
    (out / "crossval.json").write_text(json.dumps(runs | {"runs": runs["runs"][:1], "finished": False}))
    trained = []
    real = crossval.recipe.train
    monkeypatch.setattr(
        crossval.recipe,
        "train",
        lambda config, out, **options: trained.append(out) or real(config, out, **options),
    )
    assert main(["crossval", "--resume", str(out)]) == 0
    assert [Path(folder).name for folder in trained] == ["seed0-fold1", "seed0-fold2"]
    assert (out / "predictions.csv").read_text() == (finished / "predictions.csv").read_text()
    assert json.loads((out / "crossval.json").read_text()) == runs

    split = out / "seed0-fold1" / "split.json"
    content = json.loads(split.read_text())
    content["splits"]["val"] = dict(list(content["splits"]["val"].items())[1:])
    split.write_text(json.dumps(content))
    assert main(["crossval", "--resume", str(out)]) == 3
    assert main(["crossval", "--resume", str(tmp_path)]) == 2
    assert main(["crossval", "--resume", str(out), "--seed", "3"]) == 2


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("crossval.json", '{"folds": 1e400, "repeats": 1, "runs": []}'),
        ("crossval.json", '{"folds": 3, "repeats": 1000000000, "runs": []}'),
        ("crossval.json", "[" * 100_000),
        ("seed0-fold1/metrics.json", '{"test": {"accuracy": "x", "correct": 1, "images": 0}}'),
        ("seed0-fold1/metrics.json", "[]"),
        ("seed0-fold1/predictions.csv", "file\n" + "y" * 200_000),
        ("seed0-fold1/predictions.csv", "file,label,predicted,probability,c\n1,2,3,4,5\n"),
        ("seed0-fold1/split.json", "{}"),
    ],
    ids=range(8),
)
def test_damaged_records(
    finished: Path, tmp_path: Path, name: str, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished, tmp_path / "out")
    (tmp_path / "out" / name).write_text(content)
    assert main(["crossval", "--resume", str(tmp_path / "out")]) == 3
    assert Path(name).name in capsys.readouterr().err


def test_the_folds_of_a_summary_lie_below_it(tmp_path: Path) -> None:
    assert run_folders(tmp_path) == [tmp_path]
    runs = [{"seed": 4, "fold": 2, "folder": "../../elsewhere"}]
    (tmp_path / "crossval.json").write_text(json.dumps({"folds": 3, "repeats": 1, "runs": runs}))
    assert run_folders(tmp_path) == [tmp_path / "seed4-fold2"]


def test_a_fold_is_resumed_from_its_checkpoint(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    (out / "seed0-fold2" / "resume.safetensors").write_bytes(b"")
    resumed: list[Path] = []
    monkeypatch.setattr(crossval.recipe, "resume", lambda folder, changes: resumed.append(folder))
    crossval.resume(out)
    assert resumed == [out / "seed0-fold2"]


@pytest.mark.parametrize("flags", [["--folds", "2"], ["--repeats", "0"], ["--dry-run"]])
def test_mistakes(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["crossval", *flags]) == 2
    assert flags[0] in capsys.readouterr().err
