"""The server on a real socket: predictions equal those of `predict`, and no request stops it."""

import argparse
import base64
import dataclasses
import io
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from flowers_torch.commands import serve as command
from flowers_torch.deploy.predictor import LOW_CONFIDENCE, Predictor
from flowers_torch.errors import ResourceError, UsageError

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def images(photo_folder: Path) -> list[Path]:
    return sorted(photo_folder.rglob("*.png"))[:7]


def probabilities(info: dict[str, Any]) -> list[float]:
    return [found["probability"] for found in info["classes"]]


def test_predictions_are_those_of_validation(served: Any, images: list[Path], served_classifier: Predictor) -> None:
    """Bit-exact for a single image; in a batch up to the order of summation."""
    for image in images[:3]:
        status, _, found = served.request("POST", "/api/predict?top=3", image.read_bytes())
        expected = (served_classifier.logits([image])[0] / 0.7).softmax(0).sort(descending=True).values
        assert status == 200 and probabilities(found["predictions"][0]) == expected.tolist()
    _, _, found = served.send(*((image.name, image.read_bytes()) for image in images))
    expected = (served_classifier.logits(images) / 0.7).softmax(1).sort(descending=True).values
    assert torch.tensor([probabilities(r) for r in found["predictions"]]) == pytest.approx(expected, abs=1e-5)
    assert [info["file"] for info in found["predictions"]] == [image.name for image in images]


def test_concurrent_requests_share_batches_and_none_is_lost(served: Any, images: list[Path]) -> None:
    before = served.service.sizes._sum.get()
    alone = {p: served.request("POST", "/api/predict", p.read_bytes())[2]["predictions"][0] for p in images}
    wanted = [images[i % len(images)] for i in range(40)]
    with ThreadPoolExecutor(20) as pool:
        found = list(pool.map(lambda p: served.request("POST", "/api/predict", p.read_bytes()), wanted))
    assert {status for status, _, _ in found} == {200}
    for image, (_, _, response) in zip(wanted, found, strict=True):
        assert probabilities(response["predictions"][0]) == pytest.approx(probabilities(alone[image]), abs=1e-5)
    assert served.service.sizes._sum.get() - before == len(images) + 40
    assert served.service.pending == 0


def bomb() -> bytes:
    """A PNG of 50,000 x 50,000 pixels in a few bytes."""
    chunks = b""
    for content in (b"IHDR" + struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0), b"IDATx", b"IEND"):
        chunks += struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))
    return b"\x89PNG\r\n\x1a\n" + chunks


def test_bad_photos_have_their_reason_and_good_ones_their_answer(served: Any, images: list[Path]) -> None:
    good = images[0].read_bytes()
    whole = io.BytesIO()
    Image.effect_noise((80, 80), 50).save(whole, "JPEG")
    bad = {
        "nothing.jpg": (b"", "is empty"),
        "page.jpg": (b"<html>", "not an image of an accepted format"),
        "cut.jpg": (whole.getvalue()[:900], "not a usable image"),
        "cut head.jpg": (whole.getvalue()[:60], "not a usable image"),
        "bomb.png": (bomb(), "too large"),
        "script.jpg": (b"%!PS", "holds PostScript"),
        "large.jpg": (bytes((1 << 20) + 1), "holds more than 1 MB"),
    }
    sent = [("good.png", good), *((name, content) for name, (content, _) in bad.items()), ("also.png", good)]
    status, _, found = served.send(*sent)
    assert status == 200 and [info["file"] for info in found["predictions"]] == [name for name, _ in sent]
    for info in found["predictions"]:
        if info["file"] in bad:
            assert bad[info["file"]][1] in info["error"] and "classes" not in info
        else:
            assert len(info["classes"]) == 3
    assert served.request("GET", "/healthz")[0] == 200


def test_pixels_are_counted_by_the_server_s_own_limit(serve_with: Any, images: list[Path]) -> None:
    with serve_with(pixels=40 * 48 - 1) as small:
        (info,) = small.send(("a.png", images[0].read_bytes()))[2]["predictions"]
    assert "too large: 48x40, at most 1,919 pixels" in info["error"]


