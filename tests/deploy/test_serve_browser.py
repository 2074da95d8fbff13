"""The served page in headless Chromium, driven by selenium (`pip install selenium`)."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow


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
    before = len(all_of(browser, ".prediction"))
    browser.find_element("css selector", "#files").send_keys("\n".join(map(str, files)))
    wait(browser, lambda: len(all_of(browser, ".prediction:not(.waiting)")) == before + len(files))
    return all_of(browser, ".prediction")


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
    _, _, response = served.send((images[0].name, images[0].read_bytes()))
    best = response["predictions"][0]["classes"][0]
    title = cards[0].find_element("css selector", "h3").text
    assert best["class"] in title and f"{best['probability']:.1%}" in title
    assert len(cards[0].find_elements("css selector", "ol li")) == 3
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
            document.querySelector('#drop').dispatchEvent(event);
            done(true);
        });"""
    for number, kind in enumerate(("drop", "paste"), start=1):
        browser.execute_async_script(script, kind)
        wait(browser, lambda number=number: len(all_of(browser, ".prediction:not(.waiting)")) == number)
        assert all_of(browser, ".prediction .file")[0].text == f"{kind}.png"
    assert not all_of(browser, ".failed")


def test_the_camera_takes_a_photo(browser: Any, served: Any) -> None:
    open_page(browser, served)
    browser.find_element("css selector", "#camera").click()
    wait(browser, lambda: browser.execute_script("return document.querySelector('video').videoWidth"))
    browser.find_element("css selector", "#shoot").click()
    wait(browser, lambda: all_of(browser, ".prediction:not(.waiting):not(.failed)"))
    assert not all_of(browser, "dialog[open]")
    wait(browser, lambda: browser.execute_script("return document.querySelector('video').srcObject") is None)


def test_all_of_it_works_by_keyboard(browser: Any, served: Any, photo_folder: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    open_page(browser, served)
    images = sorted(photo_folder.rglob("*.png"))[:2]
    choose(browser, *images)
    script = """return [...document.querySelectorAll('button, summary')]
        .filter(e => e.checkVisibility()).filter(e => {
        e.focus({focusVisible: true});
        return document.activeElement !== e || getComputedStyle(e).outlineStyle === 'none';
    }).map(e => e.outerHTML.slice(0, 80))"""
    assert browser.execute_script(script) == []
    button = all_of(browser, ".explain")[0]
    button.send_keys(Keys.ENTER)
    wait(browser, lambda: button.get_attribute("aria-pressed") == "true")
    all_of(browser, ".remove")[0].send_keys(Keys.ENTER)
    assert len(all_of(browser, ".prediction")) == 1
    assert "remove" in browser.switch_to.active_element.get_attribute("class")
    status = browser.find_element("css selector", "[role=status]").get_attribute("textContent")
    assert "sure" in status
    browser.find_element("css selector", "#clear").send_keys(Keys.ENTER)
    assert not all_of(browser, ".prediction")
    assert browser.switch_to.active_element.get_attribute("id") == "choose"


def test_a_busy_server_is_retried_and_a_dead_one_is_reported(browser: Any, serve_with: Any, photo_folder: Path) -> None:
    image = sorted(photo_folder.rglob("*.png"))[0]
    with serve_with(waiting=1) as served:
        open_page(browser, served)
        served.service.pending = 1
        browser.find_element("css selector", "#files").send_keys(str(image))
        wait(browser, lambda: all_of(browser, ".prediction.waiting"))
        served.service.pending = 0
        wait(browser, lambda: all_of(browser, ".prediction:not(.waiting):not(.failed)"))
    cards = choose(browser, image)
    assert "is it still running?" in cards[0].text
