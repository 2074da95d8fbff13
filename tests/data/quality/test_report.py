"""The quality check finds planted problems and nothing else, writes nothing and survives any image."""

import argparse
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from flowers_torch.commands import check
from flowers_torch.data.preprocessing import Preprocessing
from flowers_torch.data.quality import scan
from flowers_torch.data.quality.duplicates import hash_candidates
from flowers_torch.data.quality.exclude import drop_images, read_exclude_list, write_exclude_list
from flowers_torch.data.quality.inspection import Inspection, inspect_image
from flowers_torch.data.quality.report import check_quality
from flowers_torch.data.quality.scan import inspect_images
from flowers_torch.data.sources.folders import find_images
from flowers_torch.data.splits.assign import group_pairs
from flowers_torch.errors import DataError, ResourceError, UsageError
from flowers_torch.report import gallery
from flowers_torch.report.gallery import write_gallery


def scene(seed: int, width: int = 200, height: int = 160) -> Image.Image:
    """A detailed image, different for each seed."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (7, 9, 3), dtype=np.uint8))
    fine = rng.integers(-40, 40, (height, width, 3))
    pixels = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(int) + fine
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Two classes of good images, and one image with each problem."""
    root = tmp_path_factory.mktemp("planted") / "set"
    for name, first in (("a", 0), ("b", 100)):
        (root / name).mkdir(parents=True)
        for i in range(25):
            scene(first + i).save(root / name / f"{i}.jpg", quality=92)
    (root / "a/copy.jpg").write_bytes((root / "a/3.jpg").read_bytes())
    (root / "b/contradiction.jpg").write_bytes((root / "a/4.jpg").read_bytes())
    scene(5).resize((120, 96)).save(root / "a/smaller.jpg", quality=60)
    scene(106).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(root / "b/mirrored.png")
    (root / "a/cut.jpg").write_bytes((root / "a/1.jpg").read_bytes()[:3000])
    (root / "b/page.jpg").write_text("<html>")
    scene(7).filter(ImageFilter.GaussianBlur(6)).crop((0, 0, 150, 120)).save(root / "a/blurred.jpg")
    Image.new("RGB", (200, 150), (9, 9, 9)).save(root / "b/blank.jpg")
    scene(300, 40, 40).save(root / "a/tiny.jpg")
    scene(301, 400, 100).save(root / "b/strip.jpg")
    scene(302).convert("L").save(root / "a/gray.jpg")
    scene(303).save(root / "b/lying.jpg", "PNG")
    scene(304).convert("RGBA").save(root / "a/alpha.png")
    scene(305).convert("CMYK").save(root / "b/print.jpg")
    Image.fromarray(np.asarray(scene(306).convert("L")).astype(np.uint16) * 257).save(root / "a/deep.png")
    scene(307).save(root / "b/moving.gif", save_all=True, append_images=[scene(308)])
    (root / "b/notes.txt").write_text("x")
    return find_images(root)


