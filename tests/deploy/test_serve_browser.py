"""The served page in headless Chromium, driven by selenium (`pip install selenium`)."""

import csv
import dataclasses
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flowers_torch.commands.predict import _to_rows
from flowers_torch.deploy.predictor import Predictor
from flowers_torch.files.atomic import safe_cell

pytestmark = pytest.mark.slow
CARD, DONE = "#predictions > li", "#predictions > li:not(.waiting)"


@pytest.fixture
def hostile_file(tmp_path: Path) -> Path:
    file = tmp_path / "<img src=x onerror=window.hacked=1>.jpg"
    file.write_bytes(b"nothing")
    return file


def open_page(browser: Any, served: Any, width: int = 1400, scheme: str = "light") -> None:
    """Opens the page with a width and a color scheme."""
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get(served.url)


def all_of(browser: Any, selector: str) -> list[Any]:
    return list(browser.find_elements("css selector", selector))


def wait(browser: Any, condition: Callable[[], Any]) -> Any:
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, 20, 0.05).until(lambda _: condition())


def choose(browser: Any, *files: Path) -> list[Any]:
    """Adds files to the page and waits for their cards."""
    before = len(all_of(browser, CARD))
    browser.find_element("css selector", "#files").send_keys("\n".join(map(str, files)))
    wait(browser, lambda: len(all_of(browser, DONE)) == before + len(files))
    return all_of(browser, CARD)


def drop(browser: Any, *paths: Path) -> None:
    """Drops files and folders of this machine, as a mouse does."""
    data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        browser.execute_cdp_cmd("Input.dispatchDragEvent", {"type": kind, "x": 200, "y": 150, "data": data})


@pytest.mark.parametrize("width", [360, 1400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_photos_are_classified_without_errors_requests_or_sideways_scrolling(
    browser: Any, served: Any, photo_folder: Path, hostile_file: Path, width: int, scheme: str
) -> None:
    browser.get_log("performance"), browser.get_log("browser")
    open_page(browser, served, width, scheme)
    images = sorted(photo_folder.rglob("*.png"))[:3]
    cards = choose(browser, images[0], hostile_file, *images[1:])
    files = [card.find_element("css selector", ".file").text for card in cards]
    assert files == [images[0].name, hostile_file.name, images[1].name, images[2].name]
    assert "no prediction" in cards[1].text and "is not an image of an accepted format" in cards[1].text
    assert browser.find_element("id", "count").text == "4 of 4 photos, 1 without a prediction"
    _, _, response = served.send((images[0].name, images[0].read_bytes()))
    best = response["predictions"][0]["classes"][0]
    assert cards[0].find_element("css selector", "h3").text == best["class"]
    bars = [row.text.split("\n") for row in cards[0].find_elements("css selector", "ol li")]
    assert len(bars) == 3 and bars[0] == [best["class"], f"{best['probability']:.1%}"]
    fit = "return getComputedStyle(document.querySelector('.photo')).objectFit"
    assert browser.execute_script(fit) == "contain"  # the whole photo
    cards[0].find_element("css selector", ".explain").click()
    heat = cards[0].find_element("css selector", ".heat")
    wait(browser, heat.is_displayed)
    assert browser.execute_script("return arguments[0].naturalWidth", heat) == 64
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert browser.execute_script("return window.hacked") is None
    background = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, background[4:-1].split(","))) > 400) == (scheme == "light")
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert sent and not [u for u in sent if not u.startswith((served.url, "data:", f"blob:{served.url}"))]
    if folder := os.environ.get("FLOWERS_TORCH_SHOTS"):
        browser.save_screenshot(str(Path(folder) / f"serve-{width}-{scheme}.png"))


