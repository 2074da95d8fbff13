"""The image loader on files of cameras, scanners and editors, and on damaged and hostile files."""

import io
import os
import resource
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from flowers_torch.data.augment.per_image import enough_side, eval_transform
from flowers_torch.data.images import MAX_PIXELS, load_image
from flowers_torch.errors import DataError

SHARED = Path(os.environ.get("FLOWERS_TORCH_SHARED", ""))


def gradient(width: int = 40, height: int = 30) -> Image.Image:
    """A smooth image without any symmetry."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    return Image.fromarray(np.stack([255 * x, 255 * y, 255 * x * y], axis=2).astype(np.uint8))


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def difference(a: Image.Image, b: Image.Image) -> float:
    return float(np.abs(np.asarray(a).astype(int) - np.asarray(b).astype(int)).mean())


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM"])
def test_content_decides_not_the_suffix(tmp_path, kind):
    path = tmp_path / "photo.jpg"
    path.write_bytes(encoded(gradient(), kind))
    image = load_image(path)
    assert image.mode == "RGB" and image.size == (40, 30)
    assert difference(image, gradient()) < 6


def test_reads_an_open_file_and_leaves_none_open():
    file = io.BytesIO(encoded(gradient(), "PNG"))
    image = load_image(file)
    file.close()
    assert difference(image, gradient()) == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"%PDF-1.7 ", "PDF"),
        (b"8BPS\0\1", "Photoshop"),
        (b"%!PS-Adobe-3.0 EPSF", "PostScript"),
        (b"\0\0\0\x20ftypavif", "AVIF"),
        (b"\0\0\0\x20ftypisom", "a video"),
        (b"just words", "something else"),
    ],
)
def test_other_content_is_described(tmp_path, content, message):
    path = tmp_path / "photo.jpg"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"photo.jpg.*{message}"):
        load_image(path)


def test_heic_needs_its_package_and_says_so(tmp_path, monkeypatch):
    path = tmp_path / "phone.heic"
    path.write_bytes(b"\0\0\0\x20ftypheic\0\0\0\0mif1heic" + bytes(40))
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(DataError, match=r'phone\.heic is a HEIC photo.*pip install "flowers-torch\[heic\]"'):
        load_image(path)


def test_heic_images(tmp_path):
    heif = pytest.importorskip("pillow_heif")
    exif = Image.Exif()
    exif[274] = 6
    saved = gradient(64, 48).transpose(Image.Transpose.ROTATE_90)
    file = heif.from_pillow(saved)
    file.save(tmp_path / "phone.jpg", quality=95, exif=exif.tobytes())
    image = load_image(tmp_path / "phone.jpg")
    assert image.size == (64, 48) and difference(image, gradient(64, 48)) < 4
    content = (tmp_path / "phone.jpg").read_bytes()
    (tmp_path / "cut.heic").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match="cut.heic"):
        load_image(tmp_path / "cut.heic")
    with pytest.raises(DataError, match="too large"):
        load_image(tmp_path / "phone.jpg", max_pixels=1000)


def test_formats_outside_the_list_are_refused_though_pillow_reads_them(tmp_path):
    path = tmp_path / "photo.jpg"
    path.write_bytes(encoded(gradient(), "PCX"))
    with Image.open(path) as image:
        assert image.format == "PCX"
    with pytest.raises(DataError, match="not an image of an accepted format"):
        load_image(path)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP"])
@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.99])
def test_a_cut_file_is_an_error_with_its_path(tmp_path, kind, fraction):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    content = encoded(noise, kind)
    path = tmp_path / "photo.img"
    path.write_bytes(content[: int(len(content) * fraction)])
    with pytest.raises(DataError, match=r"photo\.img.*fix: "):
        load_image(path)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


@pytest.mark.parametrize("kind", ["JPEG", "MPO"])
def test_a_large_jpeg_comes_smaller_where_that_is_enough(tmp_path, kind):
    large = gradient(1600, 1200)
    (tmp_path / "large.jpg").write_bytes(encoded(large, kind, quality=95))
    for at_least, size in ((0, (1600, 1200)), (601, (1600, 1200)), (600, (800, 600)), (100, (200, 150))):
        assert load_image(tmp_path / "large.jpg", at_least=at_least).size == size
    transform = eval_transform(224, (0.0,) * 3, (1.0,) * 3)
    whole = transform(load_image(tmp_path / "large.jpg"))
    less = transform(load_image(tmp_path / "large.jpg", at_least=enough_side(224, 0.875)))
    levels = (whole - less).abs() * 255
    assert 0 < float(levels.mean()) < 0.5 and float(levels.max()) <= 3.01
    content = encoded(large, kind)
    (tmp_path / "large.jpg").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"large\.jpg is not a usable image"):
        load_image(tmp_path / "large.jpg", at_least=100)


def test_png_checksums_and_end_are_checked(tmp_path):
    content = bytearray(encoded(gradient(), "PNG"))
    path = tmp_path / "photo.png"
    path.write_bytes(content[:-12])
    assert Image.open(path).load()  # Pillow does not check the end
    with pytest.raises(DataError, match="end chunk"):
        load_image(path)
    content[content.index(b"IDAT") + 60] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="IDAT"):
        load_image(path)


def test_our_package_leaves_pillows_settings_alone():
    code = (
        "from PIL import Image, ImageFile; before = Image.MAX_IMAGE_PIXELS;"
        "import flowers_torch.data.sources.open, flowers_torch.data.images;"
        "assert ImageFile.LOAD_TRUNCATED_IMAGES is False and Image.MAX_IMAGE_PIXELS == before"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes with the given size in its header."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(bytes(100)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(50_000, 50_000), (10_000, 9_000)])
def test_a_bomb_is_refused_before_decoding(tmp_path, size):
    """Pillow only warns of the second size."""
    path = tmp_path / "photo.png"
    path.write_bytes(bomb(*size))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    with pytest.raises(DataError, match=r"photo\.png is too large"):
        load_image(path)
    assert time.perf_counter() - start < 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024  # KiB


def test_the_cap_is_ours_even_where_pillow_has_none(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    path = tmp_path / "photo.png"
    path.write_bytes(bomb(MAX_PIXELS, 2))
    with pytest.raises(DataError, match="too large"):
        load_image(path)
    path.write_bytes(encoded(gradient(), "PNG"))
    with pytest.raises(DataError, match="at most 1,199 pixels"):
        load_image(path, max_pixels=1199)
    assert load_image(path, max_pixels=1200)


@pytest.mark.parametrize(
    ("mode", "kind"), [("I;16", "PNG"), ("I;16", "TIFF"), ("I;16B", "TIFF"), ("I", "TIFF"), ("I", "PPM")]
)
def test_16_bit_gray_is_scaled_not_clipped(tmp_path, mode, kind):
    values = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    saved = {"I;16": "<u2", "I;16B": ">u2", "I": "<i4"}[mode]
    raw = Image.frombytes(mode, (64, 64), values.astype(saved).tobytes())
    path = tmp_path / "photo"
    path.write_bytes(encoded(raw, kind))
    gray = np.asarray(load_image(path))[..., 0]
    assert np.abs(gray - values / 257).max() <= 0.51
    assert np.asarray(load_image(path)).shape == (64, 64, 3)


def test_pixel_types_without_a_defined_range_are_refused_by_name(tmp_path):
    path = tmp_path / "photo.tif"
    Image.new("F", (4, 4), 0.5).save(path)
    with pytest.raises(DataError, match=r"photo\.tif is not a usable image: it has floating-point pixels"):
        load_image(path)
    Image.new("I", (4, 4), 70_000).save(path)
    with pytest.raises(DataError, match="70000"):
        load_image(path)
    Image.new("LAB", (4, 4)).save(path)
    with pytest.raises(DataError, match="LAB"):
        load_image(path)


def test_one_bit_and_cmyk(tmp_path):
    Image.new("1", (4, 4), 1).save(tmp_path / "one.png")
    assert load_image(tmp_path / "one.png").getpixel((0, 0)) == (255, 255, 255)
    gradient().convert("CMYK").save(tmp_path / "cmyk.jpg", quality=100)
    assert difference(load_image(tmp_path / "cmyk.jpg"), gradient()) < 4


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_transparency_becomes_white(tmp_path, kind):
    for mode in ("RGBA", "LA"):
        clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
        clear.paste((0, 0, 0, 255), (0, 0, 8, 4))
        (tmp_path / "photo").write_bytes(encoded(clear.convert(mode), kind, lossless=True))
        image = load_image(tmp_path / "photo")
        assert image.getpixel((0, 0)) == (0, 0, 0) and image.getpixel((0, 7)) == (255, 255, 255)


def test_transparent_palette_and_key_colors_become_white(tmp_path):
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 200, 10, 10])
    palette.putpixel((0, 0), 0)
    palette.save(tmp_path / "a.png", transparency=0)
    palette.save(tmp_path / "a.gif", transparency=0)
    palette.save(tmp_path / "b.png", transparency=bytes([0, 255]))
    Image.new("RGB", (4, 4), (1, 2, 3)).save(tmp_path / "c.png", transparency=(1, 2, 3))
    for name in ("a.png", "a.gif", "b.png", "c.png"):
        assert load_image(tmp_path / name).getpixel((0, 0)) == (255, 255, 255), name
    assert load_image(tmp_path / "a.png").getpixel((1, 1)) == (200, 10, 10)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF", "MPO"])
def test_the_first_frame_is_loaded(tmp_path, kind):
    first, second = Image.new("RGB", (8, 8), (200, 0, 0)), Image.new("RGB", (8, 8), (0, 0, 200))
    (tmp_path / "photo.jpg").write_bytes(encoded(first, kind, save_all=True, append_images=[second]))
    red, _, blue = load_image(tmp_path / "photo.jpg").getpixel((4, 4))
    assert red > 190 and blue < 10


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_all_orientations_load_upright(tmp_path, kind, orientation):
    turns = [None, None, "FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_90"]
    turns += ["TRANSVERSE", "ROTATE_270"]  # how a camera in this position stores an upright scene
    turn = turns[orientation]
    saved = gradient().transpose(Image.Transpose[turn]) if turn else gradient()
    if kind == "TIFF":
        tags = ImageFileDirectory_v2()
        tags[274] = orientation
        content = encoded(saved, kind, tiffinfo=tags)
    else:
        exif = Image.Exif()
        exif[274] = orientation
        options = {"JPEG": {"quality": 100}, "WEBP": {"lossless": True}, "PNG": {}}[kind]
        content = encoded(saved, kind, exif=exif, **options)
    (tmp_path / "photo").write_bytes(content)
    image = load_image(tmp_path / "photo")
    assert image.size == (40, 30) and difference(image, gradient()) < 2


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("damage", ["cut", "garbage", "type", "word"])
def test_malformed_exif_costs_only_the_exif(tmp_path, damage):
    exif = Image.Exif()
    exif[274] = 6
    exif[271] = "a maker"
    raw = exif.tobytes()
    raw = {
        "cut": raw[:20],
        "garbage": raw[:6] + b"MM\0*" + b"\xff" * 30,
        "type": raw.replace(struct.pack(">HHI", 274, 3, 1), struct.pack(">HHI", 274, 2, 9)),
        "word": raw.replace(struct.pack(">HHIH", 274, 3, 1, 6), struct.pack(">HHI2s", 274, 2, 4, b"up")),
    }[damage]
    assert raw != exif.tobytes()
    (tmp_path / "photo.jpg").write_bytes(encoded(gradient(), "JPEG", exif=raw, quality=100))
    assert difference(load_image(tmp_path / "photo.jpg"), gradient()) < 3


@pytest.mark.parametrize("size", [(1, 1), (1, 10_000), (10_000, 1)])
def test_extreme_shapes_load(tmp_path, size):
    gradient(*size).save(tmp_path / "photo.png")
    assert load_image(tmp_path / "photo.png").size == size


def test_pipes_and_devices_are_never_opened(tmp_path):
    os.mkfifo(tmp_path / "photo.jpg")  # opening it would wait for a writer
    with pytest.raises(DataError, match="not a regular file"):
        load_image(tmp_path / "photo.jpg")
    with pytest.raises(DataError, match="not a regular file"):
        load_image("/dev/zero")
    with pytest.raises(DataError, match="a folder"):
        load_image(tmp_path)


def test_what_is_not_regular_is_not_opened(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "photo.jpg")
    monkeypatch.setattr("builtins.open", lambda *_: pytest.fail("was opened"))
    with pytest.raises(DataError, match="not a regular file"):
        load_image(tmp_path / "photo.jpg")


def test_missing_and_unreadable_files_are_named(tmp_path):
    (tmp_path / "away.jpg").symlink_to(tmp_path / "gone.jpg")
    for name in ("away.jpg", "none.jpg"):
        with pytest.raises(DataError, match=f"{name}.*No such file"):
            load_image(tmp_path / name)
    with pytest.raises(DataError, match="NUL|null"):
        load_image("a\0b.jpg")
    gradient().save(tmp_path / "real.jpg")
    (tmp_path / "link.jpg").symlink_to(tmp_path / "real.jpg")
    assert load_image(tmp_path / "link.jpg").size == (40, 30)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_read_permission_is_named(tmp_path):
    gradient().save(tmp_path / "secret.jpg")
    (tmp_path / "secret.jpg").chmod(0)
    with pytest.raises(DataError, match="secret.jpg.*denied"):
        load_image(tmp_path / "secret.jpg")


def test_control_characters_in_names_stay_out_of_messages(tmp_path):
    path = tmp_path / "a\x1b[31m\nb.jpg"
    path.write_bytes(b"")
    with pytest.raises(DataError) as error:
        load_image(path)
    assert "\x1b" not in str(error.value) and "\n" not in str(error.value)


@pytest.mark.skipif(not (SHARED / "data/pillow_images").is_dir(), reason="needs FLOWERS_TORCH_SHARED")
def test_pillows_difficult_images(capfd):
    """Every file gives an RGB image or a one-line error with its path, and soon."""
    good = 0
    for path in sorted((SHARED / "data/pillow_images").iterdir()):
        start = time.perf_counter()
        try:
            good += load_image(path).mode == "RGB"
        except DataError as error:
            assert path.name in str(error).replace("...", "") or len(str(path)) > 190
            assert "\n" not in str(error)
        assert time.perf_counter() - start < 2, path
    assert good > 60
