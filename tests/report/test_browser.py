"""The report in a real browser: Debian's chromium, headless, driven by selenium (`pip install selenium`)."""

import json
from typing import Any

import pytest

pytestmark = pytest.mark.slow


def look(browser: Any, page: Any, width: int, scheme: str = "light") -> None:
    """Opens the page from its file at a width, in a color scheme."""
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get(page.as_uri())


@pytest.mark.parametrize("width", [360, 1400])
def test_it_opens_without_error_request_or_sideways_scrolling(browser: Any, finished: Any, width: int) -> None:
    browser.get_log("performance"), browser.get_log("browser")
    look(browser, finished.page, width)
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert sent and not [url for url in sent if not url.startswith(("file://", "data:"))]
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert browser.execute_script("return window.hacked") is None
    broken = "return [...document.images].filter(i => i.complete && !i.naturalWidth && i.src).length"
    assert browser.execute_script(broken) == 0


def test_a_cell_shows_its_photos_by_mouse_and_keyboard(browser: Any, finished: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    look(browser, finished.page, 1400)
    misses = browser.find_elements("css selector", ".matrix button.miss")
    panel = browser.find_element("css selector", ".cell")
    largest = max(int(cell.text) for cell in misses)
    assert len(panel.find_elements("css selector", "img")) == largest  # the commonest confusion is open at first
    cell = misses[-1]
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", cell)
    cell.click()
    images = panel.find_elements("css selector", "img")
    assert len(images) == int(cell.text) and panel.find_element("css selector", "h3").text == cell.get_attribute(
        "title"
    )
    assert all(browser.execute_script("return arguments[0].naturalWidth", image) for image in images)
    pressed = browser.find_elements("css selector", ".matrix button[aria-pressed=true]")
    assert pressed == [cell]

    first = browser.find_element("css selector", ".matrix button")
    first.send_keys(Keys.ARROW_RIGHT)
    second = browser.switch_to.active_element
    columns = [int(button.get_attribute("data-cell").split(",")[1]) for button in (first, second)]
    assert columns[1] > columns[0]
    second.send_keys(Keys.ENTER)
    assert panel.find_element("css selector", "h3").text == second.get_attribute("title")
    assert browser.execute_script("return window.hacked") is None


def test_the_matrix_fills_its_card(browser: Any, finished: Any) -> None:
    look(browser, finished.page, 1400)
    script = "return ['.matrix', '.beside'].map(s => document.querySelector(s).getBoundingClientRect().width)"
    matrix, card = browser.execute_script(script)
    assert matrix > 0.6 * card


def test_a_dot_of_the_map_opens_its_photo_and_becomes_one(browser: Any, finished: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    look(browser, finished.page, 1400)
    toggle = browser.find_element("id", "map-photos")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", toggle)
    dots = browser.find_elements("css selector", ".map .dot")
    toggle.click()
    pictures = browser.find_elements("css selector", ".map image")
    assert len(pictures) == len(dots) and all(p.get_attribute("href").startswith("data:image") for p in pictures)
    browser.execute_script("arguments[0].dispatchEvent(new MouseEvent('click', {bubbles: true}))", pictures[0])
    assert browser.find_element("css selector", "dialog[open] img")
    browser.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert not browser.find_elements("css selector", "dialog[open]")
    toggle.click()
    assert not browser.find_elements("css selector", ".map image")


def test_classes_can_be_picked_on_the_map(browser: Any, finished: Any) -> None:
    look(browser, finished.page, 1400)
    button = browser.find_element("css selector", '.legend button[data-label="1"]')
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", button)
    button.click()
    shown = browser.execute_script("return [...document.querySelectorAll('.map .on')].map(d => d.classList.value)")
    assert shown and all("k1" in value for value in shown)
    button.click()
    assert not browser.find_elements("css selector", ".map .on")


def test_light_and_dark(browser: Any, finished: Any) -> None:
    papers = {}
    for scheme in ("light", "dark"):
        look(browser, finished.page, 1400, scheme)
        script = "return getComputedStyle(document.body).backgroundColor"
        papers[scheme] = sum(map(int, browser.execute_script(script)[4:-1].split(",")))
    assert papers["light"] > 700 > 150 > papers["dark"]


def test_everything_can_be_reached_by_keyboard(browser: Any, finished: Any) -> None:
    """Every control takes the focus and shows it."""
    look(browser, finished.page, 1400)
    script = """return [...document.querySelectorAll('nav a, main button, summary, .scroll[tabindex]')]
        .filter(e => e.checkVisibility()).filter(e => {
        e.focus({focusVisible: true});
        return document.activeElement !== e || getComputedStyle(e).outlineStyle === 'none';
    }).map(e => e.outerHTML.slice(0, 80))"""
    assert browser.execute_script(script) == []


def test_the_panel_gives_way_to_a_matrix_of_many_classes(browser: Any, finished: Any) -> None:
    """The column of totals is not clipped."""
    look(browser, finished.page, 1100)
    grow = """
        const table = document.querySelector(".matrix");
        for (const row of table.rows) {
            const cell = row.cells[Math.min(1, row.cells.length - 2)];
            if (cell.colSpan === 1) for (let i = 0; i < 14; i++) cell.after(cell.cloneNode(true));
            else cell.colSpan += 14;
        }
        const last = [...table.rows].at(-1).cells;
        last[last.length - 1].textContent = "272";
        const around = table.closest(".scroll");
        return [around.scrollWidth, around.clientWidth];
    """
    content, shown = browser.execute_script(grow)
    assert content <= shown
