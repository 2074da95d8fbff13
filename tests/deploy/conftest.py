"""A classifier with names that would harm a page, served on the loopback by a thread of the tests."""

import dataclasses
import http.client
import json
import threading
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from flowers_torch.deploy.predict import Classifier
from flowers_torch.models.classifier import Record, build, save_classifier
from flowers_torch.models.zoo import Preprocessing
from flowers_torch.training.runtime import Runtime

HOSTILE_CLASS = '"><img src=x onerror=window.hacked=1>\x1b[31m\ud800\u202e'
SERVED = Record(
    "test_resnet",
    ("blue", "green", HOSTILE_CLASS),
    Preprocessing(size=64, mean=(0.5,) * 3, std=(0.5,) * 3, crop=0.8),
    temperature=0.7,
)


@dataclasses.dataclass
class Served:
    """A running server with what it serves."""

    service: Any
    server: Any
    port: int

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any, Any]:
        """Status, headers and body of an answer, JSON decoded."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body, {k.replace("_", "-"): v for k, v in headers.items()})
            response = connection.getresponse()
            content = response.read()
        finally:
            connection.close()
        is_json = response.headers["content-type"] == "application/json"
        return response.status, response.headers, json.loads(content) if is_json else content

    def send(self, *photos: tuple[str, bytes], query: str = "") -> tuple[int, Any, Any]:
        """Photos as a browser sends a form."""
        body = b""
        for name, content in photos:
            name = name.replace('"', "%22")
            disposition = f'form-data; name="photo"; filename="{name}"'
            body += f"--edge\r\nContent-Disposition: {disposition}\r\n\r\n".encode() + content + b"\r\n"
        kind = "multipart/form-data; boundary=edge"
        return self.ask("POST", f"/api/predict{query}", body + b"--edge--\r\n", Content_Type=kind)

    @property
    def address(self) -> str:
        return urllib.parse.urlunsplit(("http", f"127.0.0.1:{self.port}", "/", "", ""))


@pytest.fixture(scope="session")
def served_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("served") / "model.safetensors"
    save_classifier(build(SERVED).state_dict(), SERVED, path)
    return path


@contextmanager
def serving(classifier: Classifier, **limits: int) -> Iterator[Served]:
    pytest.importorskip("starlette")
    from flowers_torch.commands.serve import listen, make_server
    from flowers_torch.deploy.serve import Limits, Service, make_app

    service = Service(classifier, "<i>a run</i>", Limits(**limits))
    with listen("127.0.0.1", 0) as listener:
        server = make_server(make_app(service))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        while not server.started and thread.is_alive():
            time.sleep(0.01)
        try:
            yield Served(service, server, listener.getsockname()[1])
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="session")
def served_classifier(served_file: Path) -> Classifier:
    return Classifier.load(served_file, Runtime(torch.device("cpu"), "fp32", "for a test"))


@pytest.fixture(scope="session")
def served(served_classifier: Classifier) -> Iterator[Served]:
    with serving(served_classifier, photo_bytes=1 << 20) as running:
        yield running


@pytest.fixture
def serve_with(served_classifier: Classifier) -> Any:
    """Starts another server, with limits of its own."""
    return lambda **limits: serving(served_classifier, **limits)
