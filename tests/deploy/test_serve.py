"""The server on a real socket: the same answers as prediction, and nothing that brings it down."""

import argparse
import base64
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
from flowers_torch.deploy.classifier import IMPROBABLE, Classifier
from flowers_torch.errors import ResourceError, UsageError

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def photos(photo_folder: Path) -> list[Path]:
    return sorted(photo_folder.rglob("*.png"))[:7]


def probabilities(info: dict[str, Any]) -> list[float]:
    return [found["probability"] for found in info["classes"]]


def test_answers_are_those_of_validation(
    served: Any, photos: list[Path], served_classifier: Classifier
) -> None:
    """A photo alone to the bit; several at once as far as a batch changes the order of sums."""
    for photo in photos[:3]:
        status, _, found = served.ask("POST", "/api/predict?top=3", photo.read_bytes())
        expected = (served_classifier.logits([photo])[0] / 0.7).softmax(0).sort(descending=True).values
        assert status == 200 and probabilities(found["photos"][0]) == expected.tolist()
    _, _, found = served.send(*((photo.name, photo.read_bytes()) for photo in photos))
    expected = (served_classifier.logits(photos) / 0.7).softmax(1).sort(descending=True).values
    assert torch.tensor([probabilities(r) for r in found["photos"]]) == pytest.approx(expected, abs=1e-5)
    assert [info["file"] for info in found["photos"]] == [photo.name for photo in photos]


def test_many_at_once_share_batches_and_none_is_lost(served: Any, photos: list[Path]) -> None:
    before = served.service.meters.sizes._sum.get()
    alone = {p: served.ask("POST", "/api/predict", p.read_bytes())[2]["photos"][0] for p in photos}
    wanted = [photos[i % len(photos)] for i in range(40)]
    with ThreadPoolExecutor(20) as pool:
        found = list(pool.map(lambda p: served.ask("POST", "/api/predict", p.read_bytes()), wanted))
    assert {status for status, _, _ in found} == {200}
    for photo, (_, _, answer) in zip(wanted, found, strict=True):
        assert probabilities(answer["photos"][0]) == pytest.approx(probabilities(alone[photo]), abs=1e-5)
    assert served.service.meters.sizes._sum.get() - before == len(photos) + 40
    assert served.service.held == 0


def bomb() -> bytes:
    """A PNG of 50,000 x 50,000 pixels in a few bytes."""
    chunks = b""
    for content in (b"IHDR" + struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0), b"IDATx", b"IEND"):
        chunks += struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))
    return b"\x89PNG\r\n\x1a\n" + chunks


def test_bad_photos_have_their_reason_and_good_ones_their_answer(served: Any, photos: list[Path]) -> None:
    good = photos[0].read_bytes()
    whole = io.BytesIO()
    Image.effect_noise((80, 80), 50).save(whole, "JPEG")
    bad = {
        "nothing.jpg": (b"", "is empty"),
        "page.jpg": (b"<html>", "not an image of an accepted format"),
        "cut.jpg": (whole.getvalue()[:900], "cut off or damaged"),
        "bomb.png": (bomb(), "too large"),
        "script.jpg": (b"%!PS", "holds PostScript"),
        "large.jpg": (bytes((1 << 20) + 1), "holds more than 1 MB"),
    }
    sent = [("good.png", good), *((name, content) for name, (content, _) in bad.items()), ("also.png", good)]
    status, _, found = served.send(*sent)
    assert status == 200 and [info["file"] for info in found["photos"]] == [name for name, _ in sent]
    for info in found["photos"]:
        if info["file"] in bad:
            assert bad[info["file"]][1] in info["error"] and "classes" not in info
        else:
            assert len(info["classes"]) == 3
    assert served.ask("GET", "/healthz")[0] == 200


