"""Export of a model as a web page that classifies photos offline, in the browser.

ONNX Runtime's WebAssembly build runs an .onnx file with preprocessing. A small page is one .html file. A
large page is a folder of scripts, because a page that is opened from a file may load nothing else.
"""

import base64
import gzip
import tarfile
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup

from flowers_torch.deploy.export import megabytes
from flowers_torch.deploy.onnx_file import parse_onnx
from flowers_torch.deploy.page_model import page_model
from flowers_torch.errors import UsageError, plural, printable
from flowers_torch.files.atomic import write_text
from flowers_torch.files.cache import cache_folder
from flowers_torch.files.download import download
from flowers_torch.files.system import expand_home
from flowers_torch.report.templating import render

RUNTIME_VERSION = "1.30.0"
RUNTIME_FILE = f"onnxruntime-web-{RUNTIME_VERSION}.tgz"
RUNTIME_URL = f"https://registry.npmjs.org/onnxruntime-web/-/{RUNTIME_FILE}"
RUNTIME_SHA256 = "d2228df7e4616bc3348bf504ee888f3bec43789a273f0a63f3e68d203ce3bf71"
SCRIPT, WASM = "dist/ort.wasm.bundle.min.mjs", "dist/ort-wasm-simd-threaded.wasm"
MAX_RUNTIME_BYTES = 64 << 20  # of each of the two files
DOWNLOAD_HINT = f"run npm pack onnxruntime-web@{RUNTIME_VERSION} elsewhere, then pass --runtime {RUNTIME_FILE}"

MAX_SINGLE_FILE = 48 << 20  # bytes; phones open no larger pages
CHUNK_BYTES = 12 << 20  # of a script; a multiple of 3, so that each chunk decodes alone

# The page may load only the scripts of its folder; the runtime starts from memory (blob:).
POLICY = "default-src 'none'; img-src blob:; style-src 'unsafe-inline'; "
POLICY += "script-src 'unsafe-inline' 'wasm-unsafe-eval' blob:"


class BrowserRuntime(NamedTuple):
    """ONNX Runtime for browsers: an ES module and the WebAssembly program that it starts."""

    script: bytes
    wasm: bytes


def find_runtime(where: str = "") -> BrowserRuntime:
    """Reads the npm package `onnxruntime-web`, a folder or .tgz.

    If `where` is empty, it downloads the tested version once and verifies its checksum.

    Raises:
        UsageError: there is no such package.
        ResourceError: the download fails.
    """
    path = expand_home(where)
    if not where:
        path = download(RUNTIME_URL, cache_folder() / RUNTIME_FILE, RUNTIME_SHA256, ways_on=DOWNLOAD_HINT)
    try:
        if path.is_dir():
            return BrowserRuntime((path / SCRIPT).read_bytes(), (path / WASM).read_bytes())
        with tarfile.open(path, "r:gz") as archive:
            return BrowserRuntime(*(_member(archive, f"package/{name}") for name in (SCRIPT, WASM)))
    except (OSError, KeyError, ValueError, tarfile.TarError, EOFError) as error:
        what = f"--runtime {printable(path)} is not a valid onnxruntime-web package: {printable(error)}"
        raise UsageError(what, f"npm pack onnxruntime-web@{RUNTIME_VERSION}, then --runtime {RUNTIME_FILE}") from error


def write_page(path: Path, model: bytes, runtime: BrowserRuntime, as_folder: bool = False) -> list[str]:
    """Writes the page of an .onnx file with preprocessing, and returns lines that describe it.

    A page that is too large for one file becomes a folder without the suffix, with an `index.html`.
    """
    metadata = parse_onnx(model, path).metadata
    resources = {"runtime": runtime.script, "wasm": gzip.compress(runtime.wasm, 9, mtime=0), "model": model}
    selective = metadata["selective"]
    values = page_model(metadata["classes"], selective) | {
        "arch": metadata["arch"],
        "ood_threshold": selective.get("ood_threshold"),
        "value_range": metadata["preprocessing"].get("value_range") or [],
        "license": printable(metadata["license"], 200),
        "size": megabytes(len(model)),
    }
    calls = {}
    for name, content in resources.items():
        for number, start in enumerate(range(0, len(content), CHUNK_BYTES)):
            value = base64.b64encode(content[start : start + CHUNK_BYTES]).decode()
            calls[f"{name}-{number}.js"] = f'addChunk("{name}","{value}")'
    total = sum(map(len, calls.values()))
    if total <= MAX_SINGLE_FILE and not as_folder:
        write_text(path, _html(values, [f"<script>{call}</script>" for call in calls.values()], POLICY))
        size = megabytes(path.stat().st_size)
        return [f"export   {printable(path)}, {size}: one file that opens offline in any browser"]
    folder = path.with_suffix("") if path.suffix == ".html" else path
    for name, call in calls.items():
        write_text(folder / name, call)
    scripts = [f'<script src="{name}"></script>' for name in calls]
    # 'self' is for servers; a page that is opened from a file has no origin.
    write_text(folder / "index.html", _html(values, scripts, f"{POLICY} 'self' file:"))
    reason = "" if as_folder else f", more than the {MAX_SINGLE_FILE >> 20} MB of one file"
    what = f"{printable(folder / 'index.html')} with {plural(calls, 'file')} beside it"
    return [f"export   {what}, {megabytes(total)}{reason}"]


def _html(model: dict[str, Any], scripts: list[str], policy: str) -> str:
    safe = Markup("".join(scripts))  # base64 and file names of ours
    values = {"model": model, "scripts": safe, "policy": policy}
    return render("offline_page.html.jinja", values, "flowers_torch.deploy")


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(name)
    content = file.read(MAX_RUNTIME_BYTES + 1) if file else b""  # not a regular file
    if not 0 < len(content) <= MAX_RUNTIME_BYTES:
        raise ValueError(f"{name} is too large or no file")
    return content
