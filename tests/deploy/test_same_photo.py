"""The same photo in many files, read on every path: all of them see the same pixels."""

import base64
import dataclasses
import io
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, features

from flowers_torch import Classifier
from flowers_torch.data.color import coded_profile, matrix_profile
from flowers_torch.data.images import load_image
from flowers_torch.data.loading.resize import resized_images
from flowers_torch.data.quality.inspection import inspect_image
from flowers_torch.data.value_range import range_of
from flowers_torch.deploy.export import export_onnx
from flowers_torch.deploy.offline_page import BrowserRuntime, write_page
from flowers_torch.deploy.onnx_file import parse_onnx
from flowers_torch.deploy.predictor import Predictor
from flowers_torch.models.checkpoint import ModelInfo
from flowers_torch.training.device import Runtime

from .conftest import serving

ADOBE = (0.3127, 0.329, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06)
TWELVE, SIXTEEN = (0.0, 4095.0), (0.0, 65535.0)
LARGE = (10960, 8220)  # more pixels than are decoded, except of a JPEG at a reduced size


def picture(width: int = 96, height: int = 72) -> Image.Image:
    """Soft colors, which lie within every color space, without any symmetry."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    return Image.fromarray(np.stack([70 + 120 * x, 80 + 90 * y, 190 - 100 * x * y], axis=2).astype(np.uint8))


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.info.clear()
    image.save(file, kind, **options)
    return file.getvalue()


def in_profile(image: Image.Image, profile: bytes) -> Image.Image:
    """The numbers that a file with this profile has for an sRGB image."""
    target = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    converted = ImageCms.profileToProfile(image, ImageCms.createProfile("sRGB"), target, renderingIntent=1)
    assert converted is not None
    return converted


def deep_png(values: np.ndarray) -> bytes:
    """A PNG of 16 bits: gray (height, width) or colors (height, width, 3)."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    made, kind = b"\x89PNG\r\n\x1a\n", 0 if values.ndim == 2 else 2
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, kind, 0, 0, 0)
    for name, content in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
        made += struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
    return made


def cmyk_profile() -> bytes:
    """A small printer's profile: a table of 9 points for each ink, as simple inks would mix."""
    lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    inks = np.indices((9,) * 4).reshape(4, -1).T / 8
    rgb = (255 * (1 - inks[:, :3]) * (1 - inks[:, 3:])).astype(np.uint8)
    points = np.asarray(ImageCms.applyTransform(Image.fromarray(rgb[None]), lab)).reshape(-1, 3)
    points = points ^ np.array([0, 128, 128], dtype=np.uint8)  # Pillow gives signed bytes, profiles have an offset
    unit, straight = struct.pack(">9i", *(65536 * (i % 4 == 0) for i in range(9))), bytes(range(256))
    table = b"mft1\0\0\0\0" + bytes([4, 3, 9, 0]) + unit + straight * 4 + points.tobytes() + straight * 3
    tags = [(b"desc", b"desc\0\0\0\0\0\0\0\2x\0" + bytes(78)), (b"A2B0", table)]
    tags += [(b"wtpt", b"XYZ \0\0\0\0" + struct.pack(">3i", 63190, 65536, 54061))]
    listed, body = struct.pack(">I", len(tags)), b""
    for name, content in tags:
        listed += struct.pack(">4sII", name, 132 + 12 * len(tags) + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    size, white = 128 + len(listed) + len(body), struct.pack(">3i", 63190, 65536, 54061)
    head = struct.pack(">I4sI4s4s4s12x4s28x", size, b"\0" * 4, 0x02400000, b"prtr", b"CMYK", b"Lab ", b"acsp")
    return (head + white).ljust(128, b"\0") + listed + body


def photos() -> dict[str, tuple[bytes, tuple[float, ...]]]:
    """Files of one picture, each with the range of values of its set."""
    image, exif = picture(), Image.Exif()
    exif[0x0112] = 6
    p3, adobe = coded_profile(12, 13), matrix_profile(ADOBE, 2.2)
    values = np.asarray(image).astype(float)
    gray = values.mean(2)
    best: dict[str, Any] = {"quality": 98, "subsampling": 0}
    files: dict[str, tuple[bytes, tuple[float, ...]]] = {
        "srgb.jpg": (encoded(image, "JPEG", **best), ()),
        "p3.jpg": (encoded(in_profile(image, p3), "JPEG", icc_profile=p3, **best), ()),
        "adobe.png": (encoded(in_profile(image, adobe), "PNG", icc_profile=adobe), ()),
        "p3.webp": (encoded(in_profile(image, p3), "WEBP", lossless=True, icc_profile=p3), ()),
        "turned.jpg": (encoded(image.transpose(Image.Transpose.ROTATE_90), "JPEG", exif=exif, **best), ()),
        "colors12.png": (deep_png((values * 4095 / 255).round()), TWELVE),
        "gray12.png": (deep_png((gray * 4095 / 255).round()), TWELVE),
        "gray16.tif": (encoded(Image.fromarray((gray * 257).round().astype(np.uint16)), "TIFF"), SIXTEEN),
        "large.jpg": (encoded(picture(960, 720).resize(LARGE), "JPEG", quality=90), ()),
    }
    inks = 255 - values
    printed = Image.fromarray(np.dstack([inks, 0 * gray]).astype(np.uint8), "CMYK")
    files["print.jpg"] = (encoded(printed, "JPEG", icc_profile=cmyk_profile(), **best), ())
    if features.check("avif"):
        files["p3.avif"] = (
            encoded(in_profile(image, p3), "AVIF", quality=100, subsampling="4:4:4", icc_profile=p3),
            (),
        )
    return files


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, tuple[float, ...]]:
    folder = tmp_path_factory.mktemp("same")
    found = {}
    for name, (content, value_range) in photos().items():
        (folder / name).write_bytes(content)
        found[folder / name] = value_range
    return found


