"""Commands that read finished runs: evaluate, compare, ensemble, label-issues, next, report, runs."""

import dataclasses
import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flowers_torch.cli import main
from flowers_torch.config import Config, Stage
from flowers_torch.data.sources.open import open_dataset
from flowers_torch.deploy.local_page import LocalPage
from flowers_torch.files.tensors import safe_load
from flowers_torch.models.checkpoint import load_classifier
from flowers_torch.runs import recipe
from flowers_torch.runs.crossval import fold_folder


@pytest.fixture(scope="module")
def runs(photo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two short runs with the same splits."""
    root = tmp_path_factory.mktemp("runs")
    for name, lr in (("a", 0.01), ("b", 0.003)):
        config = Config(arch="test_resnet", data=str(photo_folder), weights="none", size=32, device="cpu")
        stages = [Stage(epochs=2, lr=lr)]
        config = dataclasses.replace(config, precision="fp32", batch_size=8, stages=stages)
        recipe.train(config, root / name)
    return [str(root / "a"), str(root / "b")]


def run_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, object]:
    assert main([*arguments, "--json"]) == 0
    found: dict[str, object] = json.loads(capsys.readouterr().out)
    return found


def test_training_leaves_a_report_and_a_calibrated_model(runs: list[str]) -> None:
    folder = Path(runs[0])
    page = (folder / "report.html").read_text()
    assert "Confusion" in page and "data:image/jpeg" in page
    metrics = json.loads((folder / "metrics.json").read_text())
    info = load_classifier(folder)[1]
    assert info.temperature == metrics["temperature"] != 1
    assert info.selective["curve"] and info.selective["ood_detector"]["features"] == 96


def test_evaluate_repeats_the_test_of_a_run(runs: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    found = run_json(capsys, "evaluate", runs[0])
    metrics = json.loads((Path(runs[0]) / "metrics.json").read_text())["test"]
    assert found["confusion"] == metrics["confusion"] and found["loss"] == pytest.approx(metrics["loss"], 1e-4)
    assert main(["evaluate", runs[0]]) == 0
    text = capsys.readouterr().out
    assert "95% interval" in text and "macro F1" in text and "too few for metrics of their own" in text


def test_evaluate_on_other_photos(
    runs: list[str], photo_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = str(Path(runs[0]) / "model.safetensors")
    assert main(["evaluate", weights, str(photo_folder), "--out", str(tmp_path / "out"), "--json"]) == 0
    shown = capsys.readouterr()
    assert "of the 60 photos trained the model" in shown.err and json.loads(shown.out)["images"] == 60
    assert (tmp_path / "out" / "predictions.csv").is_file()
    alone = shutil.copy(weights, tmp_path / "alone.safetensors")
    assert main(["evaluate", str(alone), str(photo_folder)]) == 0
    assert "does not tell which photos trained it" in capsys.readouterr().err
    (tmp_path / "p" / "red").mkdir(parents=True)
    (tmp_path / "p" / "mauve").mkdir()
    for folder in ("red", "mauve"):
        (tmp_path / "p" / folder / "1.png").write_bytes((photo_folder / "red" / "1.png").read_bytes())
    assert main(["evaluate", weights, str(tmp_path / "p")]) == 3
    assert "no class mauve" in capsys.readouterr().err


def test_views_are_chosen_on_the_validation_photos(runs: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    found = run_json(capsys, "evaluate", runs[0], "--tta", "auto")
    tried = found["validation"]
    assert isinstance(tried, dict) and set(tried) == {"none", "flip", "scales", "crop5", "crop10"}
    assert found["views"] == min(tried, key=lambda name: tried[name]["loss"])
    assert "one_view" in found
    assert found["views"] == "none" or "validation photos changes by" in str(found["choice"])


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--tta", "crop7"], 2, "crop10"),
        (["--subset", "tset"], 2, "use train, val, test"),
        (["--save", "--json"], 2, "leave out the other flags"),
        (["--batch-size", "0"], 2, "batch-size"),
    ],
)
def test_errors_of_evaluate(
    arguments: list[str], code: int, message: str, runs: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", runs[0], *arguments]) == code
    assert message in capsys.readouterr().err


def test_compare(runs: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    found = run_json(capsys, "compare", *runs)
    (pair,) = found["pairs"]  # type: ignore[misc]
    assert pair["images"] == found["images"] > 5 and 0 <= pair["p_value"] <= 1
    assert main(["compare", *runs]) == 0 and "bootstrap" in capsys.readouterr().out
    assert main(["compare", runs[0]]) == 2


def test_ensemble_writes_a_model_that_predicts(
    runs: list[str], photo_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    soup = tmp_path / "soup.safetensors"
    assert main(["ensemble", *runs, "--out", str(soup)]) == 0
    text = capsys.readouterr().out
    assert "predictions: mean of all" in text and "0.5 of a, 0.5 of b" in text and "* best on validation" in text
    found = run_json(capsys, "ensemble", *runs, "--no-weights")
    assert found["best"] in [row["name"] for row in found["candidates"]]  # type: ignore[attr-defined]
    state, metadata = safe_load(soup)
    assert {"curve", "sets"} == set(metadata["model_info"]["selective"])
    assert state and all(value.isfinite().all() for value in state.values())
    assert main(["predict", str(soup), str(photo_folder / "red" / "1.png")]) == 0


def test_ensemble_of_folds_on_other_photos(
    runs: list[str], photo_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "folds"
    copies = [shutil.copytree(run, fold_folder(folder, 0, number)) for number, run in enumerate(runs)]
    folds = [copy.name for copy in copies]
    rows = [{"seed": 0, "fold": number} for number in range(len(runs))]
    (folder / "crossval.json").write_text(json.dumps({"folds": 3, "repeats": 1, "runs": rows}))
    assert main(["ensemble", str(folder), "--evaluate-on", str(photo_folder)]) == 0
    out, err = capsys.readouterr()
    assert "of the 60 photos trained a run" in err
    rows = {line[:25].strip(): line.split() for line in out.splitlines()[2:]}
    assert list(rows) == [*folds, "predictions: mean of all", "weights: mean of all"]
    accuracies = [float(row[-4]) for row in rows.values()]
    assert all(0.3 < accuracy <= 1 for accuracy in accuracies)
    evaluated = ["ensemble", str(folder), "--evaluate-on", str(photo_folder)]
    assert main([*evaluated, "--out", str(tmp_path / "x")]) == 2
    assert run_json(capsys, *evaluated)["images"] == 60


def test_label_issues_are_in_the_report(runs: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    found = run_json(capsys, "label-issues", runs[1])
    assert found["images"] == 60 and len(found["curve"]) == 4  # type: ignore[arg-type]
    assert "Labels to check: " in (Path(runs[1]) / "report.html").read_text()


def test_report_is_rebuilt(runs: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    page = Path(runs[0]) / "report.html"
    before = page.read_text()
    page.unlink()
    assert main(["report", runs[0]]) == 0 and page.read_text() == before
    assert main(["report", runs[0], "--no-photos"]) == 0 and "data:image" not in page.read_text()
    assert "report.html" in capsys.readouterr().out


def test_runs_are_found_by_name_and_weights_file(
    runs: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(Path(runs[0]).parent.parent)
    (Path(runs[0]).parent).rename("runs")
    try:
        assert main(["compare", "a", "runs/b/model.safetensors"]) == 0
        assert main(["evaluate", "a"]) == main(["evaluate", "latest"]) == 0
        capsys.readouterr()
        rows = {row["name"]: row for row in run_json(capsys, "runs")}  # type: ignore[call-overload]
        assert main(["runs"]) == 0
    finally:
        Path("runs").rename(Path(runs[0]).parent)
    assert set(rows) == {"a", "b"} and rows["a"]["finished"] and rows["a"]["arch"] == "test_resnet"
    low, high = rows["a"]["interval_95"]
    assert low <= rows["a"]["accuracy"] <= high
    assert capsys.readouterr().out.count("finished") == 2


def test_label_issues_as_a_table_and_in_a_review(
    runs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The review ends by Ctrl-C, after somebody decided on two issues."""
    folder = Path(shutil.copytree(runs[1], tmp_path / "run"))
    table = tmp_path / "issues.csv"
    issue = {"label": "red", "looks_like": "blue", "probability": 0.9, "probability_of_label": 0.1}
    found = {"images": 60, "curve": [], "more_photos": "enough", "label_issues": []}
    found["label_issues"] = [{"file": f"red/{i}.png"} | issue for i in range(12)]
    monkeypatch.setattr("flowers_torch.runs.label_issues.find_run_label_issues", lambda *_: dict(found))
    opened: list[str] = []
    monkeypatch.setattr("flowers_torch.runs.review_page.open_browser", opened.append)

    def serve(page: LocalPage) -> None:
        page.decide({"issue": 0, "action": "relabel", "label": 0})
        page.decide({"issue": 11, "action": "exclude"})
        raise KeyboardInterrupt

    monkeypatch.setattr(LocalPage, "serve_forever", serve)
    assert main(["label-issues", str(folder), "--csv", str(table), "--review"]) == 0
    text = capsys.readouterr().out
    assert opened and f"review   {opened[0]}" in text and "and 2 more in" in text
    assert "saved    0 kept, 1 relabeled, 1 excluded in " in text
    assert table.read_text().splitlines()[0] == "file,label,looks_like,probability,probability_of_label"
    command = shlex.split(text.split("next     ")[1])
    assert main([*command[1:], "--out", str(tmp_path / "again"), "--epochs", "1"]) == 0
    out, err = capsys.readouterr()
    assert "1 photo left out by column exclude" in out + err and "red/11.png" in out + err
    split = json.loads((tmp_path / "again/split.json").read_text())
    before = json.loads((folder / "split.json").read_text())
    assert sum(split["counts"].values()) == 59 and split["classes"] == before["classes"]

    monkeypatch.setattr(LocalPage, "serve_forever", lambda page: page.decide({"action": "undo"}))
    assert main(["label-issues", str(folder), "--review", "--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["review"]["exclude"] == 0 and "http://127.0.0.1:" in shown.err
    assert main(["label-issues", str(folder), "--port", "70000"]) == 2


@pytest.fixture(scope="module")
def unlabeled(tmp_path_factory: pytest.TempPathFactory, photo_folder: Path) -> Path:
    """Eight photos of mixed colors, a copy of one, one of the run, and a file that is not an image."""
    folder = tmp_path_factory.mktemp("unlabeled")
    draw = np.random.default_rng(1)
    for number in range(8):
        noise = draw.normal(0, 30, (40, 48, 3))
        pixels = np.clip(np.array([100, 30 * number, 80]) + noise, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    shutil.copy(folder / "3.png", folder / "copy.png")
    shutil.copy(photo_folder / "red" / "4.png", folder / "known.png")
    (folder / "broken.jpg").write_bytes(b"nothing")
    return folder


def test_next_chooses_new_photos_for_update(
    runs: list[str], unlabeled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, links = tmp_path / "next.csv", tmp_path / "to label"
    written = ["--csv", str(table), "--links", str(links), "--page", str(tmp_path / "next.html")]
    found = run_json(capsys, "next", runs[0], str(unlabeled), "--count", "20", *written)
    images = [Path(image["file"]) for image in found["images"]]  # type: ignore[attr-defined]
    assert sorted(image.stem.replace("copy", "3") for image in images) == [str(n) for n in range(8)]
    assert found["candidates"] == 9 and found["known"] == 1 and "broken.jpg" in str(found["unreadable"])
    assert len(list(links.iterdir())) == 8
    page = (tmp_path / "next.html").read_text()
    assert page.count("data:image/jpeg") == 8 and "<span>update</span>" in page
    commands = [shlex.split(command) for command in found["next"]]  # type: ignore[attr-defined]
    update = [command[1:] for command in commands if command[-1] == str(table)][0]
    assert main(update) == 3 and "no label for" in capsys.readouterr().err
    table.write_text(table.read_text().replace(".png,,", ".png,blue,"))
    assert main([*update, "--out", str(tmp_path / "updated"), "--epochs", "1"]) == 0
    assert "8 new photos" in "".join(capsys.readouterr())
    assert main(["update", runs[0], str(links)]) == 3  # nobody has sorted them
    (links / "violet").mkdir()
    for place in links.glob("*.png"):
        place.rename(links / "violet" / place.name)
    dataset = open_dataset(links, fewest=1)
    assert dataset.classes == ("violet",) and len(dataset) == 8
    assert all((links / path).is_file() for path in dataset.paths)


def test_next_writes_a_page_and_refuses_what_it_cannot_use(
    runs: list[str],
    unlabeled: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["next", runs[0], str(unlabeled), "--count", "2"]) == 0
    assert "chosen   2 of 9 unlabeled photos, 1 more is a photo of the run" in capsys.readouterr().out
    assert (tmp_path / "next.html").is_file()
    assert main(["next", runs[0], str(unlabeled / "known.png")]) == 2
    assert "none of 1 photo is both readable and unknown" in capsys.readouterr().err
    assert main(["next", runs[0], str(unlabeled), "--count", "0"]) == 2
    assert main(["next", runs[0], str(unlabeled), "--links", str(tmp_path)]) == 2
    assert "is not empty; fix: name a new folder" in capsys.readouterr().err
    (tmp_path / "next.csv").write_text("file,label\n1.png,rose\n")
    assert main(["next", runs[0], str(unlabeled), "--csv", "next.csv"]) == 2  # it may hold somebody's labels
    assert "next.csv exists already; fix: name a new file" in capsys.readouterr().err
    shutil.copy(unlabeled / "5.png", tmp_path / f"{'ж' * 120}.png")
    assert main(["next", runs[0], str(tmp_path), "--links", str(tmp_path / "long")]) == 0
    assert len(list((tmp_path / "long").iterdir())) == 1
