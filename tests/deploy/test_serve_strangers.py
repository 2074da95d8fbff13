"""The server's bounds: no client, slow or hostile, takes it away from the others or fills its memory, disk or log."""

import contextlib
import io
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("starlette")

from flowers_torch.commands.serve import make_server
from flowers_torch.data import images
from flowers_torch.deploy import guard

HALF = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"
CHUNKED = b"POST /healthz HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.fixture(scope="module")
def image(photo_folder: Path) -> bytes:
    return sorted(photo_folder.rglob("*.png"))[0].read_bytes()


def connect(served: Any, content: bytes = b"") -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", served.port), timeout=10)
    connection.sendall(content)
    return connection


def head_of(size: int) -> bytes:
    return f"POST /api/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {size}\r\n\r\n".encode()


def is_closed(connection: socket.socket, seconds: float = 5) -> bool:
    connection.settimeout(seconds)
    try:
        while connection.recv(1 << 16):
            pass
        return True
    except TimeoutError:
        return False
    except OSError:
        return True


def wait_until(condition: Callable[[], Any], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_half_a_header_has_a_time_limit(serve_with: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a new connection, while its bytes trickle, and after a response."""
    monkeypatch.setattr(guard, "HEADER_SECONDS", 0.5)
    with serve_with() as served, contextlib.ExitStack() as stack:
        kept = stack.enter_context(connect(served, HALF + b"\r\n"))
        assert kept.recv(10_000).startswith(b"HTTP/1.1 200")
        kept.sendall(HALF)
        nothing, trickling = (stack.enter_context(connect(served, part)) for part in (b"", HALF))
        with contextlib.suppress(OSError):
            for _ in range(20):
                trickling.sendall(b"X")
                time.sleep(0.1)
        assert all(is_closed(each) for each in (kept, nothing, trickling))


def test_a_slow_body_may_take_longer_than_a_header_but_not_forever(
    serve_with: Any, monkeypatch: pytest.MonkeyPatch, image: bytes
) -> None:
    monkeypatch.setattr(guard, "HEADER_SECONDS", 0.2)
    monkeypatch.setattr(guard, "BODY_SECONDS", 1.5)
    with serve_with() as served:
        with connect(served, head_of(len(image))) as phone:
            for start in range(0, len(image), len(image) // 10):
                phone.sendall(image[start : start + len(image) // 10])
                time.sleep(0.05)
            assert phone.recv(10_000).startswith(b"HTTP/1.1 200")
        with connect(served, head_of(1000) + b"x") as stopped:
            stopped.settimeout(6)
            assert stopped.recv(10_000).startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize("bound", ["SEND_SECONDS", "UNSENT_BYTES"])
def test_a_client_that_takes_no_response_is_left(serve_with: Any, monkeypatch: pytest.MonkeyPatch, bound: str) -> None:
    monkeypatch.setattr(guard, bound, 0.5)
    with serve_with() as served, socket.socket() as greedy:
        greedy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        greedy.connect(("127.0.0.1", served.port))
        greedy.settimeout(1)
        with contextlib.suppress(OSError):
            greedy.sendall(b"GET /page.js HTTP/1.1\r\nHost: localhost\r\n\r\n" * 5000)
        wait_until(lambda: served.server.server_state.connections)
        wait_until(lambda: not served.server.server_state.connections, 8)


def test_half_open_connections_do_not_shut_out_others(serve_with: Any, image: bytes) -> None:
    """They give way, the oldest first; a request that is being answered does not."""
    begun, go = threading.Event(), threading.Event()
    with serve_with(connections=5) as served, ThreadPoolExecutor(1) as pool, contextlib.ExitStack() as stack:
        compute = served.service.batcher._compute

        def slow(jobs: Any) -> Any:
            begun.set()
            assert go.wait(20)
            return compute(jobs)

        served.service.batcher._compute = slow
        running = pool.submit(served.request, "POST", "/api/predict", image)
        assert begun.wait(10)
        half_open = [stack.enter_context(connect(served, part)) for part in (HALF, head_of(100)) for _ in range(10)]
        for _ in range(3):
            assert served.request("GET", "/healthz")[0] == 200
        assert len(served.server.server_state.connections) <= 5
        assert is_closed(half_open[0], 1) and not is_closed(half_open[-1], 0.2)
        go.set()
        assert running.result(20)[0] == 200


def test_a_request_with_very_many_headers_is_dropped(served: Any) -> None:
    for count, dropped in ((guard.MAX_HEADERS - 1, False), (guard.MAX_HEADERS, True)):
        with connect(served, HALF + b"a:b\r\n" * count + b"\r\n") as connection:
            assert is_closed(connection, 5 if dropped else 0.3) == dropped


def test_bytes_that_are_not_http_leave_no_trace_in_the_log(serve_with: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with serve_with() as served:
        for content in (b"\x16\x03\x01", b"GET\r\n\r\n", HALF + b"Upgrade: websocket\r\nConnection: upgrade\r\n\r\n"):
            with connect(served, content) as connection:
                connection.recv(100)
        with connect(served, CHUNKED) as connection:
            connection.recv(1000)
            connection.sendall(b"zz\r\n")  # invalid, and too late for a response
            assert is_closed(connection)
    assert capsys.readouterr().err == ""


def test_errors_are_logged_once_a_minute(serve_with: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with serve_with() as served:
        served.service.page = {"classes": {object()}}  # cannot become JSON
        assert {served.request("GET", "/api/model")[0] for _ in range(5)} == {500}
    assert capsys.readouterr().err.count("Exception in ASGI application") == 1


def test_the_oldest_of_too_many_bodies_gives_way(serve_with: Any, image: bytes) -> None:
    with serve_with(image_bytes=1 << 16) as served, contextlib.ExitStack() as stack:
        bodies = served.service.bodies
        assert bodies.max_bytes == 32 << 16
        slow = [stack.enter_context(connect(served, head_of(1 << 16) + bytes(65_000))) for _ in range(40)]
        wait_until(lambda: sum(each.size for each in tuple(bodies.held)) > 31 * 65_000)
        assert slow[0].recv(10_000).startswith(b"HTTP/1.1 503")
        assert served.request("POST", "/api/predict", image)[0] == 200
        assert sum(each.size for each in tuple(bodies.held)) <= bodies.max_bytes
        assert not is_closed(slow[-1], 0.2)


def test_photos_are_decoded_within_the_limit_of_one(
    serve_with: Any, image: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode, busy, most = images._decode_opened, [], []

    def counted(*arguments: Any) -> Any:
        busy.append(1)
        most.append(len(busy))
        time.sleep(0.05)
        busy.pop()
        return decode(*arguments)

    monkeypatch.setattr(images, "_decode_opened", counted)
    with serve_with(pixels=48 * 40) as served:
        served.service.readers = ThreadPoolExecutor(4)
        assert served.send(*[("a.png", image)] * 8)[0] == 200
    assert max(most) == 1 and len(most) == 8


def test_forms_are_not_written_to_the_disk(serve_with: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.TemporaryFile", None)
    file = io.BytesIO()
    Image.effect_noise((1500, 1500), 99).save(file, "PNG")
    assert len(file.getvalue()) > 1 << 20
    with serve_with() as served:
        assert "classes" in served.send(("a.png", file.getvalue()))[2]["predictions"][0]


def test_stopping_answers_an_upload_and_refuses_new_requests(serve_with: Any, image: bytes) -> None:
    with serve_with() as served:
        with connect(served, head_of(len(image)) + image[:50]) as upload, connect(served, HALF) as half:
            wait_until(lambda: served.service.bodies.held)
            served.server.should_exit = True
            assert is_closed(half, 2)
            with pytest.raises(OSError):
                connect(served).close()
            upload.sendall(image[50:])
            assert upload.recv(10_000).startswith(b"HTTP/1.1 200")
            assert is_closed(upload, 2)


def test_fewer_connections_where_the_system_allows_few_files(monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource")
    wanted = []
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: wanted.append(limits))
    for limits, connections in (((60, 100), 50), ((60, 10_000), 256), ((4000, 10_000), 256)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, limits=limits: limits)
        assert make_server(None).config.limit_concurrency == connections
    assert wanted == [(100, 100), (768, 10_000), (4000, 10_000)]
