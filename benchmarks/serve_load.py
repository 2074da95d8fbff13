"""Load test of a served model: many concurrent clients on the loopback, each sending request after request.

    python benchmarks/serve_load.py RUN PHOTOS --clients 50 --requests 2000

Starts `flowers-torch serve RUN` as a process of its own, sends photos of the folder PHOTOS in turn, one a
request, and prints requests a second, the median and 99th percentile of their times, how many were lost, the
sizes of the batches and the server's peak memory. For comparison it times the same network without a server:
on photos decoded before, and by `predict`, which decodes them too. Server and clients share the same cores.
"""

import argparse
import contextlib
import http.client
import itertools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from flowers_torch.data.images import is_image_name
from flowers_torch.deploy.predictor import Predictor
from flowers_torch.training.device import choose_runtime

BATCH = 32
ROOT = Path(__file__).resolve().parents[1]


class Cost(NamedTuple):
    """Photos per second, and the processor time of one photo, which does not depend on other programs."""

    rate: float
    milliseconds: float


class Clock:
    """Measures this process from its making on."""

    def __init__(self) -> None:
        self.started = time.perf_counter(), time.process_time()

    def stop(self, images: int) -> Cost:
        """The cost of so many images."""
        wall, own = time.perf_counter() - self.started[0], time.process_time() - self.started[1]
        return Cost(images / wall, 1e3 * own / images)


@contextlib.contextmanager
def server(run: str) -> Iterator[int]:
    """Its port, while it runs."""
    words = [
        sys.executable,
        "-m",
        "flowers_torch.cli",
        "serve",
        run,
        "--port",
        "0",
        "--batch-size",
        str(BATCH),
    ]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        lines = iter(process.stdout or ())
        line = next(line for line in lines if line.startswith("serving"))
        yield int(line.split("/")[2].split(":")[1])
        process.terminate()
        list(lines)
    if process.returncode:
        sys.exit(f"the server ended with {process.returncode}")


def metrics(port: int) -> dict[str, float]:
    """The server's own numbers, those with labels by their whole text."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("GET", "/metrics")
    lines = connection.getresponse().read().decode().splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if line[0] != "#"}


def load(port: int, bodies: list[bytes], clients: int, requests: int) -> tuple[list[float], int, list[float]]:
    """Seconds of each request, how many had no answer, and the server's memory (MiB) after each tenth."""
    numbers, lock = itertools.count(), threading.Lock()
    seconds: list[float] = []
    memory: list[float] = []
    lost = 0

    def client() -> None:
        nonlocal lost
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        while True:
            with lock:
                number = next(numbers)
            if number >= requests:
                return
            started = time.perf_counter()
            try:
                connection.request("POST", "/api/predict", bodies[number % len(bodies)])
                response = connection.getresponse()
                good = response.status == 200 and b'"classes"' in response.read()
            except OSError:
                good = False
                connection.close()
            with lock:
                seconds.append(time.perf_counter() - started)
                lost += not good
            if number % max(1, requests // 10) == 0:
                memory.append(metrics(port)["process_resident_memory_bytes"] / 2**20)

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return seconds, lost, memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run")
    parser.add_argument("photos", type=Path)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--requests", type=int, default=2000)
    args = parser.parse_args()
    files = sorted(path for path in args.photos.rglob("*") if is_image_name(path))[:200]
    bodies = [path.read_bytes() for path in files]

    classifier = Predictor.load(Path(args.run), choose_runtime("auto", "fp32"))
    inputs = torch.zeros(BATCH, 3, *2 * [classifier.info.preprocessing.size])
    classifier.classify(list(inputs))
    passes = 10
    clock = Clock()
    for _ in range(passes):
        classifier.classify(list(inputs))
    bare = clock.stop(passes * BATCH)
    clock = Clock()
    list(classifier.predict(files, batch_size=BATCH))
    predicting = clock.stop(len(files))

    with server(args.run) as port:
        load(port, bodies, args.clients, 2 * args.clients)  # warm
        before, started = metrics(port), time.perf_counter()
        seconds, lost, memory = load(port, bodies, args.clients, args.requests)
        took, after = time.perf_counter() - started, metrics(port)

    def grown(name: str) -> float:
        return after[name] - before[name]

    times = sorted(seconds)
    median, slow = (1e3 * times[round(share * (len(times) - 1))] for share in (0.5, 0.99))
    batches = grown("flowers_batch_images_count")
    served = Cost(args.requests / took, 1e3 * grown("process_cpu_seconds_total") / args.requests)
    print(f"cores    {len(os.sched_getaffinity(0))}, threads of torch {torch.get_num_threads()}")
    for name, cost in (("network", bare), ("predict", predicting), ("served", served)):
        print(f"{name:8} {cost.rate:.1f} photos/s, {cost.milliseconds:.1f} ms of processor time a photo")
    print(f"crowd    {args.clients} clients, {len(seconds)} requests, {lost} lost")
    print(f"times    p50 {median:.0f} ms, p99 {slow:.0f} ms")
    print(f"batches  {batches:.0f}, {grown('flowers_batch_images_sum') / batches:.1f} photos on average")
    print(f"memory   {', '.join(f'{size:.0f}' for size in memory)} MiB")
    if lost:
        sys.exit(1)


if __name__ == "__main__":
    main()
