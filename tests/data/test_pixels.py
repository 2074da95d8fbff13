"""Values and colors of unusual pixels: ranges of sets, color profiles and codes, large JPEG, PNG with large texts."""

import io
import logging
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from flowers_torch.data import value_range
from flowers_torch.data.color import MAX_PROFILE_BYTES, coded_profile, matrix_profile
from flowers_torch.data.dataset import ImageDataset
from flowers_torch.data.images import load_image, measure_values
from flowers_torch.data.quality.filter import filter_images
from flowers_torch.data.quality.inspection import Inspection
from flowers_torch.data.quality.report import check_quality
from flowers_torch.data.value_range import Values, range_of, range_of_set
from flowers_torch.errors import DataError
from flowers_torch.models.checkpoint import check_value_range

LEVELS = np.linspace(0, 255, 64 * 48).round().astype(np.uint8).reshape(48, 64)
COLORS = np.dstack([LEVELS, LEVELS.T.reshape(48, 64), 255 - LEVELS])
TWELVE = (0.0, 4095.0)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def read(content: bytes, **options) -> np.ndarray:
    return np.asarray(load_image(io.BytesIO(content), **options)).astype(int)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def deep_png(values: np.ndarray, kind: int) -> bytes:
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, kind, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


def tiff(values: np.ndarray, form: int, white_is_zero: bool = False, order: str = "<") -> bytes:
    """An uncompressed TIFF; `form` is 1 for unsigned integers, 2 for signed ones, 3 for floats."""
    height, width, *channels = values.shape
    count, bits = (channels or [1])[0], values.dtype.itemsize * 8
    photometric = 2 if count == 3 else 0 if white_is_zero else 1
    data, start = values.astype(values.dtype.newbyteorder(order)).tobytes(), 8 + 2 + 12 * 10 + 4 + 12
    long = [(256, width), (257, height), (273, start), (278, height), (279, len(data))]
    short = [(259, 1), (262, photometric), (277, count)]
    entries = [(tag, struct.pack(order + "HHII", tag, 4, 1, value)) for tag, value in long]
    entries += [(tag, struct.pack(order + "HHIHxx", tag, 3, 1, value)) for tag, value in short]
    for number, (tag, value) in enumerate(((258, bits), (339, form))):
        if count == 3:
            entries.append((tag, struct.pack(order + "HHII", tag, 3, 3, start - 12 + 6 * number)))
        else:
            entries.append((tag, struct.pack(order + "HHIHxx", tag, 3, 1, value)))
    lists = struct.pack(order + "6H", bits, bits, bits, form, form, form)
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HIH", 42, 8, len(entries))
    return head + b"".join(entry for _, entry in sorted(entries)) + bytes(4) + lists + data


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("order", ["<", ">"])
def test_the_range_of_gray_and_colors_is_found_and_used(bits, order):
    most = 2**bits - 1
    gray, colors = ((values * (most / 255)).round().astype(np.uint16) for values in (LEVELS, COLORS))
    opaque = np.dstack([gray, np.full_like(gray, 65535)])
    files = {
        "gray.png": (deep_png(gray, 0), LEVELS),
        "gray, transparency": (deep_png(opaque, 4), LEVELS),
        "colors.png": (deep_png(colors, 2), COLORS),
        "colors, transparency": (deep_png(np.dstack([colors, opaque[..., 1]]), 6), COLORS),
        "gray.tif": (tiff(gray, 1, order=order), LEVELS),
        "white is zero": (tiff(most - gray, 1, white_is_zero=True), LEVELS),
        "colors.tif": (tiff(colors, 1, order=order), COLORS),
        "compressed": (encoded(Image.fromarray(gray), "TIFF", compression="tiff_lzw"), LEVELS),
    }
    for name, (content, levels) in files.items():
        found = range_of(measure_values(io.BytesIO(content)))
        assert found == (0.0, float(most)), name
        image = read(content, value_range=found)
        expected = levels if levels.ndim == 3 else levels[..., None]
        assert np.abs(image - expected).max() <= 1, name


