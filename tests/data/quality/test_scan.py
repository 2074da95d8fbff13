"""Large sets are inspected and cached in blocks; an interrupted scan goes on where it was."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from flowers_torch.data.quality import scan
from flowers_torch.data.quality.inspection import Inspection
from flowers_torch.data.sources.folders import find_images

Inspect = Callable[..., list[Inspection]]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """25 small images in two classes."""
    for number in range(25):
        path = tmp_path / "set" / "ab"[number % 2] / f"{number:02}.bmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9), (number, 9, 9)).save(path)
    return tmp_path / "set"


@pytest.fixture
def inspected(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the images that are inspected, in this process, in blocks of ten."""
    names: list[str] = []

    def inspect(paths: Sequence[Path], workers: int | None = None, progress: Any = None) -> list[Inspection]:
        names.extend(path.name for path in paths)
        if progress:
            progress(len(paths))
        return [Inspection(width=9, sha256=path.name) for path in paths]

    monkeypatch.setattr(scan, "_inspect_all", inspect)
    monkeypatch.setattr(scan, "BLOCK", 10)
    return names


def test_an_interrupted_scan_loses_one_block(
    photos: Path, inspected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, whole, done = find_images(photos), scan._inspect_all, list[int]()

    def dies(paths: Sequence[Path], **options: Any) -> list[Inspection]:
        if len(inspected) == 20:
            raise KeyboardInterrupt
        return whole(paths, **options)

    monkeypatch.setattr(scan, "_inspect_all", dies)
    with pytest.raises(KeyboardInterrupt):
        scan.inspect_images(dataset, cache=tmp_path)
    monkeypatch.setattr(scan, "_inspect_all", whole)
    found = scan.inspect_images(dataset, cache=tmp_path, progress=done.append)
    assert [each.sha256 for each in found] == [Path(path).name for path in dataset.paths]
    assert len(inspected) == 25 and done == [25]
    assert len(list((tmp_path / "inspections").iterdir())) == 3


def test_images_that_change_places_are_not_inspected_again(photos: Path, inspected: list[str], tmp_path: Path) -> None:
    """Images in front move all others, some into another block; fewer images leave fewer files."""
    scan.inspect_images(find_images(photos), cache=tmp_path)
    inspected.clear()
    for number in range(12):
        Image.new("RGB", (9, 9), (99, 9, number)).save(photos / "a" / f"!{number:02}.bmp")
    found = scan.inspect_images(find_images(photos), cache=tmp_path)
    assert sorted(inspected) == [f"!{number:02}.bmp" for number in range(12)] and len(found) == 37
    inspected.clear()
    assert scan.inspect_images(find_images(photos), cache=tmp_path) == found and not inspected
    for path in (photos / "a").iterdir():
        if path.name.startswith("!"):
            path.unlink()
    Image.new("RGB", (8, 8)).save(photos / "a" / "00.bmp")  # one is another now
    left = scan.inspect_images(find_images(photos), cache=tmp_path)
    assert inspected == ["00.bmp"] and len(left) == 25
    assert len(list((tmp_path / "inspections").iterdir())) == 3


def test_several_processes_get_whole_blocks(photos: Path, inspected: list[str], tmp_path: Path) -> None:
    sizes = []

    def spread(work: Any, items: Sequence[Any], block: int = 1) -> list[Any]:
        sizes.append(len(items))
        return [each for rank in range(2) for each in work(items[rank::2])]  # in the wrong order

    dataset = find_images(photos)
    found = scan.inspect_images(dataset, cache=tmp_path, spread=spread)
    assert sizes == [10, 10, 5] and sorted(each.sha256 for each in found) == sorted(inspected)
