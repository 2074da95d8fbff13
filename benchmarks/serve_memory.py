"""Memory of a served model under attack, beside the bound that docs/serve.md states.

    python benchmarks/serve_memory.py RUN

Starts `flowers-torch serve RUN` once for each attack and sends 64 photos. Prints the server's peak memory (VmHWM)
then, how much the attack adds, its bound, how long an honest request takes at most during the attack, and the bytes of
the log. The last attack is an honest client: a photo of 10 MB that takes 40 s to arrive. Needs Linux.
"""

import argparse
import contextlib
import functools
import http.client
import io
import re
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
MB = 1 << 20


@contextlib.contextmanager
def server(run: str, log: Path) -> Iterator[tuple[int, int]]:
    """Its port and process, while it runs."""
    words = [sys.executable, "-m", "flowers_torch.cli", "serve", run, "--port", "0", "--device", "cpu"]
    with (
        log.open("wb") as stream,
        subprocess.Popen(words, stdout=subprocess.PIPE, stderr=stream, text=True, cwd=ROOT) as process,
    ):
        line = next(line for line in process.stdout or () if line.startswith("serving"))
        yield int(line.split("/")[2].split(":")[1]), process.pid
        process.terminate()
    if process.returncode:
        sys.exit(f"the server ended with {process.returncode}")


def memory(pid: int, kind: str) -> int:
    found = re.search(rf"{kind}:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) // 1024 if found else 0


def image_bytes(mode: str, side: int, kind: str, **options: bool) -> bytes:
    file = io.BytesIO()
    Image.new(mode, (side, side)).save(file, kind, **options)
    return file.getvalue()


def post(port: int, body: bytes) -> str:
    """The status of a request, or what the prediction says."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    try:
        connection.request("POST", "/api/predict", body)
        response = connection.getresponse()
        text = response.read().decode()
    except OSError:
        return "closed"
    finally:
        connection.close()
    return "too large" if "too large" in text else str(response.status)


def together(count: int, port: int, body: bytes) -> Counter[str]:
    """The statuses of `count` requests at the same time."""
    found: Counter[str] = Counter()
    threads = [threading.Thread(target=lambda: found.update([post(port, body)])) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def half_open(port: int) -> Counter[str]:
    """300 connections that send half a request: half of them half of the headers, half of them half of a body."""
    heads = (b"GET / HTTP/1.1\r\nX-A: " + b"x" * 16_000, b"POST /api/predict HTTP/1.1\r\nHost: localhost\r\n")
    length = b"Content-Length: 10000000\r\n\r\n" + bytes(60_000)
    with contextlib.ExitStack() as stack:
        for number in range(300):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30))
            with contextlib.suppress(OSError):
                connection.sendall(heads[0] if number % 2 else heads[1] + length)
        time.sleep(5)
    return Counter(connections=300)


def slow_phone(port: int) -> Counter[str]:
    """10 MB in 40 s."""
    body = image_bytes("RGB", 1000, "PNG")
    body = body + bytes(10 * MB - len(body))  # a PNG may be followed by anything
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(
            f"POST /api/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        )
        for start in range(0, len(body), len(body) // 160):
            connection.sendall(body[start : start + len(body) // 160])
            time.sleep(0.25)
        return Counter([connection.recv(1000).split()[1].decode()])


def measure(run: str, name: str, bound: int, attack: Callable[[int], Counter[str]], log: Path) -> None:
    """Prints the row of an attack, during which an honest client sends a photo again and again."""
    honest, done, found = image_bytes("RGB", 300, "JPEG"), threading.Event(), Counter[str]()
    slowest = 0.0
    with server(run, log) as (port, pid):
        together(64, port, honest)  # a full batch
        before = memory(pid, "VmHWM")

        def work() -> None:
            found.update(attack(port))
            done.set()

        thread = threading.Thread(target=work)
        thread.start()
        answers: Counter[str] = Counter()
        while not done.wait(0.2):
            started = time.monotonic()
            answers[post(port, honest)] += 1
            slowest = max(slowest, time.monotonic() - started)
        thread.join()
        peak = memory(pid, "VmHWM")
    row = (name, before, peak - before, bound, dict(found), dict(answers), f"{slowest:.1f}", log.stat().st_size)
    print("| " + " | ".join(map(str, row)) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run")
    parser.add_argument("--only", default="", help="attacks whose name contains this")
    parser.add_argument("--log", type=Path, default=Path("serve_memory.log"))
    args = parser.parse_args()
    rgba, cmyk = functools.partial(image_bytes, "RGBA"), functools.partial(image_bytes, "CMYK")
    attacks: dict[str, tuple[int, Callable[[int], Counter[str]]]] = {
        "300 half-open connections": (128, half_open),
        "100 bodies of 10 MB": (640, lambda port: together(100, port, bytes(10 * MB))),
        "50 PNG bombs, 9400 x 9400 RGBA": (960, lambda port: together(50, port, rgba(9400, "PNG"))),
        "50 PNG, 5400 x 5400 RGBA": (960, lambda port: together(50, port, rgba(5400, "PNG"))),
        "50 WebP, 5400 x 5400 RGBA": (960, lambda port: together(50, port, rgba(5400, "WEBP", lossless=True))),
        "8 progressive JPEG, 10900 x 10900 CMYK": (
            960,
            lambda port: together(8, port, cmyk(10_900, "JPEG", progressive=True)),
        ),
        "50 PNG, 1900 x 1900 RGBA": (960 + 480, lambda port: together(50, port, rgba(1900, "PNG"))),
        "a photo of 10 MB in 40 s": (640, slow_phone),
    }
    print(
        "| attack | before, MB | more at the peak, MB | bound, MB | its answers | honest answers | slowest, s | log |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name, (bound, attack) in attacks.items():
        if args.only in name:
            measure(args.run, name, bound, attack, args.log)


if __name__ == "__main__":
    main()
