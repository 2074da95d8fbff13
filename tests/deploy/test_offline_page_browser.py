"""The offline page in headless Chromium, driven by selenium (`pip install selenium`).

ONNXRUNTIME_WEB is the path of ONNX Runtime (`npm pack onnxruntime-web@1.30.0`); without it the runtime is
downloaded.
"""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from flowers_torch.data.sources.demo import FORMS, draw_picture
from flowers_torch.deploy.export import export_onnx
from flowers_torch.deploy.offline_page import BrowserRuntime, find_runtime, write_page
from flowers_torch.deploy.predictor import Predictor
from flowers_torch.errors import ResourceError, printable
from flowers_torch.training.device import Runtime

pytestmark = pytest.mark.slow
TOLERANCE = 2e-3  # of probabilities; resize filter and JPEG decoder differ


@pytest.fixture(scope="module")
def runtime() -> BrowserRuntime:
    try:
        return find_runtime(os.environ.get("ONNXRUNTIME_WEB", ""))
    except ResourceError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def pages(small: Any, runtime: BrowserRuntime, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The page as one file and as a folder."""
    pytest.importorskip("onnx", reason="needs the extra onnx")
    folder = tmp_path_factory.mktemp("page")
    model = export_onnx(small.network, small.info, small.data, folder / "model.html", with_preprocessing=True)
    write_page(folder / "model.html", model.content, runtime)
    write_page(folder / "parts.html", model.content, runtime, as_folder=True)
    return {"file": folder / "model.html", "folder": folder / "parts" / "index.html"}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """JPEG and PNG files: wide, tall, a strip, rotated by EXIF, transparent, gray."""
    folder = tmp_path_factory.mktemp("photos")
    forms = list(FORMS)
    drawn = [draw_picture(forms[i % 6], 120 + 10 * i, np.random.default_rng(i)) for i in range(10)]
    drawn[1] = drawn[1].crop((0, 0, 130, 60))
    drawn[2] = drawn[2].crop((0, 0, 20, 140))
    drawn[3] = drawn[3].convert("L")
    drawn[4].putalpha(128)
    for number, image in enumerate(drawn):
        if number in (4, 5, 6):
            image.save(folder / f"{number}.png")
        else:
            exif = Image.Exif()
            if number == 7:
                exif[0x0112] = 6
            image.save(folder / f"{number}.jpg", quality=92, subsampling=0, exif=exif)
    return sorted(folder.iterdir())


def open_page(browser: Any, page: Path, width: int = 1400, scheme: str = "light") -> None:
    """Opens the page from its file and waits for the model."""
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get(page.as_uri())
    wait(browser, lambda: browser.find_element("id", "ready").text.startswith("Ready"))


def wait(browser: Any, ready: Any) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, 120, 0.2).until(lambda _: ready())


def classify(browser: Any, files: list[Path]) -> list[dict[str, Any]]:
    """What the page knows about photos after it has classified them."""
    browser.find_element("id", "files").send_keys("\n".join(map(str, files)))
    status = f"{len(files)} of {len(files)} photo"
    wait(browser, lambda: browser.find_element("id", "count").text.startswith(status))
    return list(browser.execute_script("return photos.map(({ item, file, ...others }) => others)"))


@pytest.mark.parametrize("form", ["file", "folder"])
def test_it_predicts_as_torch_does_without_any_request(
    browser: Any, pages: dict[str, Path], small: Any, files: list[Path], form: str
) -> None:
    browser.get_log("performance"), browser.get_log("browser")
    open_page(browser, pages[form])
    photos = classify(browser, files)
    assert [photo["name"] for photo in photos] == [path.name for path in files]
    classifier = Predictor(small.network, small.info, Runtime(torch.device("cpu"), "fp32", "for a test"))
    expected = (classifier.logits(files) / small.info.temperature).softmax(1)
    names = [printable(name) for name in small.info.classes]
    rows = [{each["class"]: each["probability"] for each in photo["classes"]} for photo in photos]
    found = np.array([[row[name] for name in names] for row in rows])
    assert np.abs(found - expected.numpy()).max() < TOLERANCE
    assert [names.index(photo["classes"][0]["class"]) for photo in photos] == expected.argmax(1).tolist()
    assert [photo["isUnlike"] for photo in photos] == [bool(p.reason) for p in classifier.predict(files)]
    assert browser.get_log("browser") == [] and browser.execute_script("return window.hacked") is None
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    own = pages[form].parent.as_uri()
    assert sent and not [url for url in sent if not url.startswith((own, "blob:null/"))]


def test_the_policy_refuses_a_request(browser: Any, pages: dict[str, Path]) -> None:
    """A fetch, as injected code might try."""
    open_page(browser, pages["file"])
    script = "const done = arguments[0]; fetch('http://127.0.0.1:9/').then(done, e => done(`${e}`))"
    events = "document.addEventListener('securitypolicyviolation', e => window.refused = e.violatedDirective)"
    browser.execute_script(events)
    assert "Failed to fetch" in browser.execute_async_script(script)
    assert browser.execute_script("return window.refused") == "connect-src"


def test_a_bad_photo_among_good_ones(browser: Any, pages: dict[str, Path], files: list[Path], tmp_path: Path) -> None:
    bad = tmp_path / "<img src=x onerror=window.hacked=1>.jpg"
    bad.write_bytes(b"nothing")
    open_page(browser, pages["file"])
    first, second, third = classify(browser, [files[0], bad, files[1]])
    assert first["classes"] and third["classes"] and "cannot read it" in second["error"]
    assert "cannot read it. Fix: convert" in browser.find_element("css selector", ".failed").text
    assert browser.execute_script("return window.hacked") is None
    browser.find_element("id", "clear").click()
    assert not browser.find_elements("css selector", "#predictions > li")


def test_the_threshold_is_that_of_predict(browser: Any, pages: dict[str, Path], files: list[Path], small: Any) -> None:
    """The lowest error rate that the small model can promise is 20%, with its threshold of 0.9."""
    from selenium.webdriver.support.ui import Select

    open_page(browser, pages["file"])
    photos = classify(browser, files)
    select = Select(browser.find_element("id", "rate"))
    assert [option.text for option in select.options] == ["any number", "at most 20%"]
    assert select.first_selected_option.text == "at most 20%"
    assert "0 of 4 wrong in validation" in browser.find_element("id", "promise").text
    classifier = Predictor(small.network, small.info, Runtime(torch.device("cpu"), "fp32", "for a test"))
    assert classifier.threshold(0.2).probability == 0.9
    expected = [prediction.reason for prediction in classifier.predict(files, confidence_threshold=0.9)]
    assert [photo["decision"]["reason"] for photo in photos] == expected and "too improbable" in expected
    unsure = browser.find_elements("css selector", ".unsure")
    assert len(unsure) == len([reason for reason in expected if reason])
    select.select_by_index(0)
    assert not browser.find_elements("css selector", ".unsure")


@pytest.mark.parametrize("width", [360, 1400])
def test_it_fits_phone_and_desktop_in_light_and_dark(
    browser: Any, pages: dict[str, Path], files: list[Path], width: int
) -> None:
    backgrounds = {}
    for scheme in ("light", "dark"):
        open_page(browser, pages["file"], width, scheme)
        classify(browser, files[:2])
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        color = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        backgrounds[scheme] = sum(map(int, color[4:-1].split(",")))
    assert backgrounds["light"] > 700 > 150 > backgrounds["dark"]


def test_everything_is_reachable_by_keyboard(browser: Any, pages: dict[str, Path], files: list[Path]) -> None:
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.keys import Keys

    open_page(browser, pages["file"])
    classify(browser, files[:1])
    browser.execute_script("document.activeElement.blur()")
    reached = []
    for _ in range(8):
        ActionChains(browser).send_keys(Keys.TAB).perform()
        focused = browser.switch_to.active_element
        reached.append(focused.get_attribute("id") or focused.tag_name)
    assert reached == ["choose", "choose-folder", "camera", "save", "clear", "rate", "button", "summary"]