def test_other_numbers_use_their_own_extremes():
    for values, form, expected in (
        (LEVELS.astype(np.int16) * 16 - 1024, 2, (-1024.0, 3056.0)),
        ((LEVELS / 255).astype(np.float32), 3, (0.0, 1.0)),
        ((LEVELS * 100.0).astype(np.float32), 3, (0.0, 25500.0)),
        (LEVELS.astype(np.uint32) * 1000, 1, (0.0, 255000.0)),
    ):
        content = tiff(values, form)
        found = range_of(measure_values(io.BytesIO(content)))
        assert found == expected
        assert np.abs(read(content, value_range=found) - LEVELS[..., None]).max() <= 1
    hole = (LEVELS / 255).astype(np.float32)
    hole[3, 3] = np.nan
    content = tiff(hole, 3)
    assert range_of(measure_values(io.BytesIO(content))) == (0.0, 1.0)
    assert read(content, value_range=(0.0, 1.0))[3, 3].tolist() == [0, 0, 0]
    hole.view(np.uint32)[3, 3] = 0x7FA00000  # a signaling NaN, whose conversion NumPy warns of
    signaling = tiff(hole, 3)
    assert range_of(measure_values(io.BytesIO(signaling))) == (0.0, 1.0)
    assert np.array_equal(read(signaling, value_range=(0.0, 1.0)), read(content, value_range=(0.0, 1.0)))
    with pytest.raises(DataError, match="none of its pixels is a finite number"):
        measure_values(io.BytesIO(tiff(np.full((4, 4), np.nan, np.float32), 3)))
    with pytest.raises(DataError, match="TIFF image of a kind that is not read"):
        load_image(io.BytesIO(tiff(hole.astype(np.float16), 3)))


def test_a_file_that_states_its_range_keeps_it():
    values = (LEVELS.astype(float) * 4095 / 255).round().astype(">u2")
    content = b"P5\n64 48\n4095\n" + values.tobytes()
    assert measure_values(io.BytesIO(content)).kind == ""
    assert np.abs(read(content, value_range=(0.0, 255.0)) - LEVELS[..., None]).max() <= 1


def test_without_a_range_16_bits_are_65535_and_floats_are_refused():
    assert read(deep_png(np.full((2, 2), 4095), 0)).max() == 16
    with pytest.raises(DataError, match="the range of their values is not known"):
        read(tiff(np.zeros((2, 2), np.float32), 3))


def test_values_outside_of_the_range_are_clipped_and_reported_once(caplog):
    value_range._warn_of_clipping.cache_clear()
    content = deep_png(np.full((2, 2), 5000), 0)
    with caplog.at_level(logging.INFO, "flowers_torch"):
        assert read(content, value_range=TWELVE).min() == read(content, value_range=TWELVE).max() == 255
    assert [record.getMessage() for record in caplog.records] == [
        "note     a photo has pixel values outside of 0 .. 4095, the range of the training photos; they are clipped"
    ]


def dataset_of(folder, files: dict[str, bytes]) -> ImageDataset:
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return ImageDataset("set", folder, ("a", "b"), tuple(files), tuple(i % 2 for i in range(len(files))))


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (70, 70))


def test_the_range_is_one_of_the_whole_set_and_its_reason_is_printed(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    files = {f"{i}.png": deep_png(noise(i) * 16, 0) for i in range(3)}
    files["bright.png"] = deep_png((noise(8) * 4095 / 255).round(), 0)
    files["plain.png"] = encoded(Image.fromarray(noise(9).astype(np.uint8)), "PNG")
    (tmp_path / "set").mkdir()
    filtered = filter_images(dataset_of(tmp_path / "set", files))
    assert filtered.value_range == TWELVE
    line = "4 photos have more than 8 bits; as the largest value is 4095, 0 .. 4095 becomes 0 .. 255"
    assert line in filtered.warnings and not [text for text in filtered.warnings if "show nothing" in text]


def test_integers_and_floats_in_one_set_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "set").mkdir()
    files = {"deep.png": deep_png(noise(0) * 16, 0), "float.tif": tiff((noise(1) / 255).astype(np.float32), 3)}
    with pytest.raises(DataError, match=r"integers in some photos and floats in others: deep\.png and float\.tif"):
        filter_images(dataset_of(tmp_path / "set", files))