@pytest.fixture(scope="module")
def inspected(planted, tmp_path_factory):
    return inspect_images(planted, 2, tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def result(planted, inspected):
    return check_quality(planted, inspected)


def named(result, kind) -> list[list[str]]:
    groups = [finding.groups for finding in result.findings if finding.kind == kind]
    assert len(groups) <= 1
    return sorted(sorted(result.dataset.paths[i] for i in group) for group in sum(groups, []))


@pytest.mark.parametrize(
    ("kind", "paths"),
    [
        ("unreadable", [["a/cut.jpg"], ["b/page.jpg"]]),
        ("duplicates_across_classes", [["a/4.jpg", "b/contradiction.jpg"]]),
        ("exact_duplicates", [["a/3.jpg", "a/copy.jpg"]]),
        ("near_duplicates", [["a/5.jpg", "a/smaller.jpg"], ["b/6.jpg", "b/mirrored.png"]]),
        ("blank", [["b/blank.jpg"]]),
        ("tiny", [["a/tiny.jpg"]]),
        ("odd_aspect", [["b/strip.jpg"]]),
        ("blurred", [["a/blurred.jpg"]]),
        ("gray", [["a/deep.png"], ["a/gray.jpg"]]),
        ("other_format", [["b/lying.jpg"]]),
        ("alpha", [["a/alpha.png"]]),
        ("cmyk", [["b/print.jpg"]]),
        ("deep", [["a/deep.png"]]),
        ("several_frames", [["b/moving.gif"]]),
    ],
)
def test_each_planted_problem_is_found_and_nothing_else(result, kind, paths):
    assert named(result, kind) == paths


def test_the_worst_finding_comes_first(result):
    damages = [finding.severity for finding in result.findings]
    assert damages == sorted(damages, reverse=True) and result.findings[0].kind == "unreadable"
    assert any(finding.kind == "note" and "notes.txt" not in finding.what for finding in result.findings)
    assert all(finding.todo and "\n" not in finding.what for finding in result.findings)


def test_duplicates_across_splits(planted, inspected):
    index = {path: i for i, path in enumerate(planted.paths)}
    apart = {"train": [index["a/5.jpg"], index["b/6.jpg"]], "test": [index["a/smaller.jpg"]]}
    together = {"train": [index["a/5.jpg"], index["a/smaller.jpg"]], "test": [index["b/6.jpg"]]}
    assert named(check_quality(planted, inspected, apart), "duplicates_across_splits") == [["a/5.jpg", "a/smaller.jpg"]]
    assert named(check_quality(planted, inspected, together), "duplicates_across_splits") == []


def test_features_find_duplicates_that_the_hash_misses(planted, inspected):
    features = np.eye(len(planted), dtype=np.float32)
    features[10] = features[11] * 2
    pair = sorted([planted.paths[10], planted.paths[11]])
    result = check_quality(planted, inspected, features=features)
    assert named(result, "similar_features") == [pair]
    assert named(check_quality(planted, inspected), "similar_features") == []
    assert 10 not in result.excluded() and 11 not in result.excluded()


def test_classes_with_no_or_few_readable_images(planted, inspected):
    gone = [
        Inspection(error="bad") if label == 1 else inspection
        for label, inspection in zip(planted.labels, inspected, strict=True)
    ]
    kinds = {finding.kind: finding.what for finding in check_quality(planted, gone).findings}
    assert kinds["no_readable_image"].endswith("b")
    few = [Inspection(error="bad") if i > 5 else x for i, x in enumerate(gone)]
    assert "a (" in {f.kind: f.what for f in check_quality(planted, few).findings}["few_images"]


def test_exclude_list_round_trip(planted, result, tmp_path):
    write_exclude_list(tmp_path / "exclude.csv", result.exclude_list())
    exclude = read_exclude_list(tmp_path / "exclude.csv")
    assert exclude == {
        "a/copy.jpg": "exact_duplicates",
        "a/cut.jpg": "unreadable",
        "b/blank.jpg": "blank",
        "b/contradiction.jpg": "duplicates_across_classes",
        "b/page.jpg": "unreadable",
    }
    clean = drop_images(planted, exclude)
    assert set(planted.paths) - set(clean.paths) == set(exclude) and len(clean) == len(planted) - 5
    assert (
        dict(zip(clean.paths, clean.labels, strict=True)).items()
        <= dict(zip(planted.paths, planted.labels, strict=True)).items()
    )
    assert "5 photos are excluded" in clean.notes[-1]
    everything_of_b = {path: "x" for path in planted.paths if path.startswith("b/")}
    with pytest.raises(DataError, match="no photo of b"):
        drop_images(planted, everything_of_b)
    (tmp_path / "other.csv").write_text("path\nx\n")
    for name in ("other.csv", "none.csv"):
        with pytest.raises(DataError, match=name):
            read_exclude_list(tmp_path / name)


@pytest.mark.needs("names")
def test_hostile_file_names_in_every_output(tmp_path, monkeypatch):
    names = ['a/"<script>alert(1).jpg', "b/x\ny\x1b[31m,z.jpg"]
    for i, name in enumerate([*names, "a/1.jpg", "b/2.jpg"]):
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        scene(i).save(tmp_path / "set" / name)
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/set/b/\xff.jpg")
    Path(odd).write_bytes(b"")
    (tmp_path / "set/a/same.jpg").write_bytes((tmp_path / "set" / names[1]).read_bytes())
    dataset = find_images(tmp_path / "set")
    found = check_quality(dataset, inspect_images(dataset, 1, tmp_path / "cache"))
    assert named(found, "unreadable") == [["b/\udcff.jpg"]]
    json.loads(json.dumps(found.as_json()))
    write_gallery(tmp_path / "gallery.html", found)
    page = (tmp_path / "gallery.html").read_text()
    assert "<script" not in page and "\x1b" not in page and " more</p>" not in page
    assert "1 photo cannot be read" in page and "1 picture is in several classes" in page
    monkeypatch.setattr(gallery, "PER_GROUP", 1)  # of thousands of look-alikes, a page shows some
    write_gallery(tmp_path / "gallery.html", found)
    assert (tmp_path / "gallery.html").read_text().count("and 1 more</p>") == 1
    write_exclude_list(tmp_path / "q.csv", found.exclude_list())
    assert set(read_exclude_list(tmp_path / "q.csv")) == {"b/\udcff.jpg", names[1]}


def test_inspections_are_cached_until_an_image_changes(planted, tmp_path, monkeypatch):
    first = inspect_images(planted, 2, tmp_path)
    read = []
    real = scan._inspect_all
    monkeypatch.setattr(scan, "_inspect_all", lambda paths, **rest: read.extend(paths) or real(paths, **rest))
    assert inspect_images(planted, 2, tmp_path) == first and read == []
    target = planted.root / planted.paths[3]
    before = target.stat()
    os.utime(target, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    try:
        assert inspect_images(planted, 2, tmp_path) == first and read == [target]
    finally:
        os.utime(target, ns=(before.st_atime_ns, before.st_mtime_ns))
    (memory,) = (tmp_path / "inspections").iterdir()
    memory.write_text("{")
    assert inspect_images(planted, 2, tmp_path) == first and len(read) == 1 + len(planted)


FAULTY_WORKER = """
import json, os, signal, sys, time
print("ready", flush=True)
for line in sys.stdin:
    path = json.loads(line)
    if "crash" in path: os.kill(os.getpid(), signal.SIGSEGV)
    if "stall" in path: time.sleep(60)
    print(json.dumps({"width": len(path)}), flush=True)
"""


def test_a_photo_of_the_same_size_and_time_is_inspected_again(tmp_path):
    for label in ("a", "b"):
        (tmp_path / "set" / label).mkdir(parents=True)
        scene(1 + (label == "b")).save(tmp_path / "set" / label / "1.bmp")
    dataset, path = find_images(tmp_path / "set"), tmp_path / "set/a/1.bmp"
    before, times = inspect_images(dataset, 1, tmp_path / "cache"), path.stat()
    path.write_bytes((tmp_path / "set/b/1.bmp").read_bytes())
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert path.stat().st_size == times.st_size and path.stat().st_mtime_ns == times.st_mtime_ns
    first, second = inspect_images(dataset, 1, tmp_path / "cache")
    assert first != before[0] and first == second == before[1]


def test_an_edited_cache_is_not_believed(planted, inspected, tmp_path):
    assert inspect_images(planted, 2, tmp_path) == inspected
    (file,) = (tmp_path / "inspections").iterdir()
    content = file.read_bytes()
    edits = [(b'"error": ""', b'"error": "no"'), (b'"alpha": false', b'"alpha": true'), (b'"width": 2', b'"width": 3')]
    for old, new in [*edits, (b"{", b"["), (b'"phash"', b'"nosuch"'), (content, b""), (content[100:], b"")]:
        assert old in content
        file.write_bytes(content.replace(old, new))
        assert inspect_images(planted, 2, tmp_path) == inspected
    file.unlink()
    file.mkdir()
    assert inspect_images(planted, 2, tmp_path) == inspected  # and nothing can be written there


def test_an_image_that_kills_or_stalls_the_decoder_costs_only_itself(tmp_path, monkeypatch):
    """A program that crashes and hangs takes the place of the worker."""
    names = ["a/1.jpg", "a/crash.jpg", "a/2.jpg", "b/stall.jpg", "b/3.jpg"]
    for name in names:
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).write_bytes(b"x")
    (tmp_path / "worker.py").write_text(FAULTY_WORKER)
    real = scan.subprocess.Popen
    command = [sys.executable, str(tmp_path / "worker.py")]
    monkeypatch.setattr(scan.subprocess, "Popen", lambda _, **options: real(command, **options))
    dataset = find_images(tmp_path / "set")
    monkeypatch.setattr(scan, "SECONDS_PER_IMAGE", 1)
    found = dict(zip(dataset.paths, inspect_images(dataset, 1, tmp_path), strict=True))
    for name in ("a/crash.jpg", "b/stall.jpg"):
        assert f"{name} crashes the image decoder, or takes longer than 1 s" in found[name].error
    assert all(found[name].width and not found[name].error for name in ("a/1.jpg", "a/2.jpg", "b/3.jpg"))


def test_an_image_that_fails_once_is_good(tmp_path, monkeypatch):
    """A second process gets a second try, as after a lack of memory."""
    for name in ("a/1.jpg", "b/2.jpg"):
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        scene(1).save(tmp_path / "set" / name)
    mark = str(tmp_path / "mark")
    once = f"if not os.path.exists({mark!r}): open({mark!r}, 'w'); os._exit(1)"
    (tmp_path / "worker.py").write_text(
        FAULTY_WORKER.replace('if "crash" in path: os.kill', once + "\n    if 0: os.kill")
    )
    real = scan.subprocess.Popen
    command = [sys.executable, str(tmp_path / "worker.py")]
    monkeypatch.setattr(scan.subprocess, "Popen", lambda _, **options: real(command, **options))
    found = inspect_images(find_images(tmp_path / "set"), 1, tmp_path)
    assert (tmp_path / "mark").exists() and not any(inspection.error for inspection in found)


def test_workers_that_do_not_start_are_a_resource_error(tmp_path, monkeypatch):
    (tmp_path / "set/a").mkdir(parents=True)
    (tmp_path / "set/b").mkdir()
    for name in ("a/1.jpg", "b/2.jpg"):
        scene(1).save(tmp_path / "set" / name)
    real = scan.subprocess.Popen
    command = [sys.executable, "-c", "raise SystemExit(1)"]
    monkeypatch.setattr(scan.subprocess, "Popen", lambda _, **options: real(command, **options))
    with pytest.raises(ResourceError, match="do not start"):
        inspect_images(find_images(tmp_path / "set"), 1, tmp_path)


@pytest.mark.needs("pipes")
def test_pipes_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.jpg")
    assert "not a regular file" in inspect_image(tmp_path / "x.jpg").error


@pytest.mark.parametrize("orientation", [1, 6])
def test_the_size_is_that_of_the_upright_image(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.effect_noise((2500, 1300), 60).convert("RGB").save(tmp_path / "large.jpg", exif=exif)
    inspection = inspect_image(tmp_path / "large.jpg")
    assert (inspection.width, inspection.height) == ((1300, 2500) if orientation == 6 else (2500, 1300))


def test_the_hash_survives_what_the_eye_does(tmp_path):
    base = scene(1, 300, 240)
    darker = base.point(lambda v: int(v * 0.7))
    variants = [base, base.resize((150, 120)), darker, base.crop((3, 3, 297, 237)), scene(2, 300, 240)]
    inspections = []
    for i, image in enumerate(variants):
        image.save(tmp_path / f"{i}.jpg", quality=50 if i else 95)
        inspections.append(inspect_image(tmp_path / f"{i}.jpg"))
    ((rows, columns, close),) = hash_candidates(inspections)
    assert rows.tolist() == [1, 2, 3] and close[:, columns == 0].all()
    assert group_pairs([(1, 2), (5, 4), (2, 3)]) == [[1, 2, 3], [4, 5]]


def run(*words: str) -> int:
    parser = argparse.ArgumentParser()
    check.add_arguments(parser)
    return check.run(parser.parse_args([str(word) for word in words])) or 0


def test_the_rank_command(planted, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FLOWERS_TORCH_CACHE", str(tmp_path / "cache"))
    before = sorted((str(p), p.stat().st_mtime_ns) for p in planted.root.rglob("*"))
    assert run(planted.root, "--out", tmp_path / "out", "--json") == 3
    assert before == sorted((str(p), p.stat().st_mtime_ns) for p in planted.root.rglob("*"))
    out, err = capsys.readouterr()
    printed = json.loads(out)
    assert "2 photos cannot be read" in err and "--exclude" in err
    assert printed == json.loads((tmp_path / "out/check.json").read_text())
    assert printed["images"] == len(planted) and printed["findings"][0]["kind"] == "unreadable"
    page = (tmp_path / "out/gallery.html").read_text()
    assert page.count("<img") > 10 and "http:" not in page and "https:" not in page
    assert len(read_exclude_list(tmp_path / "out/exclude.csv")) == 5
    with pytest.raises(DataError, match="inside the photos"):
        run(planted.root, "--out", planted.root / "check")
    with pytest.raises(DataError):
        run(planted.root)
    assert "1. [!!!] 2 photos cannot be read" in capsys.readouterr().out


def test_near_duplicates_by_the_features_of_a_network(tmp_path, monkeypatch, capsys):
    """A crop changes the hash; the features of a network still agree."""
    monkeypatch.setenv("FLOWERS_TORCH_CACHE", str(tmp_path / "cache"))
    for i in range(6):
        path = tmp_path / f"set/{'ab'[i % 2]}/{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        scene(i).save(path)
    scene(4).crop((40, 30, 160, 130)).save(tmp_path / "set/a/crop.jpg")
    (tmp_path / "set/b/bad.jpg").write_bytes(b"")
    dataset = find_images(tmp_path / "set")
    index = {path: i for i, path in enumerate(dataset.paths)}
    embedded = []

    def features(model, preprocessing, paths, runtime, **_):
        embedded.extend(paths)
        rows = np.eye(len(paths), dtype=np.float32)
        names = [path.name for path in paths]
        rows[names.index("crop.jpg")] = rows[names.index("4.jpg")] + 0.01
        return torch.from_numpy(rows)

    monkeypatch.setattr("flowers_torch.deploy.shards.image_features", features)
    monkeypatch.setattr(
        "flowers_torch.deploy.shards.open_network", lambda *words: (None, Preprocessing(), f"loaded {words}")
    )
    assert run(dataset.root, "--embed", "some_net", "--weights", "offline", "--json") == 3
    out, err = capsys.readouterr()
    assert "1 photo cannot be read" in err
    assert "loaded ('some_net', 'offline')" in err
    found = {finding["kind"]: finding["groups"] for finding in json.loads(out)["findings"]}
    assert found["similar_features"] == [[dataset.paths[index["a/4.jpg"]], "a/crop.jpg"]]
    assert dataset.root / "b/bad.jpg" not in embedded and len(embedded) == 7
    with pytest.raises(UsageError, match="--weights needs --embed"):
        run(dataset.root, "--weights", "offline")


def test_a_clean_set_passes(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FLOWERS_TORCH_CACHE", str(tmp_path / "cache"))
    for i in range(40):
        path = tmp_path / f"set/{'ab'[i % 2]}/{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        scene(i, 80, 70).save(path)
    assert run(tmp_path / "set", "--strict") == 0
    assert "no problems found" in capsys.readouterr().out
    (tmp_path / "set/b/again.jpg").write_bytes((tmp_path / "set/a/0.jpg").read_bytes())
    assert run(tmp_path / "set") == 0
    with pytest.raises(DataError, match="several classes"):
        run(tmp_path / "set", "--strict")


def test_unreadable_photos_are_counted_by_reason(tmp_path):
    """Each reason comes with what helps, such as the extra to install."""
    for name in ("a/1.jpg", "a/2.heic", "b/1.heic", "b/2.jpg", "b/3.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (80, 80)).save(tmp_path / name, "PNG")
    dataset = find_images(tmp_path)
    heic = 'is a HEIC photo, which needs pip install "flowers-torch[heic]"; fix: install that, or convert it to JPEG'
    errors = {"a/2.heic": heic, "b/1.heic": heic, "b/2.jpg": "is empty (0 bytes); fix: replace or remove it"}
    inspections = [
        Inspection(error=f"{tmp_path / path} {errors[path]}") if path in errors else inspect_image(tmp_path / path)
        for path in dataset.paths
    ]
    finding = check_quality(dataset, inspections).findings[0]
    assert finding.what.startswith(
        '3 photos cannot be read (2: is a HEIC photo, which needs pip install "flowers-torch'
    )
    assert finding.what.endswith("1: is empty (0 bytes))")
    assert finding.todo == "install that, or convert it to JPEG; replace or remove it" and len(finding.excluded) == 3


def test_exclude_lists_meet_names_in_both_encodings_of_accents(tmp_path):
    for name in ("\xe9/1.jpg", "\xe9/2.jpg", "b/1.jpg", "c/1.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (80, 80)).save(tmp_path / name)
    dataset = find_images(tmp_path)
    left = drop_images(dataset, {"e\u0301/1.jpg": "", "gone.jpg": "", "class:b": ""})
    assert left.paths == ("c/1.jpg", "\xe9/2.jpg")
    assert "names in the exclude list without a photo here: gone.jpg" in left.notes
