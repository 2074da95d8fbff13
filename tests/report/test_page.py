"""The report as a file: complete, self-contained, and harmless whatever the names are."""

import dataclasses
import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from flowers_torch.errors import DataError, ResourceError
from flowers_torch.evaluation.prediction_sets import fit_sets
from flowers_torch.files.atomic import write_json
from flowers_torch.files.tensors import safe_load, safe_save
from flowers_torch.report import image_sections
from flowers_torch.report import page as page_module
from flowers_torch.report.attempt import Attempt
from flowers_torch.report.charts import LEFT, RIGHT, TOP, WIDTH, mark_places
from flowers_torch.report.page import sets_on_test, write_report
from flowers_torch.report.run_summary import read_run
from flowers_torch.report.templating import code_spans

HOSTILE_CLASS = '"><img src=x onerror=window.hacked=1>'  # as in conftest.py


class Elements(HTMLParser):
    """Every element with its attributes, and the text of scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.inside = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self.inside = tag == "script"

    def handle_endtag(self, tag: str) -> None:
        self.inside = self.inside and tag != "script"

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.scripts.append(data)


@pytest.fixture(scope="module")
def elements(finished: Any) -> Elements:
    return Elements(finished.page.read_text(encoding="utf-8"))


def test_every_section_is_there(elements: Elements, finished: Any) -> None:
    assert "left out" not in (page := finished.page.read_text(encoding="utf-8")) and "could not be made" not in page
    sections = [attributes["id"] for tag, attributes in elements.found if tag == "section"]
    assert sections == [
        "summary", "learning", "classes", "confusion", "mistakes", "confidence", "calibration", "map",
        "label-issues", "data", "network", "repeat", "card",
    ]  # fmt: skip
    links = {attributes["href"] for tag, attributes in elements.found if tag == "a"}
    assert links == {f"#{name}" for name in sections}


def test_nothing_is_fetched_and_nothing_foreign_runs(elements: Elements, finished: Any) -> None:
    for tag, attributes in elements.found:
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        assert tag in ("script", "img", "svg") or "src" not in attributes
        assert (attributes.get("src") or "data:image/jpeg;base64,").startswith("data:image/jpeg;base64,")
        assert tag not in ("link", "iframe", "object", "base", "form") or attributes.get("method") == "dialog"
    assert len(elements.scripts) == 3
    page = finished.page.read_text(encoding="utf-8")
    assert "default-src 'none'" in page and "@import" not in page and "url(" not in page
    assert not re.search(r"https?://(?!www\.w3\.org)", page)
    assert len(page) < 5e6 and "\u202e" not in page


def test_names_are_escaped_but_legible(elements: Elements, finished: Any) -> None:
    page = finished.page.read_text(encoding="utf-8")
    assert HOSTILE_CLASS not in page and "<svg onload" not in page and "<b>photos" not in page
    assert "<script>1" not in page and "&lt;script&gt;1&lt;/script&gt;" in page
    titles = [attributes.get("title") or "" for _, attributes in elements.found]
    assert any(HOSTILE_CLASS in title for title in titles)


def test_names_do_not_move_what_stands_beside_them(finished: Any) -> None:
    """A name in Arabic or Hebrew would pull the percentage behind it to its other side."""
    captions = re.findall(r"<figcaption><span.*?</span>", finished.page.read_text(encoding="utf-8"))
    form = r"<figcaption><span[^>]*><bdi>[^<]*</bdi>(, predicted as <bdi>[^<]*</bdi>)? \([\d.]+%\)</span>"
    assert captions and all(re.fullmatch(form, caption) for caption in captions)


def embedded(elements: Elements) -> tuple[dict[str, Any], dict[str, list[int]]]:
    photos, cells, _ = elements.scripts
    return json.loads(photos), json.loads(cells)


def test_every_cell_of_the_matrix_has_its_photos(elements: Elements, finished: Any) -> None:
    photos, cells = embedded(elements)
    run = read_run(finished.folder)
    counts = {attributes["data-cell"]: attributes for tag, attributes in elements.found if "data-cell" in attributes}
    assert counts.keys() == cells.keys()
    assert sum(len(members) for members in cells.values()) == len(run.paths) == len(photos)
    for cell, members in cells.items():
        label, guess = map(int, cell.split(","))
        assert all(int(run.labels[i]) == label for i in members)
        assert all(run.predicted[i] == guess for i in members)
        assert all((photos[str(i)]["predicted"] != "") == (label != guess) for i in members)


def test_each_picture_stands_once(elements: Elements, finished: Any) -> None:
    photos, _ = embedded(elements)
    shown = {a["data-photo"] for tag, a in elements.found if tag == "img" and "data-photo" in a and "src" in a}
    listed = {number for number, photo in photos.items() if photo["src"]}
    assert not shown & listed
    assert shown | listed == set(photos)  # every test photo can be seen


def test_the_worst_mistakes_come_with_heat_maps(finished: Any) -> None:
    page = finished.page.read_text(encoding="utf-8")
    assert page.count("input of the network") == 6


def test_charts_are_files_too(finished: Any) -> None:
    from xml.etree import ElementTree

    names = {path.name for path in (finished.folder / "figures").iterdir()}
    assert names == {f"{name}.svg" for name in "loss accuracy learning_rate reliability selective_prediction".split()}
    for name in names:
        root = ElementTree.parse(finished.folder / "figures" / name).getroot()
        assert root.tag == "{http://www.w3.org/2000/svg}svg"


@pytest.mark.parametrize("xs", [(46,), (46, 58), (46, 60, 200), (46, 170, 190, 210), (46, 285, 300), (46, 47, 48, 49)])
def test_no_dotted_line_crosses_the_label_of_a_stage(xs: tuple[int, ...]) -> None:
    places = mark_places([(x, f"stage {x}: train all") for x in xs])
    for place in places:
        left, right = place["ends"]
        assert right - left > 5 * len(place["label"]) and left >= 0 and right <= WIDTH
        crossing = [other for other in places if left < other["x"] < right]
        assert all(other["top"] > place["baseline"] for other in crossing)
    assert places[0]["top"] == TOP or len(xs) > 1
    assert [place["late"] for place in places] == [x > LEFT + 0.6 * (WIDTH - RIGHT - LEFT) for x in xs]
    assert len({place["baseline"] for place in places}) == len(xs)


def test_without_its_photos(finished: Any, tmp_path: Path) -> None:
    for name in ("config.toml", "metrics.json", "split.json", "history.csv", "predictions.safetensors"):
        (tmp_path / name).write_bytes((finished.folder / name).read_bytes())
    page = write_report(tmp_path, finished.info, None).read_text(encoding="utf-8")
    assert "data:image" not in page and "Confusion" in page


def test_sets_are_tested_on_the_test_photos(finished: Any) -> None:
    run = read_run(finished.folder)
    labels = run.predictions.labels["val"]
    sets = fit_sets(run.predictions.calibrated("val").softmax(1), labels)
    found = sets_on_test(dataclasses.replace(finished.info, selective={"sets": sets}), run)
    highest = next(percent for percent in (99, 95, 90, 80) if len(labels) >= 100 / (100 - percent) - 1)
    assert found["coverage"] == f"{highest}%" and found["inside"] <= len(run.labels) and found["size"] >= 1
    assert found["inside"] / len(run.labels) == pytest.approx(highest / 100, abs=0.15)
    assert sets_on_test(finished.info, run) == {}


def test_label_issues_are_shown_where_they_were_computed(finished: Any, tmp_path: Path) -> None:
    for name in ("config.toml", "metrics.json", "split.json", "history.csv", "predictions.safetensors"):
        (tmp_path / name).write_bytes((finished.folder / name).read_bytes())
    curve = [{"images": n, "accuracy": 0.5 + n / 100, "low": 0.4, "high": 0.9, "spread": 0.01} for n in (3, 10, 30)]
    issue = {"file": "iris/0.png", "label": "iris", "looks_like": "<i>rose", "probability": 0.93}
    write_json(
        tmp_path / "label_issues.json",
        {"images": 90, "curve": curve, "more_photos": "more photos would <u>help", "label_issues": [issue]},
    )
    page = write_report(tmp_path, finished.info, finished.source).read_text(encoding="utf-8")
    assert "Labels to check: 1" in page and "looks like <b>&lt;i&gt;rose</b> (93.0%)" in page
    assert "<span>label-issues</span>" in page and "<span>--review</span></pre>" in page
    assert "More photos would &lt;u&gt;help" in page and (tmp_path / "figures" / "learning_curve.svg").is_file()


def copied(finished: Any, folder: Path) -> Path:
    for name in ("config.toml", "metrics.json", "split.json", "history.csv", "predictions.safetensors"):
        (folder / name).write_bytes((finished.folder / name).read_bytes())
    return folder


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("history.csv", "finetune,1,0.0001,0.8,0.8,0.8,0.7", "finetune,1,0.0001,0.8,0.8,0.8,nan"),
        ("history.csv", "finetune,1,0.0001", "finetune,1,-1"),
        ("history.csv", "finetune,1,0.0001", "finetune," + "9" * 5000 + ",1"),
        ("history.csv", "val_loss", "loss"),
        ("metrics.json", '"calibration_error": 0.2', '"calibration_error": "x"'),
        ("metrics.json", '"best_epoch": {', '"best_epoch": [], "x": {'),
        ("split.json", '"seed": 0', '"seed": ' + "[" * 100_000),
        ("split.json", '"val"', '"vql"'),
        ("config.toml", 'name = "head"', "name = 3"),
        ("config.toml", "size = 32", "size = 0x" + "f" * 5000),
    ],
    ids=range(10),
)
def test_a_damaged_record_is_named(finished: Any, tmp_path: Path, name: str, old: str, new: str) -> None:
    path = copied(finished, tmp_path) / name
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(DataError, match=f"{name} is not (a|the) ") as caught:
        write_report(tmp_path, finished.info, None)
    assert len(str(caught.value)) < 800


def test_one_epoch_is_a_sentence(finished: Any, tmp_path: Path) -> None:
    path = copied(finished, tmp_path) / "history.csv"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:2]))
    page = write_report(tmp_path, finished.info, None).read_text(encoding="utf-8")
    assert "Training took one epoch, stage head. Training loss 1.000, accuracy 70.0%." in page
    assert not (tmp_path / "figures" / "loss.svg").exists()


def test_losses_that_were_not_finite_are_no_damage(finished: Any, tmp_path: Path) -> None:
    path = copied(finished, tmp_path) / "history.csv"
    path.write_text(path.read_text().replace("head,1,0.001,1.0", "head,1,0.001,inf"))
    assert write_report(tmp_path, finished.info, None).is_file()


def test_a_record_shows_no_other_file_of_this_machine(finished: Any, tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes((finished.photos.root / "iris" / "0.png").read_bytes())
    curve = [{"images": n, "accuracy": 0.5, "low": 0.4, "high": 0.9, "spread": 0.01} for n in (3, 10)]
    issue = {"label": "iris", "looks_like": "rose", "probability": 0.93}
    for name in (str(secret), os.path.relpath(secret, finished.photos.root)):
        issues = {"curve": curve, "more_photos": "no", "label_issues": [issue | {"file": name}]}
        write_json(copied(finished, tmp_path) / "label_issues.json", issues)
        page = write_report(tmp_path, finished.info, finished.source).read_text(encoding="utf-8")
        assert "no picture" in page and "Labels to check: 1" in page
    tensors, metadata = safe_load(tmp_path / "predictions.safetensors")
    metadata["paths"]["test"] = [str(secret)] * len(metadata["paths"]["test"])
    safe_save(tensors, tmp_path / "predictions.safetensors", metadata)
    page = write_report(tmp_path, finished.info, finished.source).read_text(encoding="utf-8")
    assert page.count("data:image") < finished.page.read_text(encoding="utf-8").count("data:image") / 2


@pytest.mark.needs("links")
def test_figures_are_not_written_through_a_link(finished: Any, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "figures").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ResourceError, match="figures is a link"):
        write_report(copied(finished, tmp_path), finished.info, None)
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize("function", ["grad_cams", "other_figures", "map_dots"])
def test_a_part_that_fails_costs_itself_only(
    function: str, finished: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*arguments: Any, **keywords: Any) -> None:
        raise ZeroDivisionError("<b>nothing to divide")

    monkeypatch.setattr(image_sections, function, fail)
    for name in ("config.toml", "metrics.json", "split.json", "history.csv", "predictions.safetensors"):
        (tmp_path / name).write_bytes((finished.folder / name).read_bytes())
    source = dataclasses.replace(finished.source, attempt=Attempt())
    with caplog.at_level("INFO", "flowers_torch"):
        page = write_report(tmp_path, finished.info, source).read_text(encoding="utf-8")
    titles = {"grad_cams": "Grad-CAM", "other_figures": "photos", "map_dots": "map"}
    assert f"note     report: {titles[function]} left out: <b>nothing to divide" in caplog.text
    assert "left out: &lt;b&gt;nothing to divide" in page and "Confusion matrix" in page and "Model card" in page


def test_a_section_whose_template_fails_is_left_out(
    finished: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_module, "_charts", lambda run: {})
    for name in ("config.toml", "metrics.json", "split.json", "history.csv", "predictions.safetensors"):
        (tmp_path / name).write_bytes((finished.folder / name).read_bytes())
    page = write_report(tmp_path, finished.info, None).read_text(encoding="utf-8")
    assert "Calibration left out: " in page and "This section could not be made." in page and "Model card" in page


def test_many_classes_get_a_list_of_confusions(finished: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_module, "MATRIX_CLASSES", 2)
    for name in ("config.toml", "metrics.json", "split.json", "history.csv", "predictions.safetensors"):
        (tmp_path / name).write_bytes((finished.folder / name).read_bytes())
    found = Elements(write_report(tmp_path, finished.info, None).read_text(encoding="utf-8")).found
    buttons = [attributes for tag, attributes in found if tag == "button" and "data-cell" in attributes]
    assert buttons and all(button["class"] == "miss" for button in buttons)
    tags = [tag for tag, _ in found]
    assert tags.count("option") == 1 + 3 and "legend" not in [
        attributes.get("class") for tag, attributes in found if tag == "div"
    ]
    assert "The other 1 class" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_code_spans_are_escaped_and_printable() -> None:
    assert code_spans("<b>`<i>`") == "&lt;b&gt;<code>&lt;i&gt;</code>"
    assert code_spans("\u202e`\x1b`") == "\\u202e<code>\\x1b</code>"


def test_an_unfinished_run(tmp_path: Path, finished: Any) -> None:
    with pytest.raises(DataError, match="lacks config.toml"):
        write_report(tmp_path, finished.info, None)
