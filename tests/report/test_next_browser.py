"""The page of `next` in headless Chromium: the labels that it saves are a table that `update` takes."""

import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from flowers_torch.data.sources.tables import read_table
from flowers_torch.report.next_page import write_next_page

pytestmark = pytest.mark.slow
CLASSES = ('"><img src=x onerror=window.hacked=1>', "=1+1", "Лютик, едкий")


def test_labels_of_the_page_are_a_table(browser: Any, tmp_path: Path) -> None:
    names = ("a.png", "b, 'c'.png", "<i>x.png", "skipped.png")
    rows: list[dict[str, Any]] = []
    for number, name in enumerate(names):
        Image.new("RGB", (40, 30), (60 * number, 90, 90)).save(tmp_path / name)
        guesses = [{"class": label, "number": i, "probability": 0.3} for i, label in enumerate(CLASSES)]
        rows.append({"file": str(tmp_path / name), "classes": guesses, "uncertainty": 1.0, "distance": 0.5})
    values = {"run": "<b>run</b>", "classes": CLASSES, "candidates": 9, "command": "flowers-torch update x labels.csv"}
    write_next_page(tmp_path / "next.html", rows, values)
    browser.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    browser.get_log("browser")
    browser.get((tmp_path / "next.html").as_uri())
    cards = browser.find_elements("css selector", ".cards li")
    assert browser.execute_script("return document.getElementById('save').disabled")
    for number in range(2):
        cards[number].find_elements("css selector", "button")[number].click()
    cards[2].find_element("css selector", "input").send_keys('a "new" class')
    cards[3].find_elements("css selector", "button")[2].click()
    cards[3].find_elements("css selector", "button")[2].click()  # takes it back
    assert browser.find_element("id", "count").text == "3 of 4 labeled"
    browser.find_element("id", "save").click()
    table, limit = tmp_path / "labels.csv", time.monotonic() + 20
    while not table.exists() and time.monotonic() < limit:
        time.sleep(0.05)
    read = read_table(table)
    labels = {path: read.classes[label] for path, label in zip(read.paths, read.labels, strict=True)}
    assert labels == {names[0]: CLASSES[0], names[1]: CLASSES[1], names[2]: 'a "new" class'}
    assert browser.execute_script("return window.hacked") is None and browser.get_log("browser") == []
