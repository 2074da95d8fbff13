"""The page of the label review in headless Chromium, driven by selenium (`pip install selenium`)."""

import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from flowers_torch.config import Config
from flowers_torch.data.sources.folders import find_images
from flowers_torch.runs.label_review import LabelReview
from flowers_torch.runs.review_page import review_page

pytestmark = pytest.mark.slow
HOSTILE = '"><img src=x onerror=window.hacked=1>'
CLASSES = (
    "Лютик едкий",
    "rose",
    HOSTILE,
    "a class whose name is as long as the label on a herbarium sheet",
)


class Opened:
    """A review in the browser."""

    def __init__(self, browser: Any, experiment: Any, issues: list[dict[str, Any]]) -> None:
        features = torch.randn(len(experiment.dataset), 4, generator=torch.Generator().manual_seed(0))
        self.browser, self.review = browser, LabelReview(experiment, issues, features)
        self.page = review_page(self.review)
        self.thread = threading.Thread(target=self.page.serve_forever, args=(0.05,))
        self.thread.start()
        browser.get(self.page.url)

    def text(self, selector: str) -> str:
        return str(self.browser.find_element("css selector", selector).text)

    def press(self, keys: str, decided: int) -> None:
        """Presses a key and waits until so many issues are decided."""
        self.browser.find_element("css selector", "body").send_keys(keys)
        self.wait(lambda: self.text("#progress-text").startswith(f"{decided} of"))

    def wait(self, condition: Callable[[], Any]) -> None:
        from selenium.webdriver.support.ui import WebDriverWait

        WebDriverWait(self.browser, 20, 0.05).until(lambda _: condition())

    def close(self) -> None:
        self.page.shutdown()
        self.page.server_close()
        self.thread.join()


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Iterator[Callable[..., Opened]]:
    """Opens a review of so many issues at a width and a color scheme."""
    root, made = tmp_path / "photos", list[Opened]()
    for number, name in enumerate(CLASSES):
        (root / name).mkdir(parents=True)
        for image in range(6):
            Image.new("RGB", (64, 48), (60 * number, 40 * image, 90)).save(root / name / f"{image}-'{'x' * 60}.png")
    dataset = find_images(root)
    splits = {"train": list(range(len(dataset)))}
    experiment = SimpleNamespace(dataset=dataset, splits=splits, config=Config(), folder=tmp_path)

    def start(count: int, width: int = 1400, scheme: str = "light") -> Opened:
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        browser.get_log("performance"), browser.get_log("browser")
        paths = [path for path in dataset.paths if path.split("/")[-1].startswith("0-")][:count]
        issues = [
            {"file": path, "label": path.split("/")[0], "probability": 0.9, "probability_of_label": 0.05}
            | {"looks_like": CLASSES[(CLASSES.index(path.split("/")[0]) + 1) % len(CLASSES)]}
            for path in paths
        ]
        made.append(Opened(browser, experiment, issues))
        made[-1].wait(lambda: "decided" in made[-1].text("#progress-text"))
        return made[-1]

    yield start
    for each in made:
        each.close()


@pytest.mark.parametrize("width", [360, 1400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_decisions_by_keys_are_saved_undone_and_resumed(opened: Any, width: int, scheme: str) -> None:
    page = opened(4, width, scheme)
    issues = page.review.issues
    page.wait(lambda: len(page.browser.find_elements("css selector", ".classes img")) == 8)
    page.press("k", 1)
    page.press("s", 2)
    page.press("x", 3)
    files = [issue["file"] for issue in issues]
    assert [page.review.decisions[file].action for file in files[:3]] == ["keep", "relabel", "exclude"]
    assert page.review.decisions[files[1]].label == issues[1]["looks_like"]
    page.press("u", 2)
    assert files[2] not in page.review.decisions and "Photo 3 of 4" in page.text("#question")
    assert page.browser.switch_to.active_element.get_attribute("id") == "question"  # a screen reader reads it
    browser = page.browser
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert browser.execute_script("return window.hacked") is None
    background = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, background[4:-1].split(","))) > 400) == (scheme == "light")
    browser.refresh()
    page.wait(lambda: "Photo 3 of 4" in page.text("#question"))
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert sent and not [url for url in sent if not url.startswith(page.page.url)]
    if folder := os.environ.get("FLOWERS_TORCH_SHOTS"):
        browser.save_screenshot(str(Path(folder) / f"review-{width}-{scheme}.png"))


def test_decisions_by_mouse_any_class_skip_and_back(opened: Any) -> None:
    from selenium.webdriver.support.ui import Select

    page = opened(3)
    page.wait(lambda: "Photo 1 of 3" in page.text("#question"))
    Select(page.browser.find_element("id", "class")).select_by_visible_text(CLASSES[3])
    page.browser.find_element("css selector", "#other button").click()
    page.wait(lambda: "Photo 2 of 3" in page.text("#question"))
    assert page.review.decisions[page.review.issues[0]["file"]].label in (CLASSES[3], page.review.issues[0]["label"])
    page.browser.find_element("css selector", "[data-action=skip]").click()
    page.wait(lambda: "Photo 3 of 3" in page.text("#question"))
    page.browser.find_element("css selector", "[data-action=back]").click()
    page.wait(lambda: "Photo 2 of 3" in page.text("#question"))
    page.browser.find_element("css selector", "[data-action=skip]").click()
    page.wait(lambda: "Photo 3 of 3" in page.text("#question"))
    page.press("x", 2)
    page.wait(lambda: page.text("#end-title") == "1 skipped")
    page.browser.find_element("id", "again").click()
    page.wait(lambda: "Photo 2 of 3" in page.text("#question"))
    page.browser.find_element("css selector", "#decisions button[aria-label^=Undo]").click()
    page.wait(lambda: page.text("#progress-text").startswith("1 of 3"))


def test_keys_can_be_turned_off_and_nothing_to_review_is_said(opened: Any) -> None:
    page = opened(1)
    page.wait(lambda: "Photo 1 of 1" in page.text("#question"))
    page.browser.find_element("id", "keys").click()
    page.browser.find_element("id", "question").click()
    page.browser.find_element("css selector", "body").send_keys("kxs")
    assert not page.review.decisions
    empty = opened(0)
    empty.wait(lambda: empty.text("#end-title") == "No label issues")


def test_a_photo_that_was_moved_is_named_and_can_be_decided(opened: Any) -> None:
    page = opened(2)
    file = page.review.issues[1]["file"]
    (page.review.dataset.root / file).rename(page.review.dataset.root / "elsewhere.png")
    page.press("k", 1)
    photo = page.browser.find_element("id", "photo")
    page.wait(lambda: photo.get_attribute("alt") == f"the photo in question, {file} (cannot be shown)")
    page.press("x", 2)
    assert page.review.decisions[file].action == "exclude"