def test_the_pixels_that_are_decoded_count_not_those_of_the_header(serve_with: Any) -> None:
    """A phone with 108 million pixels needs this. Of a progressive JPEG all pixels take memory."""
    files = {}
    for name, kind, options in (
        ("usual", "JPEG", {}),
        ("progressive", "JPEG", {"progressive": True, "subsampling": 0}),
        ("smaller colors", "JPEG", {"progressive": True, "subsampling": 2}),
        ("png", "PNG", {}),
    ):
        file = io.BytesIO()
        Image.new("RGB", (1600, 1600), (90, 10, 90)).save(file, kind, **options)
        files[name] = file.getvalue()
    for pixels, accepted in ((40_000, 1), (39_999, 0), (1_280_000, 2), (1_279_999, 1), (2_559_999, 2), (2_560_000, 4)):
        with serve_with(pixels=pixels) as served:
            found = served.send(*files.items())[2]["predictions"]
        assert sum("classes" in info for info in found) == accepted, (pixels, found)
        assert all("too large: 1600x1600" in info["error"] for info in found if "classes" not in info)


def test_hostile_names_come_back_harmless(served: Any, images: list[Path]) -> None:
    hostile = "../../<svg onload=alert(1)>\x1b[2J\u202e\u009b2Jgnp.png" + "x" * 500
    status, headers, found = served.send((hostile, b"nothing"), (hostile, images[0].read_bytes()))
    assert status == 200 and headers["content-type"] == "application/json"
    for text in (json.dumps(found, ensure_ascii=False), json.dumps(served.request("GET", "/api/model")[2])):
        assert not {"\x1b", "\u009b", "\u202e"} & set(text) and "\ud800" not in text and len(text) < 2000
    assert any("onerror=window.hacked=1>\\x1b[31m" in row["class"] for row in found["predictions"][1]["classes"])


def test_only_the_page_s_own_files_can_be_reached(served: Any) -> None:
    for path in ("/", "/page.css", "/page.js", "/icon.svg"):
        status, headers, content = served.request("GET", path)
        assert status == 200 and len(content) > 100 and headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in headers["content-security-policy"]
    for path in (
        "/etc/passwd", "//etc/passwd", "/../page.js", "/..%2f..%2fetc/passwd", "/page.css/../../serve.py",
        "/%2e%2e/%2e%2e/pyproject.toml", "/pyproject.toml", "/page/index.html", "/page.js%00",
        "/file=/etc/passwd", "/..\\page.js", "/docs", "/openapi.json",
    ):  # fmt: skip
        assert served.request("GET", path)[0] == 404, path
    assert served.request("GET", "/api/predict")[0] == served.request("POST", "/")[0] == 405


def test_the_page_sets_text_only_and_names_no_other_place(served: Any) -> None:
    """No text is ever parsed as HTML."""
    page = {path: served.request("GET", path)[2].decode() for path in ("/", "/page.css", "/page.js", "/icon.svg")}
    assert page["/page.js"].count("textContent") > 5
    for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "DOMParser"):
        assert word not in page["/page.js"]
    whole = "".join(page.values()).replace("http://www.w3.org/2000/svg", "")
    assert "http:" not in whole and "https:" not in whole and "url(" not in whole
    assert "<style" not in page["/"] and " style=" not in page["/"]


def test_other_sites_are_turned_away(served: Any, images: list[Path]) -> None:
    body = images[0].read_bytes()
    own = f"127.0.0.1:{served.port}"
    for name in (own, f"localhost:{served.port}", "LOCALHOST", "[::1]:80"):
        assert served.request("GET", "/api/model", Host=name)[0] == 200, name
    for name in (
        "evil.example",
        f"evil.example:{served.port}",
        "127.0.0.1.evil.example",
        "",
        "[x",
        "0x7f000001",
    ):
        assert served.request("GET", "/api/model", Host=name)[0] == 403, name
    assert served.request("POST", "/api/predict", body, Origin=f"http://{own}")[0] == 200
    for origin in ("http://evil.example", "null", "http://localhost:1", "http://["):
        status, headers, _ = served.request("POST", "/api/predict", body, Origin=origin)
        assert status == 403 and "access-control-allow-origin" not in headers, origin
    status, headers, _ = served.request("OPTIONS", "/api/predict", Origin=f"http://{own}")
    assert status == 405 and "access-control-allow-origin" not in headers