def expected(path: Path) -> np.ndarray:
    """The picture at 96 x 72, gray where the file is."""
    values = np.asarray(picture()).astype(float)
    return values.mean(2, keepdims=True).repeat(3, 2) if path.name.startswith("gray") else values


def predictor_of(small: Any, value_range: tuple[float, ...]) -> Predictor:
    preprocessing = dataclasses.replace(small.info.preprocessing, value_range=value_range)
    info: ModelInfo = dataclasses.replace(small.info, preprocessing=preprocessing)
    return Predictor(small.network, info, Runtime(torch.device("cpu"), "fp32", "for a test"))


def test_every_file_is_read_as_the_same_picture(files: dict[Path, tuple[float, ...]]) -> None:
    for path, value_range in files.items():
        for at_least in (0, 72):
            image = load_image(path, at_least=at_least, value_range=value_range)
            found = np.asarray(image.resize((96, 72), Image.Resampling.BOX)).astype(float)
            assert np.abs(found - expected(path)).mean() < 1.5, (path.name, at_least)
        checked = inspect_image(path)
        assert not checked.error and range_of(checked.values) == (value_range or ()), path.name
        assert (checked.width, checked.height) == (LARGE if path.name == "large.jpg" else (96, 72))


@pytest.mark.parametrize("value_range", [(), TWELVE, pytest.param(SIXTEEN, marks=pytest.mark.slow)])
def test_training_prediction_export_and_server_see_the_same(
    value_range: tuple[float, ...], files: dict[Path, tuple[float, ...]], small: Any
) -> None:
    """Training's resized images differ from prediction's by their filter; the same bytes give the same logits."""
    group = [path for path, own in files.items() if own == value_range]
    predictor = predictor_of(small, value_range)
    inputs = [predictor.read(path) for path in group]
    preprocessing = predictor.info.preprocessing
    trained = resized_images(group, [0] * len(group), 0, "none", preprocessing)
    mean, std = (torch.tensor(values)[:, None, None] for values in (preprocessing.mean, preprocessing.std))
    for path, item, pixels in zip(group, (trained[0, i] for i in range(len(group))), inputs, strict=True):
        assert float((item.image - 255 * (pixels * std + mean)).abs().mean()) < 1.5, path.name
    alone = [predictor.classify([pixels], top=3)[0] for pixels in inputs]
    by_python = Classifier(predictor, Path()).predict([str(path) for path in group], top=3)
    assert [p.probabilities for p in by_python] == [pytest.approx(p.probabilities, abs=1e-5) for p in alone]
    exported = export_onnx(small.network, predictor.info, small.data, Path("x.onnx"), with_preprocessing=True)
    model = parse_onnx(exported.content, Path("x.onnx"))
    stated = model.metadata["preprocessing"]
    assert tuple(stated["value_range"]) == value_range and stated["color_space"] == "sRGB"
    for path, prediction in zip(group, alone, strict=True):
        image = load_image(path, at_least=predictor.enough_side, value_range=tuple(stated["value_range"]))
        found = model(np.asarray(image)[None])["probabilities"][0]
        assert sorted(found.tolist(), reverse=True) == pytest.approx(prediction.probabilities, abs=5e-3), path.name
    with serving(predictor) as served:
        _, _, response = served.send(*((path.name, path.read_bytes()) for path in group), query="?top=3")
    for prediction, info in zip(alone, response["predictions"], strict=True):
        assert "error" not in info, info
        assert [row["probability"] for row in info["classes"]] == pytest.approx(prediction.probabilities, abs=1e-5)


@pytest.mark.slow
def test_the_offline_page_sees_the_same(
    files: dict[Path, tuple[float, ...]], small: Any, browser: Any, tmp_path: Path
) -> None:
    for value_range in sorted(set(files.values())):
        info = predictor_of(small, value_range).info
        model = export_onnx(small.network, info, small.data, tmp_path / "x.onnx", with_preprocessing=True)
        write_page(tmp_path / "page.html", model.content, BrowserRuntime(b"", b""))  # only its reader is needed
        browser.get((tmp_path / "page.html").as_uri())
        for path, own in files.items():
            if own == value_range and path.suffix != ".tif":  # which browsers do not read
                found, expectation = read_in(browser, path), load_image(path, value_range=value_range)
                if path.name == "large.jpg":
                    found, expectation = (
                        image.resize((96, 72), Image.Resampling.BOX) for image in (found, expectation)
                    )
                levels = np.abs(np.asarray(found).astype(int) - np.asarray(expectation).astype(int))
                assert found.size == expectation.size, path.name
                assert levels.mean() < 1 and levels.max() <= 6, (path.name, levels.mean(), levels.max())


def read_in(browser: Any, path: Path) -> Image.Image:
    """What the page's reader makes of a file."""
    script = """
        const [text, done] = arguments, bytes = Uint8Array.from(atob(text), c => c.charCodeAt(0));
        pixels(new Blob([bytes])).then(({data, height, width}) => {
            let raw = "";
            for (let i = 0; i < data.length; i += 32768) raw += String.fromCharCode(...data.subarray(i, i + 32768));
            done(JSON.stringify({width, height, data: btoa(raw)}));
        }, error => done(JSON.stringify({error: String(error)})));
    """
    browser.set_script_timeout(60)
    found = json.loads(browser.execute_async_script(script, base64.b64encode(path.read_bytes()).decode()))
    assert "error" not in found, (path.name, found)
    return Image.frombytes("RGB", (found["width"], found["height"]), base64.b64decode(found["data"]))