def test_photos_can_be_dropped_and_pasted(browser: Any, served: Any) -> None:
    open_page(browser, served)
    script = """
        const canvas = document.createElement('canvas');
        canvas.width = canvas.height = 80;
        canvas.getContext('2d').fillRect(0, 0, 40, 80);
        const [kind, done] = arguments;
        canvas.toBlob((blob) => {
            const given = new DataTransfer();
            given.items.add(new File([blob], kind + '.png', {type: 'image/png'}));
            const options = {bubbles: true, cancelable: true};
            const event = kind === 'drop' ? new DragEvent('drop', {...options, dataTransfer: given})
                : new ClipboardEvent('paste', {...options, clipboardData: given});
            document.querySelector('.drop').dispatchEvent(event);
            done(true);
        });"""
    for number, kind in enumerate(("drop", "paste"), start=1):
        browser.execute_async_script(script, kind)
        wait(browser, lambda number=number: len(all_of(browser, DONE)) == number)
        assert all_of(browser, f"{CARD} .file")[0].text == f"{kind}.png"
    assert not all_of(browser, ".failed")


def test_the_camera_takes_a_photo(browser: Any, served: Any) -> None:
    open_page(browser, served)
    browser.find_element("css selector", "#camera").click()
    wait(browser, lambda: browser.execute_script("return document.querySelector('video').videoWidth"))
    browser.find_element("css selector", "#shoot").click()
    wait(browser, lambda: all_of(browser, f"{DONE}:not(.failed)"))
    assert not all_of(browser, "dialog[open]")
    wait(browser, lambda: browser.execute_script("return document.querySelector('video').srcObject") is None)