def test_pixels_are_counted_by_the_server_s_own_limit(serve_with: Any, photos: list[Path]) -> None:
    with serve_with(pixels=40 * 48 - 1) as small:
        (info,) = small.send(("a.png", photos[0].read_bytes()))[2]["photos"]
    assert "too large: 48x40, at most 1,919 pixels" in info["error"]


def test_hostile_names_come_back_harmless(served: Any, photos: list[Path]) -> None:
    hostile = "../../<svg onload=alert(1)>\x1b[2J\u202e\u009b2Jgnp.png" + "x" * 500
    status, headers, found = served.send((hostile, b"nothing"), (hostile, photos[0].read_bytes()))
    assert status == 200 and headers["content-type"] == "application/json"
    for text in (json.dumps(found, ensure_ascii=False), json.dumps(served.ask("GET", "/api/model")[2])):
        assert not {"\x1b", "\u009b", "\u202e"} & set(text) and "\ud800" not in text and len(text) < 2000
    assert any("onerror=window.hacked=1>\\x1b[31m" in row["class"] for row in found["photos"][1]["classes"])


def test_only_the_page_s_own_files_can_be_reached(served: Any) -> None:
    for path in ("/", "/page.css", "/page.js", "/icon.svg"):
        status, headers, content = served.ask("GET", path)
        assert status == 200 and len(content) > 100 and headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in headers["content-security-policy"]
    for path in (
        "/etc/passwd", "//etc/passwd", "/../page.js", "/..%2f..%2fetc/passwd", "/page.css/../../serve.py",
        "/%2e%2e/%2e%2e/pyproject.toml", "/pyproject.toml", "/page/index.html", "/page.js%00",
        "/file=/etc/passwd", "/..\\page.js", "/docs", "/openapi.json",
    ):  # fmt: skip
        assert served.ask("GET", path)[0] == 404, path
    assert served.ask("GET", "/api/predict")[0] == served.ask("POST", "/")[0] == 405


def test_the_page_sets_text_only_and_names_no_other_place(served: Any) -> None:
    """What the browser tests show of some names holds for all: nothing is ever parsed as HTML."""
    page = {path: served.ask("GET", path)[2].decode() for path in ("/", "/page.css", "/page.js", "/icon.svg")}
    assert page["/page.js"].count("textContent") > 10
    for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "DOMParser"):
        assert word not in page["/page.js"]
    whole = "".join(page.values()).replace("http://www.w3.org/2000/svg", "")
    assert "http:" not in whole and "https:" not in whole and "url(" not in whole
    assert "<style" not in page["/"] and " style=" not in page["/"]


def test_other_sites_are_turned_away(served: Any, photos: list[Path]) -> None:
    body = photos[0].read_bytes()
    own = f"127.0.0.1:{served.port}"
    for name in (own, f"localhost:{served.port}", "LOCALHOST", "[::1]:80"):
        assert served.ask("GET", "/api/model", Host=name)[0] == 200, name
    for name in (
        "evil.example",
        f"evil.example:{served.port}",
        "127.0.0.1.evil.example",
        "",
        "[x",
        "0x7f000001",
    ):
        assert served.ask("GET", "/api/model", Host=name)[0] == 403, name
    assert served.ask("POST", "/api/predict", body, Origin=f"http://{own}")[0] == 200
    for origin in ("http://evil.example", "null", "http://localhost:1", "http://["):
        status, headers, _ = served.ask("POST", "/api/predict", body, Origin=origin)
        assert status == 403 and "access-control-allow-origin" not in headers, origin
    status, headers, _ = served.ask("OPTIONS", "/api/predict", Origin=f"http://{own}")
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
        sent = 0
        try:
            for _ in range(1000):
                connection.sendall(b"10000\r\n" + piece + b"\r\n")
                sent += len(piece)
        except OSError:
            pass
    assert (8 << 20) < sent < 1000 * len(piece)
    assert served.ask("GET", "/healthz")[0] == 200 and served.service.held == 0


