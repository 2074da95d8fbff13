"""The image loader on files of cameras, scanners and editors, and on damaged and hostile files."""

import errno
import io
import os
import random
import struct
import subprocess
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile, features
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from flowers_torch.data import images, pixel_budget
from flowers_torch.data.augment.per_image import enough_side, eval_transform
from flowers_torch.data.images import MAX_PIXELS, load_image
from flowers_torch.data.quality.inspection import inspect_image
from flowers_torch.errors import DataError, ResourceError

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


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "AVIF", "PPM"])
def test_content_decides_not_the_suffix(tmp_path, kind):
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
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


@pytest.mark.needs("linux")
@pytest.mark.parametrize("size", [(50_000, 50_000), (10_000, 9_000)])
def test_a_bomb_is_refused_before_decoding(tmp_path, size):
    """Pillow only warns of the second size."""
    import resource

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


@pytest.mark.needs("pipes")
def test_pipes_and_devices_are_never_opened(tmp_path):
    os.mkfifo(tmp_path / "photo.jpg")  # opening it would wait for a writer
    with pytest.raises(DataError, match="not a regular file"):
        load_image(tmp_path / "photo.jpg")
    with pytest.raises(DataError, match="not a regular file"):
        load_image("/dev/zero")
    with pytest.raises(DataError, match="a folder"):
        load_image(tmp_path)


@pytest.mark.needs("pipes")
def test_what_is_not_regular_is_not_opened(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "photo.jpg")
    monkeypatch.setattr("builtins.open", lambda *_: pytest.fail("was opened"))
    with pytest.raises(DataError, match="not a regular file"):
        load_image(tmp_path / "photo.jpg")


@pytest.mark.needs("links")
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


@pytest.mark.needs("no_root")
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


@pytest.mark.needs("linux")
def test_a_read_error_of_the_disk_names_the_photo(tmp_path):
    """Linux reports an input/output error for the first bytes of a process's memory, a regular file."""
    path = tmp_path / "photo.jpg"
    path.symlink_to("/proc/self/mem")
    with pytest.raises(DataError, match=r"cannot read .*photo\.jpg: Input/output error; fix: .*disk"):
        load_image(path)
    found = inspect_image(path)
    assert "Input/output error" in found.error and found.fatal  # so that it is read again after a repair
    path.unlink()
    path.symlink_to(path)
    with pytest.raises(DataError, match=r"photo\.jpg: Too many levels"):
        load_image(path)
    path.unlink()
    path.write_bytes(b"text")
    assert inspect_image(path).error and not inspect_image(path).fatal


def test_a_read_error_in_the_middle_of_a_photo(tmp_path, monkeypatch):
    class BadCard(io.FileIO):
        def read(self, size=-1):
            if self.tell() > 2000:
                raise OSError(errno.EIO, "Input/output error")
            return super().read(min(size, 1000) if size > 0 else size)

    gradient(640, 480).save(tmp_path / "photo.jpg", quality=95)
    monkeypatch.setattr("flowers_torch.data.images.open", lambda path, mode: BadCard(path), raising=False)
    for at_least in (0, 50):
        with pytest.raises(DataError, match=r"cannot read .*photo\.jpg: Input/output error"):
            load_image(tmp_path / "photo.jpg", at_least=at_least)
    monkeypatch.setattr("flowers_torch.data.images._decode", lambda *_, **__: np.zeros(1 << 50))
    with pytest.raises(ResourceError, match=r"photo\.jpg needs more memory"):
        load_image(tmp_path / "photo.jpg")


