"""Inspection of the images by a process of its own, while this one imports torch."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from flowers_torch.data.quality import ahead, scan
from flowers_torch.data.quality.ahead import inspection_ahead, wait_for_inspection
from flowers_torch.data.sources.open import open_dataset


@pytest.fixture
def pays(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if torch were not there yet."""
    monkeypatch.setattr(ahead, "_pays", lambda source: True)


@pytest.mark.usefixtures("pays")
def test_the_other_process_leaves_its_results_in_the_cache(
    photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLOWERS_TORCH_CACHE", str(tmp_path))
    monkeypatch.setattr(ahead, "MAX_WAIT", 60)
    with inspection_ahead(str(photo_folder)):
        wait_for_inspection()
    monkeypatch.setattr(scan, "_inspect_all", lambda *_, **__: pytest.fail("an image is inspected twice"))
    dataset = open_dataset(str(photo_folder))
    assert len(scan.inspect_images(dataset)) == len(dataset)


@pytest.mark.usefixtures("pays")
def test_what_takes_long_is_left_to_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    endless = [sys.executable, "-c", "import time; time.sleep(60)"]
    monkeypatch.setattr(ahead, "_start", lambda arguments: subprocess.Popen(endless))
    monkeypatch.setattr(ahead, "MAX_WAIT", 0.2)
    started = time.monotonic()
    with inspection_ahead("photos"):
        (process,) = ahead._running
        wait_for_inspection()
        assert process.poll() is not None
    assert time.monotonic() - started < 30 and not ahead._running


@pytest.mark.usefixtures("pays")
def test_a_system_without_room_for_a_process_does_without(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(arguments: list[str]) -> None:
        raise OSError("Cannot allocate memory")

    monkeypatch.setattr(ahead, "_start", refuse)
    with inspection_ahead("photos"):
        wait_for_inspection()


@pytest.mark.parametrize("source", ["flowers17", "", "no/such/folder", "a\0b"])
def test_only_what_is_on_the_disk_is_inspected(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setattr(ahead, "usable_cores", lambda: 2)
    assert not ahead._pays(source)
