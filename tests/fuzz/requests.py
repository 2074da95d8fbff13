"""Requests that no browser would send, to a real server in a process of its own."""

import dataclasses
import http.client
import os
import random
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

from .images import bombs, seeds
from .mutate import PAINT, mutate_bytes
from .sandbox import CONTROL

SECONDS = 10.0  # until a response or the end of the connection, after the client has sent everything
THREADS = 8


@dataclasses.dataclass
class Served:
    """What the server did."""

    responses: Counter[str] = dataclasses.field(default_factory=Counter)  # by status, or "closed"
    faults: Counter[str] = dataclasses.field(default_factory=Counter)
    examples: list[str] = dataclasses.field(default_factory=list)
    before: int = 0  # bytes of memory after the start
    peak: int = 0
    log_bytes: int = 0


def serve_and_attack(count: int, draw: random.Random, run: Path, folder: Path) -> Served:
    """Sends `count` requests from eight threads, checks the server's health now and then, and stops it."""
    found = Served()
    log = folder / "serve.log"
    words = [sys.executable, "-m", "flowers_torch", "serve", str(run), "--port", "0", "--device", "cpu"]
    environment = os.environ | {"FLOWERS_TORCH_CACHE": str(folder / "serve-cache"), "OMP_NUM_THREADS": "1"}
    with log.open("wb") as stream:
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=stream, env=environment)
    try:
        assert process.stdout is not None
        text = ""
        while not (place := re.search(r"http://127\.0\.0\.1:(\d+)", text)):
            line = process.stdout.readline().decode()
            if not line:
                raise RuntimeError(f"the server did not start: {log.read_text()}")
            text += line
        port = int(place[1])
        found.before = _memory(process.pid)
        contents = [*seeds().values(), *bombs().values()]
        lock, left = threading.Lock(), iter(range(count))

        def attack(seed: int) -> None:
            own = random.Random(seed)
            while True:
                with lock:
                    number = next(left, None)
                if number is None:
                    return
                raw = make_request(own, contents)
                kind, response = _send(port, raw, own)
                with lock:
                    found.responses[response] += 1
                    if kind:
                        found.faults[kind] += 1
                        found.examples.append(f"{kind}: {raw[:200]!r}")

        threads = [threading.Thread(target=attack, args=(draw.getrandbits(32),)) for _ in range(THREADS)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            time.sleep(1)
            if process.poll() is not None or not _healthy(port):
                found.faults["not healthy"] += 1
                break
        for thread in threads:
            thread.join(60)
        found.peak = _peak(process.pid)
        process.send_signal(signal.SIGTERM)
        if process.wait(40) != 0:
            found.faults["exit code"] += 1
    except subprocess.TimeoutExpired:
        found.faults["does not stop"] += 1
    finally:
        process.kill()
        process.wait()
    content = log.read_bytes()
    found.log_bytes = len(content)
    found.faults["traceback"] += content.count(b"Traceback")
    found.faults["terminal"] += len(CONTROL.findall(content))
    found.faults += Counter()  # drops zeros
    return found


def make_request(draw: random.Random, contents: list[bytes]) -> bytes:
    """A request of one of ten kinds, from nearly valid to random bytes."""
    photo = draw.choice(contents)
    if draw.random() < 0.5:
        photo = mutate_bytes(photo, draw)
    boundary = draw.choice(("x", "x" * 70, "", "x" * 5000, "\t", '"'))
    name = draw.choice(("rose.jpg", PAINT, "../../etc/passwd", "a" * 10_000, "", '"', "\0", "x\r\nX-Y: z"))
    form = f'--{boundary}\r\nContent-Disposition: form-data; name="photo"; filename="{name}"\r\n\r\n'.encode(
        "utf-8", "surrogatepass"
    )
    body = form * draw.choice((1, 1, 3, 100)) + photo + f"\r\n--{boundary}--\r\n".encode()
    kind = draw.randrange(10)
    media = draw.choice(("multipart/form-data", "Multipart/Form-Data", "image/jpeg", "application/json", ""))
    if kind <= 3:
        head = {"Content-Type": f"{media}; boundary={boundary}" if "orm" in media else media}
        return _request("POST", _target(draw), head, body if "orm" in media else photo)
    if kind == 4:  # mutated as a whole
        head = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
        return mutate_bytes(_request("POST", "/api/predict", head, body), draw)
    if kind == 5:  # false lengths
        length = draw.choice(("0", "-1", "1e3", "99999999999999999999", "5, 6", "0x10", str(len(body) * 2), "\xb2"))
        return _request("POST", "/api/predict", {"Content-Length": length}, body, own_length=False)
    if kind == 6:  # chunks
        sizes = draw.choice((b"5", b"ffffffffffffffff", b"-1", b"5;" + b"x" * 9000, b"zz", b"0", b"5\r\n"))
        head = {"Transfer-Encoding": draw.choice(("chunked", "gzip, chunked", "chunked, chunked"))}
        chunks = sizes + b"\r\n" + photo[:5] + b"\r\n0\r\n\r\n"
        return _request("POST", "/api/predict", head, chunks, own_length=False)
    if kind == 7:  # other methods, targets and headers
        head = {
            draw.choice(("X-A", "Host", "Cookie", "Expect", "Upgrade", "Range")): draw.choice(("x" * 70_000, "\x1b"))
        }
        method = draw.choice(("GET", "HEAD", "PUT", "DELETE", "OPTIONS", "TRACE", "CONNECT", "PRI", "get", "G" * 9000))
        return _request(method, _target(draw), head, b"")
    if kind == 8:
        return draw.randbytes(draw.choice((1, 10, 1000, 100_000)))
    return _request("GET", _target(draw), {f"X-{n}": "y" for n in range(draw.choice((1, 200, 2000)))}, b"")


def _target(draw: random.Random) -> str:
    targets = ("/api/predict", "/api/predict", "/api/predict", "/", "/api/model", "/healthz", "/metrics", "/page.js")
    odd = ("/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "//", "*", "http://x/", "/\x1b[2J", "/" + "a" * 70_000)
    query = ("", "", "?top=5", "?top=-1", "?top=9" + "9" * 5000, "?gradcam=1", "?gradcam=x", "?top=\xb2", "?%00")
    return draw.choice(targets if draw.random() < 0.85 else odd) + draw.choice(query)


def _request(method: str, target: str, head: dict[str, str], body: bytes, own_length: bool = True) -> bytes:
    lines = [f"{method} {target} HTTP/1.1", "Host: 127.0.0.1", "Connection: close"]
    lines += [f"{key}: {value}" for key, value in head.items()]
    if own_length:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("utf-8", "surrogatepass") + body


def _send(port: int, raw: bytes, draw: random.Random) -> tuple[str, str]:
    """The fault, if there is one, and the status or "closed"."""
    with socket.create_connection(("127.0.0.1", port), timeout=SECONDS) as connection:
        response = b""
        try:
            if draw.random() < 0.05:  # the client leaves in the middle
                connection.sendall(raw[: len(raw) // 2])
                return "", "left"
            connection.sendall(raw)
            until, open_ended = time.monotonic() + 3 * SECONDS, time.monotonic() + 2
            while time.monotonic() < until:  # many photos may wait before this one
                if not select.select([connection], [], [], 0.5)[0]:
                    if open_ended and time.monotonic() > open_ended:  # it waits for more, and nothing comes
                        connection.shutdown(socket.SHUT_WR)
                        open_ended = 0.0
                    continue
                chunk = connection.recv(1 << 16)
                if not chunk:
                    break
                response += chunk
            else:
                return "hang", "none"
        except OSError:  # the server closed first, as it may
            return "", "closed"
    status = re.match(rb"HTTP/1\.1 (\d{3})", response)
    if response and not status:
        return "not HTTP", "none"
    number = status[1].decode() if status else "closed"
    return ("status 500" if number == "500" else ""), number


def _healthy(port: int) -> bool:
    """Whether the server responds within ten seconds; also when its queue is full."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().status in (200, 503)
    except OSError:
        return False
    finally:
        connection.close()


def _memory(pid: int) -> int:
    return 1024 * int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1])  # type: ignore[index]


def _peak(pid: int) -> int:
    return 1024 * int(re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1])  # type: ignore[index]