def test_a_body_too_large_is_refused_before_it_is_read(served: Any) -> None:
    with socket.create_connection(("127.0.0.1", served.port), timeout=10) as connection:
        head = "POST /api/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900000000000\r\n\r\n"
        connection.sendall(head.encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 413")
    piece = bytes(1 << 16)
    with socket.create_connection(("127.0.0.1", served.port), timeout=10) as connection:
        head = "POST /api/predict HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        connection.sendall(head.encode())
        for _ in range(200):
            connection.sendall(b"10000\r\n" + piece + b"\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 413") and not served.service.bodies.held
    assert served.request("GET", "/healthz")[0] == 200 and served.service.pending == 0


def test_a_raw_body_is_one_photo(served: Any) -> None:
    status, _, found = served.request("POST", "/api/predict", bytes((1 << 20) + 1))
    assert status == 413 and "a request may hold 1 MB" in found["error"]


def test_a_client_that_disconnects_frees_its_place(served: Any) -> None:
    with socket.create_connection(("127.0.0.1", served.port), timeout=10) as connection:
        connection.sendall(b"POST /api/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000\r\n\r\nabc")
        while not served.service.bodies.held:
            time.sleep(0.01)
    for _ in range(500):
        if not served.service.bodies.held:
            break
        time.sleep(0.01)
    assert (
        not served.service.bodies.held and served.service.pending == 0 and served.request("GET", "/healthz")[0] == 200
    )


def test_invalid_requests(served: Any, images: list[Path]) -> None:
    for body, query, message in (
        (b"", "", "holds no photo"),
        (images[0].read_bytes(), "?top=0", "top must be a number"),
        (images[0].read_bytes(), "?top=many", "top must be a number"),
        (images[0].read_bytes(), "?gradcam=x", "gradcam must be a number"),
    ):
        status, _, found = served.request("POST", f"/api/predict{query}", body)
        assert status == 400 and message in found["error"]
    status, _, found = served.request("POST", "/api/predict", b"--x", Content_Type="multipart/form-data")
    assert status == 400 and found["error"]


def test_the_type_of_a_form_is_compared_without_case(served: Any, images: list[Path]) -> None:
    part = b'--edge\r\nContent-Disposition: form-data; name="photo"; filename="a.png"\r\n\r\n'
    body = part + images[0].read_bytes() + b"\r\n--edge--\r\n"
    _, _, found = served.request("POST", "/api/predict", body, Content_Type="Multipart/Form-Data; boundary=edge")
    assert found["predictions"][0]["file"] == "a.png" and found["predictions"][0]["classes"]


def test_a_full_queue_says_so(serve_with: Any, images: list[Path]) -> None:
    image = (images[0].name, images[0].read_bytes())
    with serve_with(waiting=2) as small:
        assert small.send(image, image)[0] == 200
        small.service.pending = 1  # as if an image were being computed
        assert small.send(image)[0] == 200
        status, headers, found = small.send(image, image)
        assert status == 503 and headers["retry-after"] == "1" and "waiting" in found["error"]
        small.service.pending = 2
        assert small.send(image)[0] == 503 and small.request("GET", "/healthz")[0] == 200
        small.service.pending = 0
        assert small.send(image, image)[0] == 200 and small.service.pending == 0


def test_stopping_finishes_what_is_running(serve_with: Any, images: list[Path]) -> None:
    begun, go = threading.Event(), threading.Event()
    with serve_with() as served, ThreadPoolExecutor(1) as pool:
        compute = served.service.batcher._compute

        def slow(jobs: Any) -> Any:
            begun.set()
            assert go.wait(10)
            return compute(jobs)

        served.service.batcher._compute = slow
        response = pool.submit(served.request, "POST", "/api/predict", images[0].read_bytes())
        assert begun.wait(10)
        served.server.should_exit = True
        time.sleep(0.2)
        go.set()
        status, _, found = response.result(10)
        assert status == 200 and found["predictions"][0]["classes"]
    assert not served.service.batcher.alive
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", served.port), timeout=1).close()


def test_the_heatmap_shows_the_input_of_the_network(served: Any, images: list[Path]) -> None:
    _, _, found = served.request("POST", "/api/predict?gradcam=1&top=1", images[0].read_bytes())
    (info,) = found["predictions"]
    kind, _, data = info["gradcam"].partition(",")
    assert kind == "data:image/jpeg;base64" and len(info["classes"]) == 1
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (64, 64)


def test_low_confidence_gives_abstention(served_classifier: Predictor, images: list[Path]) -> None:
    from flowers_torch.deploy.serve import Limits, Service

    info = dataclasses.replace(served_classifier.info, selective={"curve": [[0.999, 99, 0], [0.1, 200, 100]]})
    classifier = dataclasses.replace(served_classifier, info=info)
    service = Service(classifier, "run", Limits(), max_error=0.02)
    ((prediction, _),) = service.compute([(served_classifier.read(images[0]), False)])
    assert prediction.reason == LOW_CONFIDENCE
    service.close()


def test_metrics_count(serve_with: Any, images: list[Path]) -> None:
    with serve_with() as served:
        served.send(("a.png", images[0].read_bytes()), ("b.png", b"no"))
        served.request("GET", "/nowhere/at/all")
        text = served.request("GET", "/metrics")[2].decode()
    lines = set(text.splitlines())
    assert lines >= {
        'flowers_requests_total{path="/api/predict",status="200"} 1.0',
        'flowers_requests_total{path="other",status="404"} 1.0',
        'flowers_images_total{outcome="predicted"} 1.0',
        'flowers_images_total{outcome="error"} 1.0',
        "flowers_request_seconds_count 1.0",
        "flowers_pending_images 0.0",
    }
    assert "flowers_batch_images_bucket" in text and "process_resident_memory_bytes" in text


def test_it_listens_on_this_machine_only_unless_told() -> None:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    args = parser.parse_args(["run"])
    assert args.host == "127.0.0.1"
    with command.listen(args.host, 0) as listener:
        host, port = listener.getsockname()
        assert host == "127.0.0.1"
        with pytest.raises(ResourceError, match=f"port {port}.*another --port"):
            command.listen("127.0.0.1", port)
    with pytest.raises(UsageError, match="is not a valid address"):
        command.listen("no such host", 0)
    with pytest.raises(UsageError, match="is not a valid port"):
        command.listen("127.0.0.1", 70_000)


def test_names_of_the_machine_are_allowed_on_the_network_only() -> None:
    from starlette.requests import Request

    from flowers_torch.deploy.guard import host_names, refusal

    assert host_names("127.0.0.1") == host_names("::1") == set()
    assert {"0.0.0.0", socket.gethostname()} <= host_names("0.0.0.0")
    for host, is_refused in ((b"photos.example.org:443", False), (b"example.org", True)):
        request = Request({"type": "http", "headers": [(b"host", host)]})
        assert bool(refusal(request, ["Photos.example.org"])) == is_refused


def test_without_the_extra_the_install_line_is_named(monkeypatch: pytest.MonkeyPatch, served_file: Path) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    with pytest.raises(UsageError, match=r'uvicorn.*pip install "flowers-torch\[serve\]"'):
        command.run(parser.parse_args([str(served_file)]))


def start_server(*arguments: str) -> tuple[subprocess.Popen[str], str, int]:
    """Starts the command; returns the process, its output so far and its port."""
    words = [sys.executable, "-m", "flowers_torch.cli", "serve", *arguments, "--port", "0"]
    pipe = subprocess.PIPE
    process = subprocess.Popen(words, stdout=pipe, stderr=subprocess.STDOUT, text=True, cwd=ROOT)
    assert process.stdout is not None
    output = ""
    while "serving" not in output:
        line = process.stdout.readline()
        assert line, output
        output += line
    return process, output, int(output.split("serving")[1].split("/")[2].split(":")[1])


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_command_cleanly(number: int, served_file: Path, images: list[Path]) -> None:
    from urllib.request import urlopen

    process, output, port = start_server(str(served_file), "--host", "0.0.0.0")
    assert "warning: --host 0.0.0.0 opens this server to the network" in output
    address = f"http://127.0.0.1:{port}/api/predict"
    with ThreadPoolExecutor(8) as pool:
        bodies = [images[i % len(images)].read_bytes() for i in range(64)]
        responses = [pool.submit(lambda body: urlopen(address, body).status, body) for body in bodies]
        while sum(response.done() for response in responses) < 8:
            time.sleep(0.01)
        os.kill(process.pid, number)
        rest, _ = process.communicate(timeout=40)
    assert process.returncode == 0 and "Traceback" not in rest and "all requests are answered" in rest
    # Requests before the signal got a response; later ones could not connect.
    for response in responses:
        error = response.exception()
        assert response.result() == 200 if error is None else "refused" in str(error) or "reset" in str(error)


@pytest.mark.slow
def test_difficult_images_do_not_stop_the_server(shared: Path, serve_with: Any, images: list[Path]) -> None:
    """Files of Pillow's tests: crashes, timeouts, decompression bombs, truncated files."""
    files = sorted(path for path in (shared / "data" / "pillow_images").iterdir() if path.is_file())
    assert len(files) > 100
    outcomes = {"predicted": 0, "refused": 0}
    with serve_with() as served:
        for file in files:
            status, _, found = served.send((file.name, file.read_bytes()), query="?gradcam=1")
            assert status == 200, file.name
            (info,) = found["predictions"]
            assert info["file"] == file.name and ("error" in info) != ("classes" in info)
            outcomes["refused" if "error" in info else "predicted"] += 1
        assert served.request("GET", "/healthz")[0] == 200
        assert served.send(("good.png", images[0].read_bytes()))[2]["predictions"][0]["classes"]
    print(outcomes)
    assert min(outcomes.values()) > 40