def test_all_of_it_works_by_keyboard(browser: Any, served: Any, photo_folder: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    open_page(browser, served)
    images = sorted(photo_folder.rglob("*.png"))[:2]
    choose(browser, *images)
    script = """return [...document.querySelectorAll('button, summary, select')]
        .filter(e => e.checkVisibility()).filter(e => {
        e.focus({focusVisible: true});
        return document.activeElement !== e || getComputedStyle(e).outlineStyle === 'none';
    }).map(e => e.outerHTML.slice(0, 80))"""
    assert browser.execute_script(script) == []
    button = all_of(browser, ".explain")[0]
    button.send_keys(Keys.ENTER)
    wait(browser, lambda: button.get_attribute("aria-pressed") == "true")
    all_of(browser, ".remove")[0].send_keys(Keys.ENTER)
    assert len(all_of(browser, CARD)) == 1
    assert "remove" in browser.switch_to.active_element.get_attribute("class")
    said = browser.find_element("id", "said").get_attribute("textContent")
    assert said == "1 of 1 photo" or images[1].name in said
    browser.find_element("css selector", "#clear").send_keys(Keys.ENTER)
    assert not all_of(browser, CARD)
    assert browser.switch_to.active_element.get_attribute("id") == "choose"


def test_a_busy_server_is_retried_and_a_dead_one_is_reported(browser: Any, serve_with: Any, photo_folder: Path) -> None:
    image = sorted(photo_folder.rglob("*.png"))[0]
    with serve_with(waiting=1) as served:
        open_page(browser, served)
        served.service.pending = 1
        browser.find_element("css selector", "#files").send_keys(str(image))
        wait(browser, lambda: all_of(browser, f"{CARD}.waiting"))
        served.service.pending = 0
        wait(browser, lambda: all_of(browser, f"{DONE}:not(.failed)"))
    cards = choose(browser, image)
    assert "is it still running?" in cards[0].text


NAMES = ("a, b 'c'.png", "=1+1.png", "Лютик едкий.png", "plain.png")


@pytest.fixture
def promising(serve_with: Any, served_classifier: Predictor, photo_folder: Path, tmp_path: Path) -> Iterator[Any]:
    """A server whose threshold lies between two of its photos, its classifier, and photos with difficult names."""
    files = [tmp_path / "photos" / name for name in NAMES]
    (tmp_path / "photos").mkdir()
    for file, source in zip(files, sorted(photo_folder.rglob("*.png"))[::15], strict=True):
        shutil.copy(source, file)
    sure = sorted(prediction.probability for prediction in served_classifier.predict(files))
    curve = [[sum(sure[1:3]) / 2, 60, 0], [0.0, 100, 30]]
    sets = {"images": 39, "quantiles": [[0.2, 1], [0.3, 2], [0.6, 4]]}
    info = dataclasses.replace(served_classifier.info, selective={"curve": curve, "sets": sets})
    classifier = dataclasses.replace(served_classifier, info=info)
    with serve_with(classifier, coverage=0.95) as running:
        yield running, classifier, files


def test_the_table_is_that_of_predict(browser: Any, promising: Any, hostile_file: Path, tmp_path: Path) -> None:
    from selenium.webdriver.support.ui import Select

    served, classifier, files = promising
    browser.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    open_page(browser, served)
    drop(browser, *files[:2], hostile_file, *files[2:])
    wait(browser, lambda: len(all_of(browser, DONE)) == 5)
    assert "unsure: too improbable" in browser.find_element("id", "predictions").text
    assert browser.find_element("id", "count").text == "5 of 5 photos, 2 unsure, 1 without a prediction"
    assert "0 of 60 wrong in validation" in browser.find_element("id", "promise").text
    sets = browser.execute_script("return photos.map(photo => photo.decision?.names ?? [])")
    texts = browser.execute_script("return photos.map(photo => photo.item.querySelector('.set').textContent)")
    assert texts == [f"one of: {', '.join(names)}" if len(names) > 1 else "" for names in sets] and [] in sets
    browser.find_element("id", "save").click()
    table, limit = tmp_path / "predictions.csv", time.monotonic() + 20
    while not table.exists() and time.monotonic() < limit:
        time.sleep(0.05)
    with table.open(encoding="utf-8-sig", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["file", "rank", "class", "probability", "reason", "error", "set"]
    failed = rows.pop(2)
    assert failed[:5] == [hostile_file.name, "", "", "", ""] and "not an image" in failed[5]
    least = classifier.threshold(0.02).probability
    found = classifier.predict(files, 1, 1, least, classifier.set_threshold(0.95))
    # The names of the browser are those without the folder; the last digits depend on the batch.
    expected = [_to_rows(dataclasses.replace(each, file=Path(each.file).name))[0] for each in found]
    for row, wanted in zip(rows, expected, strict=True):
        texts = [str(safe_cell(cell)) for cell in wanted]
        assert row[:2] + row[4:6] == texts[:2] + texts[4:6]
        assert float(row[3]) == pytest.approx(float(texts[3]), abs=2e-5)
    assert {row[2] for row in rows} <= set(served.service.page["classes"])
    Select(browser.find_element("id", "rate")).select_by_visible_text("any number")
    assert browser.find_element("id", "count").text == "5 of 5 photos, 1 without a prediction"
    assert browser.execute_script("return window.hacked") is None


def test_a_folder_of_many_photos_is_dropped(browser: Any, served: Any, photo_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(photo_folder, tmp_path / "many")
    (folder / "red" / "broken.png").write_bytes(b"nothing")
    (folder / "notes.txt").write_text("not a photo")
    (folder / ".hidden.png").write_bytes(b"not a photo either")
    open_page(browser, served)
    drop(browser, folder)
    wait(browser, lambda: browser.find_element("id", "count").text == "61 of 61 photos, 1 without a prediction")
    names = browser.execute_script("return photos.map(photo => photo.name)")
    assert names[:3] == ["many/blue/0.png", "many/blue/1.png", "many/blue/2.png"] and len(names) == 61
    assert [card.find_element("css selector", ".file").text for card in all_of(browser, ".failed")] == [
        "many/red/broken.png"
    ]
    assert not browser.find_element("id", "bar").is_displayed()
    assert browser.find_element("id", "said").get_attribute("textContent") == browser.find_element("id", "count").text


@pytest.mark.parametrize(
    ("error", "message"),
    [("NotAllowedError", "The browser blocks the camera"), ("NotFoundError", "No camera was found")],
)
def test_a_camera_that_does_not_work_says_why(browser: Any, served: Any, error: str, message: str) -> None:
    open_page(browser, served)
    script = "navigator.mediaDevices.getUserMedia = () => Promise.reject(new DOMException('', arguments[0]))"
    browser.execute_script(script, error)
    browser.find_element("id", "camera").click()
    wait(browser, lambda: message in browser.find_element("id", "notice").text)
    assert not all_of(browser, "dialog[open]")