def test_who_leaves_halfway_is_forgotten(served: Any) -> None:
    with socket.create_connection(("127.0.0.1", served.port), timeout=10) as connection:
        connection.sendall(
            b"POST /api/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000\r\n\r\nabc"
        )
        while not served.service.held:
            time.sleep(0.01)
    for _ in range(500):
        if not served.service.held:
            break
        time.sleep(0.01)
    assert served.service.held == 0 and served.ask("GET", "/healthz")[0] == 200


def test_what_is_no_request_for_an_answer(served: Any, photos: list[Path]) -> None:
    for body, query, message in (
        (b"", "", "holds no photo"),
        (photos[0].read_bytes(), "?top=0", "top must be a number"),
        (photos[0].read_bytes(), "?top=many", "top must be a number"),
        (photos[0].read_bytes(), "?gradcam=x", "gradcam must be a number"),
    ):
        status, _, found = served.ask("POST", f"/api/predict{query}", body)
        assert status == 400 and message in found["error"]
    status, _, found = served.ask("POST", "/api/predict", b"--x", Content_Type="multipart/form-data")
    assert status == 400 and found["error"]


def test_a_full_queue_says_so(serve_with: Any, photos: list[Path]) -> None:
    photo = (photos[0].name, photos[0].read_bytes())
    with serve_with(waiting=2) as small:
        assert small.send(photo, photo)[0] == 200
        small.service.held = 1  # as if a photo were at work
        assert small.send(photo)[0] == 200
        status, headers, found = small.send(photo, photo)
        assert status == 503 and headers["retry-after"] == "1" and "waiting" in found["error"]
        small.service.held = 2
        assert small.send(photo)[0] == 503 and small.ask("GET", "/healthz")[0] == 200
        small.service.held = 0
        assert small.send(photo, photo)[0] == 200 and small.service.held == 0


def test_stopping_finishes_what_is_running(serve_with: Any, photos: list[Path]) -> None:
    begun, go = threading.Event(), threading.Event()
    with serve_with() as served, ThreadPoolExecutor(1) as pool:
        compute = served.service.batcher._compute

        def slow(jobs: Any) -> Any:
            begun.set()
            assert go.wait(10)
            return compute(jobs)

        served.service.batcher._compute = slow
        answer = pool.submit(served.ask, "POST", "/api/predict", photos[0].read_bytes())
        assert begun.wait(10)
        served.server.should_exit = True
        time.sleep(0.2)
        go.set()
        status, _, found = answer.result(10)
        assert status == 200 and found["photos"][0]["classes"]
    assert not served.service.batcher.alive
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", served.port), timeout=1).close()


def test_the_explanation_is_a_picture_of_what_the_network_sees(served: Any, photos: list[Path]) -> None:
    _, _, found = served.ask("POST", "/api/predict?gradcam=1&top=1", photos[0].read_bytes())
    (info,) = found["photos"]
    kind, _, data = info["gradcam"].partition(",")
    assert kind == "data:image/jpeg;base64" and len(info["classes"]) == 1
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (64, 64)


def test_improbable_answers_are_unsure(served_classifier: Classifier, photos: list[Path]) -> None:
    from flowers_torch.deploy.serve import Job, Limits, Service

    service = Service(served_classifier, "run", Limits(), least=0.999)
    (outcome,) = service.compute([Job(service.read("a.png", photos[0].read_bytes()), False)])
    assert outcome.answer.doubt == IMPROBABLE
    service.close()


def test_metrics_count(serve_with: Any, photos: list[Path]) -> None:
    with serve_with() as served:
        served.send(("a.png", photos[0].read_bytes()), ("b.png", b"no"))
        served.ask("GET", "/nowhere/at/all")
        text = served.ask("GET", "/metrics")[2].decode()
    lines = set(text.splitlines())
    assert lines >= {
        'flowers_requests_total{path="/api/predict",status="200"} 1.0',
        'flowers_requests_total{path="other",status="404"} 1.0',
        'flowers_photos_total{outcome="answered"} 1.0',
        'flowers_photos_total{outcome="error"} 1.0',
        "flowers_request_seconds_count 1.0",
        "flowers_waiting_photos 0.0",
    }
    assert "flowers_batch_photos_bucket" in text and "process_resident_memory_bytes" in text


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
    with pytest.raises(UsageError, match="no address"):
        command.listen("no such host", 0)
    with pytest.raises(UsageError, match="no port"):
        command.listen("127.0.0.1", 70_000)