def test_photos_that_become_nearly_black_are_a_finding(tmp_path):
    values = [Values("int", 0.0, 65535.0)] * 3 + [Values("int", 0.0, 4095.0)]
    inspections = [Inspection(values=each, contrast=9.0, width=99, height=99, format="PNG") for each in values]
    dataset = ImageDataset("set", tmp_path, ("a", "b"), ("0.png", "1.png", "2.png", "3.png"), (0, 1, 0, 1))
    (dark,) = [f for f in check_quality(dataset, inspections).findings if f.kind == "dark_values"]
    assert dark.groups == [[3]] and "no value above 12% of 0 .. 65535" in dark.what
    assert range_of_set(values) == (0.0, 65535.0) and range_of_set([Values("", 0, 0)]) == ()


def test_a_range_of_values_is_checked():
    check_value_range([])
    check_value_range([0.0, 4095.0])
    for wrong in ([1.0], [1.0, 1.0], [2.0, 1.0]):
        with pytest.raises(ValueError, match="value range"):
            check_value_range(wrong)


def soft() -> Image.Image:
    return Image.fromarray((COLORS // 2 + 60).astype(np.uint8))


def in_profile(image: Image.Image, profile: bytes) -> Image.Image:
    target = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    converted = ImageCms.profileToProfile(image, ImageCms.createProfile("sRGB"), target, renderingIntent=1)
    converted.info.clear()
    return converted


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_a_profile_is_applied(kind, mode):
    if (kind, mode) == ("WEBP", "P"):
        pytest.skip("WebP has no palettes")
    profile = coded_profile(12, 13)
    image = soft().quantize(200).convert("RGB") if mode == "P" else soft()
    there = in_profile(image, profile)
    there = there.quantize(256) if mode == "P" else there.convert(mode)
    content = encoded(there, kind, icc_profile=profile, **({"lossless": True} if kind == "WEBP" else {}))
    levels = np.abs(read(content) - np.asarray(image))
    assert levels.mean() < (2 if mode == "P" else 0.6)


def test_colors_that_a_png_states_without_a_profile():
    there = in_profile(soft(), coded_profile(12, 13))
    content = encoded(there, "PNG")
    assert np.abs(read(content) - np.asarray(soft())).mean() > 2
    points = chunk(b"cHRM", struct.pack(">8I", 31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000))
    gamma = chunk(b"gAMA", struct.pack(">I", 45455))
    for stated in (chunk(b"cICP", bytes([12, 13, 0, 1])), points, points + gamma):
        assert np.abs(read(content[:33] + stated + content[33:]) - np.asarray(soft())).max() <= 2
    plain = encoded(soft(), "PNG")
    for stated in (gamma, chunk(b"sRGB", b"\0") + points, chunk(b"cICP", bytes([9, 16, 0, 1]))):  # the last is HDR
        assert np.array_equal(read(plain[:33] + stated + plain[33:]), np.asarray(soft()))


def test_gray_profiles_and_lab(tmp_path):
    profile = bytearray(matrix_profile((0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06), 1.0))
    profile[16:20] = b"GRAY"
    linear = bytes(profile).replace(b"rTRC", b"kTRC", 1)
    for mode in ("L", "LA"):
        found = read(encoded(Image.new(mode, (4, 4), 55 if mode == "L" else (55, 255)), "PNG", icc_profile=linear))
        assert found[0, 0, 0] == found[0, 0, 2] and abs(found[0, 0, 0] - 128) <= 2
    to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    lab = ImageCms.applyTransform(soft(), to_lab)
    assert np.abs(read(encoded(lab, "TIFF")) - np.asarray(soft())).mean() < 1


def test_damaged_and_foreign_profiles_are_ignored():
    profile = coded_profile(12, 13)
    for wrong in (b"x" * 500, profile[:200], profile.replace(b"RGB ", b"CMYK"), profile.replace(b"acsp", b"none")):
        assert np.array_equal(read(encoded(soft(), "PNG", icc_profile=wrong)), np.asarray(soft()))
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for same in (srgb, coded_profile(1, 13), matrix_profile((0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06), None)):
        assert np.array_equal(read(encoded(soft(), "PNG", icc_profile=same)), np.asarray(soft()))
    assert matrix_profile((0.3, 0.0) * 4, 2.2) == b"" == matrix_profile((0.3, 0.3) * 4, 2.2)


def test_profiles_that_would_take_long_are_ignored():
    profile = coded_profile(12, 13)
    for wrong in (profile + bytes(MAX_PROFILE_BYTES), profile + b"mpet"):
        assert np.array_equal(read(encoded(soft(), "TIFF", icc_profile=wrong)), np.asarray(soft()))


def test_a_jpeg_is_counted_by_what_is_decoded():
    image = Image.new("RGB", (1600, 1200), (90, 10, 90))
    usual, progressive = (encoded(image, "JPEG", progressive=p, subsampling=0) for p in (False, True))
    halves = encoded(image, "JPEG", progressive=True, subsampling=2)
    for limit, size in (
        (1_920_000, (1600, 1200)),
        (1_919_999, (800, 600)),
        (100_000, (200, 150)),
        (30_000, (200, 150)),
    ):
        assert load_image(io.BytesIO(usual), limit).size == size
    with pytest.raises(DataError, match="too large: 1600x1200"):
        load_image(io.BytesIO(usual), 29_999)
    assert load_image(io.BytesIO(progressive), 1_920_000).size == (1600, 1200)
    assert load_image(io.BytesIO(halves), 960_000).size == (800, 600)
    for content, limit in ((progressive, 1_919_999), (halves, 959_999)):
        with pytest.raises(DataError, match="held whole, at most .*; fix: save it as a JPEG that is not progressive"):
            load_image(io.BytesIO(content), limit, at_least=100)


def test_colors_of_16_bits_that_are_decoded_twice_count_twice():
    content = deep_png(COLORS.astype(np.uint16) * 16, 2)
    assert load_image(io.BytesIO(content), 64 * 48) and load_image(io.BytesIO(content), 2 * 64 * 48, 0, TWELVE)
    with pytest.raises(DataError, match="too large"):
        load_image(io.BytesIO(content), 2 * 64 * 48 - 1, 0, TWELVE)


def test_large_texts_of_a_png_are_left_out():
    exif, text = Image.Exif(), PngImagePlugin.PngInfo()
    exif[0x0112] = 6
    text.add_text("workflow", "x" * 3_000_000, zip=True)
    text.add_text("plain", "y" * 3_000_000)
    text.add_itxt("XML:com.adobe.xmp", "z" * 3_000_000, zip=True)
    for number in range(40):
        text.add_text(f"text {number}", "w" * 900_000, zip=True)
    upright = np.asarray(soft().transpose(Image.Transpose.ROTATE_270))
    assert np.array_equal(read(encoded(soft(), "PNG", pnginfo=text, exif=exif)), upright)
    small = PngImagePlugin.PngInfo()
    small.add_text("Comment", "as it is", zip=True)
    assert np.array_equal(read(encoded(soft(), "PNG", pnginfo=small)), np.asarray(soft()))


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"\xff\x0a" + bytes(60), r"JPEG XL \(convert it with `djxl"), (b"\0\0\0\x0cjP  " + bytes(60), "JPEG 2000")],
)
def test_formats_that_are_not_read_are_named(content, message):
    with pytest.raises(DataError, match=message):
        load_image(io.BytesIO(content))
