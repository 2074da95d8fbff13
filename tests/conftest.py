"""Photos and networks small enough for a test, and an empty place for caches."""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

sys.path.append(str(Path(__file__).parent))
from system_needs import NEEDS


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips what this system cannot run; `system_needs.py` lists the needs."""
    for item in items:
        for name in [name for mark in item.iter_markers("needs") for name in mark.args]:
            here, what, _ = NEEDS[name]
            if not here:
                item.add_marker(pytest.mark.skip(reason=f"needs {what}"))


@pytest.fixture(scope="session", autouse=True)
def private_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test, nor a fixture of a whole module, uses the user's cache, a hub, the GPU of a Mac, or many threads.

    None waits for the disk either, which each small run would do 44 times.
    """
    import torch  # not at the top: the process that only distributes the tests does without

    torch.set_num_threads(1)  # tests run in one process for each core
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLOWERS_TORCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setattr(os, "fsync", lambda descriptor: None)
        patch.setattr(torch.backends.mps, "is_available", lambda: False)  # numbers are compared with those of CPUs
        yield


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real photos, weights and reference values; tests that need it skip without it."""
    folder = os.environ.get("FLOWERS_TORCH_SHARED", "")
    if not folder:
        pytest.skip("needs FLOWERS_TORCH_SHARED")
    return Path(folder).resolve()


@pytest.fixture(scope="session")
def photo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of twenty small photos that differ in color, with noise."""
    root = tmp_path_factory.mktemp("photos")
    draw = np.random.default_rng(0)
    for name, color in (("blue", (60, 70, 180)), ("green", (60, 170, 60)), ("red", (190, 60, 50))):
        (root / name).mkdir()
        for number in range(20):
            noise = draw.normal(0, 25, (40, 48, 3))
            pixels = np.clip(np.array(color) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium, headless, with a made-up camera, driven by selenium (`pip install selenium`)."""
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("needs chromium and chromedriver (apt-get install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "hide-scrollbars"):
        options.add_argument(f"--{flag}")
    for flag in ("use-fake-ui-for-media-stream", "use-fake-device-for-media-stream"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield opened
    opened.quit()