def lossless_jpeg(side: int = 200) -> bytes:
    """A gray JPEG of the lossless process (ITU T.81, annex H), whose differences are all 0."""

    def segment(marker: int, content: bytes) -> bytes:
        return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content

    frame = segment(0xC3, struct.pack(">BHHB", 8, side, side, 1) + b"\1\x11\0")
    table = segment(0xC4, bytes([0, 1, *[0] * 15, 0]))
    return b"\xff\xd8" + frame + table + segment(0xDA, b"\1\1\0\1\0\0") + bytes(side * side // 8) + b"\xff\xd9"


def test_a_jpeg_without_a_reduced_form_is_read_whole(tmp_path):
    content = lossless_jpeg()
    assert load_image(io.BytesIO(content)).size == load_image(io.BytesIO(content), at_least=50).size == (200, 200)
    (tmp_path / "photo.jpg").write_bytes(content)
    assert inspect_image(tmp_path / "photo.jpg").error == ""


def test_the_size_that_is_asked_for_never_decides_whether_an_image_is_accepted():
    draw = random.Random(0)
    image = Image.effect_noise((320, 240), 60).convert("RGB")
    seeds = [encoded(image, "JPEG"), encoded(image, "JPEG", progressive=True), encoded(image.convert("CMYK"), "JPEG")]
    seeds += [encoded(image, "MPO", save_all=True, append_images=[image]), lossless_jpeg(), encoded(image, "WEBP")]
    accepted = 0
    for number in range(300):
        content = bytearray(seeds[number % len(seeds)])
        for _ in range(draw.choice((1, 3))):
            at = draw.randrange(draw.choice((700, len(content))))
            content[at : at + draw.choice((0, 1, 4))] = draw.randbytes(draw.choice((1, 4)))
        verdicts = set()
        for at_least in (0, 20, 100):
            try:
                verdicts.add(load_image(io.BytesIO(content), at_least=at_least).mode)
            except DataError:
                verdicts.add("")
        assert len(verdicts) == 1, (number, verdicts)
        accepted += "" not in verdicts
    assert 50 < accepted < 250


def test_frames_behind_the_first_cost_nothing(tmp_path):
    """Check counts the frames, which training and prediction never look at."""
    frames = [gradient().rotate(90 * n) for n in range(3)]
    content = encoded(frames[0], "TIFF", save_all=True, append_images=frames[1:])
    offset = struct.unpack("<I", content[4:8])[0]  # of the first directory, whose last field leads to the second
    last = offset + 2 + 12 * struct.unpack("<H", content[offset : offset + 2])[0]
    path = tmp_path / "photo.tif"
    path.write_bytes(content[:last] + struct.pack("<I", len(content) - 1) + content[last + 4 :])
    assert load_image(path).size == (40, 30)
    assert (inspect_image(path).error, inspect_image(path).frames) == ("", 1)


@pytest.mark.parametrize("compression", ["group4", "tiff_lzw", "tiff_adobe_deflate", "jpeg"])
def test_libtiff_writes_nothing_and_its_complaints_count(tmp_path, capfd, compression):
    """libtiff prints errors, and decodes the rest of a fax as if nothing had happened."""
    mode = "1" if compression == "group4" else "RGB"
    content = bytearray(encoded(Image.effect_noise((64, 48), 90).convert(mode), "TIFF", compression=compression))
    whole = bytes(content)
    content[40:80] = b"\x5a" * 40 if compression != "jpeg" else bytes(40)
    refused = 0
    with ThreadPoolExecutor(4) as pool:
        for at_least in (0, 600):
            for damaged in (bytes(content), content[: len(content) // 2] + bytes(len(content) // 2)):
                read = pool.submit(load_image, io.BytesIO(damaged), at_least=at_least)
                refused += isinstance(read.exception(), DataError)
                assert pool.submit(load_image, io.BytesIO(whole)).result().size == (64, 48)
    assert refused and capfd.readouterr() == ("", "")


def test_a_damaged_fax_is_refused():
    noise = np.random.default_rng(1).integers(0, 2, (48, 64), np.uint8) * 255  # other noise is read, or refused earlier
    content = bytearray(encoded(Image.fromarray(noise).convert("1"), "TIFF", compression="group4"))
    content[30:34] = b"\0\0\0\0"
    with pytest.raises(DataError, match="libtiff reports damage"):
        load_image(io.BytesIO(content))


def test_many_scans_of_a_jpeg_are_refused():
    """Each scan is a pass over all pixels, and can be a few bytes long."""
    content = encoded(gradient(640, 480), "JPEG", progressive=True)
    last = content.rindex(b"\xff\xda")
    assert load_image(io.BytesIO(content[:-2] + content[last:-2] * 20 + b"\xff\xd9"))
    with pytest.raises(DataError, match="more than 100 scans"):
        load_image(io.BytesIO(content[:-2] + content[last:-2] * 200 + b"\xff\xd9"), at_least=50)


@pytest.mark.needs("linux")
def test_decoding_takes_a_bounded_number_of_bytes_a_pixel(tmp_path):
    """Transparency, rotation and 16 bits are converted in strips. Pillow's 4 bytes a pixel are the least."""
    side, exif = 5000, Image.Exif()
    exif[0x0112] = 6
    Image.new("RGBA", (side, side), (200, 0, 0, 128)).save(tmp_path / "rgba.png", exif=exif, compress_level=1)
    Image.new("I;16", (side, side), 40000).save(tmp_path / "deep.png", compress_level=1)
    code = (
        "import resource, sys; from flowers_torch.data.images import load_image\n"
        "used = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
        "before = used(); image = load_image(sys.argv[1], at_least=int(sys.argv[2]))\n"
        f"print((used() - before) / {side**2}, *image.size, *image.getpixel((9, 9)))\n"
    )
    for name, at_least, most, expected in (
        ("rgba.png", 0, 9.5, (5000, 5000, 227, 127, 127)),
        ("rgba.png", 600, 6.0, (625, 625, 227, 127, 127)),
        ("deep.png", 0, 9.5, (5000, 5000, 156, 156, 156)),
    ):
        command = [sys.executable, "-c", code, str(tmp_path / name), str(at_least)]
        bytes_each, *found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        assert float(bytes_each) < most and tuple(map(int, found)) == expected, (name, at_least, bytes_each, found)


def test_strips_give_the_same_pixels(monkeypatch):
    image = Image.merge("RGBA", [Image.effect_noise((90, 70), 80) for _ in range(4)])
    exif = Image.Exif()
    exif[0x0112] = 8
    content = encoded(image, "PNG", exif=exif)
    whole = load_image(io.BytesIO(content))
    monkeypatch.setattr("flowers_torch.data.pixels.STRIP_PIXELS", 600)
    assert load_image(io.BytesIO(content)).tobytes() == whole.tobytes()
    small = load_image(io.BytesIO(content), at_least=20)
    assert small.size == (24, 30) and difference(small, whole.reduce(3)) < 1


@pytest.mark.parametrize("options", [{}, {"lossless": True}, {"save_all": True}])
def test_the_frame_of_a_webp_is_checked_before_it_is_allocated(options, monkeypatch):
    content = encoded(gradient(), "WEBP", **options)
    monkeypatch.setattr("flowers_torch.data.images._identify", lambda *_: pytest.fail("it was opened"))
    with pytest.raises(DataError, match="too large: 40x30"):
        load_image(io.BytesIO(content), max_pixels=3959)


def test_a_pixel_of_webp_counts_more_than_three_times():
    """Its decoder takes 17 bytes a pixel, and more to convert transparency."""
    with pytest.raises(DataError, match="too large: 40x30, at most 1,199 pixels"):
        load_image(io.BytesIO(encoded(gradient(), "WEBP")), max_pixels=3959)
    assert load_image(io.BytesIO(encoded(gradient(), "WEBP")), max_pixels=3960)


def test_threads_decode_as_many_pixels_as_one_image_may_have(monkeypatch):
    """Memory is bounded for a process, however many threads read; reduced JPEG files take little."""
    inside, most, real = [], [], images._decode_opened

    def decode(image, *arguments):
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.02)
        inside.pop()
        return real(image, *arguments)

    monkeypatch.setattr(images, "_decode_opened", decode)
    for kind, at_least, together in (("PNG", 0, 2), ("JPEG", 0, 2), ("WEBP", 0, 1), ("JPEG", 8, 8)):
        content, limit = encoded(gradient(), kind), 40 * 30 * (5 if kind == "WEBP" else 2)
        most.clear()
        with ThreadPoolExecutor(8) as pool:
            found = [pool.submit(load_image, io.BytesIO(content), limit, at_least) for _ in range(16)]
        assert all(each.result() for each in found)
        assert max(most) == together if together < 8 else max(most) > 2, kind


def test_a_large_image_waits_its_turn_and_a_forked_process_waits_for_nobody():
    order = []

    def hold(name, pixels):
        with pixel_budget.hold_pixels(pixels, 10):
            order.append(name)

    with ThreadPoolExecutor(3) as pool:
        with pixel_budget.hold_pixels(4, 10):
            waiting = []
            for name, pixels in (("huge", 99), ("small", 1)):
                waiting.append(pool.submit(hold, name, pixels))
                while len(pixel_budget._budget.waiting) < len(waiting):
                    time.sleep(0.001)
            assert order == []
        for each in waiting:
            each.result(5)
    assert order == ["huge", "small"]
    with pixel_budget.hold_pixels(10, 10):
        held = pixel_budget._budget
        pixel_budget._new_budget()
        hold("child", 10)
        pixel_budget._budget = held
    assert order[-1] == "child" and held.held == 0
