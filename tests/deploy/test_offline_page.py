"""The offline page: complete, safe for any class name, with a verified runtime."""

import base64
import gzip
import hashlib
import io
import json
import re
import tarfile
from pathlib import Path
from typing import Any

import pytest

from flowers_torch.cli import main
from flowers_torch.deploy import offline_page as page
from flowers_torch.deploy.offline_page import BrowserRuntime, find_runtime, write_page
from flowers_torch.errors import ModelFileError, ResourceError, UsageError

RUNTIME = BrowserRuntime(b"1 // </script><script>window.hacked=1</script>", b"\0asm" + bytes(5000))


def chunks(text: str) -> dict[str, bytes]:
    """The content that the scripts of a page add, by name."""
    found: dict[str, bytes] = {}
    for name, value in re.findall(r'addChunk\("(\w+)","([A-Za-z0-9+/=]*)"\)', text):
        found[name] = found.get(name, b"") + base64.b64decode(value)
    return found


def test_one_file_holds_everything(onnx_bytes: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.html"
    (line,) = write_page(path, onnx_bytes, RUNTIME)
    assert str(path) in line and "one file" in line and [p.name for p in tmp_path.iterdir()] == ["model.html"]
    html = path.read_text()
    held = chunks(html)
    assert held["model"] == onnx_bytes and held["runtime"] == RUNTIME.script
    assert gzip.decompress(held["wasm"]) == RUNTIME.wasm
    assert "default-src &#39;none&#39;" in html
    assert "://" not in html.split("<script>addChunk(")[0]


def test_names_of_classes_cannot_become_markup(onnx_bytes: bytes, small: Any, tmp_path: Path) -> None:
    write_page(tmp_path / "model.html", onnx_bytes, RUNTIME)
    html = (tmp_path / "model.html").read_text()
    assert "<img src=x" not in html and "\u202e" not in html and "\x1b" not in html
    model = json.loads(re.findall(r'id="model">(.*?)</script>', html)[0])
    assert model["classes"][0] == small.info.classes[0]
    assert model["classes"][1] == "\\u202etulip\\x1b[31m"
    assert len(html.split("window.hacked")) == 3  # in the list and in the JSON, escaped


def test_the_script_never_writes_markup() -> None:
    templates = Path(page.__file__).parent / "templates"
    names = ("photo_page.js", "photo_sources.js", "offline_page.js")
    script = "".join((templates / name).read_text() for name in names)
    for name in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "fetch(",
        "XMLHttp",
    ):
        assert name not in script


def test_a_large_model_becomes_a_folder(onnx_bytes: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "MAX_SINGLE_FILE", 1 << 18)
    monkeypatch.setattr(page, "CHUNK_BYTES", 3 * 40_000)
    (line,) = write_page(tmp_path / "model.html", onnx_bytes, RUNTIME)
    folder = tmp_path / "model"
    assert "more than the 0 MB of one file" in line and not (tmp_path / "model.html").exists()
    html = (folder / "index.html").read_text()
    scripts = re.findall(r'<script src="([\w.-]+)">', html)
    assert {*scripts, "index.html"} == {path.name for path in folder.iterdir()} and "model-1.js" in scripts
    held = chunks("".join((folder / name).read_text() for name in scripts))
    assert held["model"] == onnx_bytes and gzip.decompress(held["wasm"]) == RUNTIME.wasm


def test_a_damaged_model_gives_no_page(onnx_bytes: bytes, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError):
        write_page(tmp_path / "model.html", onnx_bytes[:999], RUNTIME)
    assert not list(tmp_path.iterdir())


def package(path: Path, **changed: bytes) -> Path:
    """Writes an npm package like `npm pack`."""
    files = {
        page.SCRIPT: b"export {}",
        page.WASM: b"\0asm",
    } | changed
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def test_the_runtime_comes_from_a_package_or_its_folder(tmp_path: Path) -> None:
    found = find_runtime(str(package(tmp_path / "ort.tgz")))
    assert found == BrowserRuntime(b"export {}", b"\0asm")
    (tmp_path / "package" / "dist").mkdir(parents=True)
    (tmp_path / "package" / page.SCRIPT).write_bytes(b"export {}")
    (tmp_path / "package" / page.WASM).write_bytes(b"\0asm")
    assert find_runtime(str(tmp_path / "package")) == found


def test_an_invalid_runtime_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text.tgz").write_text("nothing")
    with tarfile.open(tmp_path / "other.tgz", "w:gz"):
        pass
    package(tmp_path / "broken.tgz", **{page.SCRIPT: b""})
    for name in ("nowhere.tgz", "text.tgz", "other.tgz", "broken.tgz", "."):
        with pytest.raises(
            UsageError, match="is not a valid onnxruntime-web package: .*; fix: npm pack onnxruntime-web@"
        ):
            find_runtime(str(tmp_path / name))
    monkeypatch.setattr(page, "MAX_RUNTIME_BYTES", 2)
    with pytest.raises(UsageError, match="too large"):
        find_runtime(str(package(tmp_path / "large.tgz")))


def test_the_runtime_is_downloaded_once_and_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWERS_TORCH_CACHE", str(tmp_path / "cache"))
    source = package(tmp_path / "ort.tgz")
    monkeypatch.setattr(page, "RUNTIME_URL", source.as_uri())
    with pytest.raises(ResourceError, match=f"expected {page.RUNTIME_SHA256}, .*; fix: run npm pack"):
        find_runtime()
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    monkeypatch.setattr(page, "RUNTIME_SHA256", hashlib.sha256(source.read_bytes()).hexdigest())
    first = find_runtime()
    source.unlink()
    assert find_runtime() == first


def test_no_runtime_no_export(small: Any, tmp_path: Path, capsys: Any) -> None:
    """The error comes before the slow export."""
    pytest.importorskip("onnx", reason="needs the extra onnx")
    arguments = ["--format", "page", "--out", str(tmp_path / "x.html"), "--runtime", str(tmp_path / "no")]
    assert main(["export", str(small.file), *arguments]) == 2
    assert "is not a valid onnxruntime-web package" in capsys.readouterr().err and not list(tmp_path.iterdir())