def test_names_of_the_machine_count_on_the_network_only() -> None:
    from flowers_torch.deploy.guard import Guard, host_names

    assert host_names("127.0.0.1") == host_names("::1") == set()
    assert {"0.0.0.0", socket.gethostname()} <= host_names("0.0.0.0")
    named = Guard(lambda *_: None, ["Photos.example.org"], lambda *_: None)  # type: ignore[arg-type]
    assert named.knows("photos.example.org:443") and not named.knows("example.org")


def test_without_the_extra_the_install_line_is_named(
    monkeypatch: pytest.MonkeyPatch, served_file: Path
) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    with pytest.raises(UsageError, match=r'uvicorn.*pip install "flowers-torch\[serve\]"'):
        command.run(parser.parse_args([str(served_file)]))


def begin(*arguments: str) -> tuple[subprocess.Popen[str], str, int]:
    """The real command as a process of its own, what it printed, and its port."""
    words = [sys.executable, "-m", "flowers_torch.cli", "serve", *arguments, "--port", "0"]
    pipe = subprocess.PIPE
    process = subprocess.Popen(words, stdout=pipe, stderr=subprocess.STDOUT, text=True, cwd=ROOT)
    assert process.stdout is not None
    said = ""
    while "serving" not in said:
        line = process.stdout.readline()
        assert line, said
        said += line
    return process, said, int(said.split("serving")[1].split("/")[2].split(":")[1])


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_command_cleanly(number: int, served_file: Path, photos: list[Path]) -> None:
    from urllib.request import urlopen

    process, said, port = begin(str(served_file), "--host", "0.0.0.0")
    assert "warning: --host 0.0.0.0 lets every machine" in said
    address = f"http://127.0.0.1:{port}/api/predict"
    with ThreadPoolExecutor(8) as pool:
        bodies = [photos[i % len(photos)].read_bytes() for i in range(64)]
        answers = [pool.submit(lambda body: urlopen(address, body).status, body) for body in bodies]
        while sum(answer.done() for answer in answers) < 8:
            time.sleep(0.01)
        os.kill(process.pid, number)
        rest, _ = process.communicate(timeout=40)
    assert process.returncode == 0 and "Traceback" not in rest and "all requests are answered" in rest
    # Those that came before the end have their answer; later ones were not even connected.
    for answer in answers:
        error = answer.exception()
        assert answer.result() == 200 if error is None else "refused" in str(error) or "reset" in str(error)


@pytest.mark.slow
def test_every_difficult_picture_leaves_it_alive(shared: Path, serve_with: Any, photos: list[Path]) -> None:
    """Of Pillow's own tests: crashers, time-outs, bombs, truncated files."""
    files = sorted(path for path in (shared / "data" / "pillow_images").iterdir() if path.is_file())
    assert len(files) > 100
    outcomes = {"answered": 0, "refused": 0}
    with serve_with() as served:
        for file in files:
            status, _, found = served.send((file.name, file.read_bytes()), query="?gradcam=1")
            assert status == 200, file.name
            (info,) = found["photos"]
            assert info["file"] == file.name and ("error" in info) != ("classes" in info)
            outcomes["refused" if "error" in info else "answered"] += 1
        assert served.ask("GET", "/healthz")[0] == 200
        assert served.send(("good.png", photos[0].read_bytes()))[2]["photos"][0]["classes"]
    print(outcomes)
    assert min(outcomes.values()) > 40
