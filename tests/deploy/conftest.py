"""Fixtures of the deployment tests: a classifier served on the loopback, and a small exported one."""

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

import numpy as np
import pytest
import torch
from PIL import Image

from flowers_torch.data.preprocessing import Preprocessing
from flowers_torch.deploy.export import PARITY_IMAGES, VerificationData, export_onnx
from flowers_torch.deploy.predictor import Predictor
from flowers_torch.evaluation.selective import fit_ood_detector, pack_selective
from flowers_torch.models.checkpoint import ModelInfo, build, load_classifier, save_classifier
from flowers_torch.training.device import Runtime

HOSTILE = ("</script><img src=x onerror=window.hacked=1>", "\u202etulip\x1b[31m", "rose \U0001f339 \ud800")


@dataclasses.dataclass(frozen=True)
class Small:
    """A weights file with its metadata, its network and its verification images."""

    file: Path
    info: ModelInfo
    network: torch.nn.Module
    data: VerificationData


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    torch.manual_seed(0)
    features, labels = torch.randn(8, 64), torch.arange(8) % 2
    detector = fit_ood_detector(features, labels, torch.randn(8, 64))
    info = ModelInfo(
        "cifar_resnet",
        HOSTILE,
        Preprocessing(size=32, mean=(0.5,) * 3, std=(0.5,) * 3, crop=0.8),
        model_options={"depth": 8},
        weights="/a/private/place/secret.h5",
        license="mit",
        temperature=0.5,
        selective=pack_selective([(0.9, 4, 0), (0.4, 10, 2)], detector),
    )
    file = tmp_path_factory.mktemp("small") / "model.safetensors"
    save_classifier(build(info).state_dict(), info, file)
    rng = np.random.default_rng(0)
    images = [
        Image.fromarray(rng.integers(0, 256, (40 + i % 3, 50 - i % 2, 3), dtype=np.uint8)) for i in range(PARITY_IMAGES)
    ]
    return Small(file, info, load_classifier(file)[0], VerificationData(images, "noise"))


@pytest.fixture(scope="session")
def onnx_bytes(small: Small) -> bytes:
    """An .onnx file with preprocessing."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"needs {package}, of the extra onnx")
    return export_onnx(small.network, small.info, small.data, Path("model.onnx"), with_preprocessing=True).content


HOSTILE_CLASS = '"><img src=x onerror=window.hacked=1>\x1b[31m\ud800\u202e'
SERVED = ModelInfo(
    "test_resnet",
    ("blue", "green", HOSTILE_CLASS),
    Preprocessing(size=64, mean=(0.5,) * 3, std=(0.5,) * 3, crop=0.8),
    temperature=0.7,
)


@dataclasses.dataclass
class Served:
    """A running server and its service."""

    service: Any
    server: Any
    port: int

    def request(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any, Any]:
        """Status, headers and body of a response, with JSON decoded."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body, {k.replace("_", "-"): v for k, v in headers.items()})
            response = connection.getresponse()
            content = response.read()
        finally:
            connection.close()
        is_json = response.headers["content-type"] == "application/json"
        return response.status, response.headers, json.loads(content) if is_json else content

    def send(self, *images: tuple[str, bytes], query: str = "") -> tuple[int, Any, Any]:
        """Sends images in a form, as a browser does."""
        body = b""
        for name, content in images:
            name = name.replace('"', "%22")
            disposition = f'form-data; name="photo"; filename="{name}"'
            body += f"--edge\r\nContent-Disposition: {disposition}\r\n\r\n".encode() + content + b"\r\n"
        kind = "multipart/form-data; boundary=edge"
        return self.request("POST", f"/api/predict{query}", body + b"--edge--\r\n", Content_Type=kind)

    @property
    def url(self) -> str:
        return urllib.parse.urlunsplit(("http", f"127.0.0.1:{self.port}", "/", "", ""))


@pytest.fixture(scope="session")
def served_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("served") / "model.safetensors"
    save_classifier(build(SERVED).state_dict(), SERVED, path)
    return path


@contextmanager
def serving(
    classifier: Predictor, connections: int = 256, coverage: float | None = None, **limits: int
) -> Iterator[Served]:
    pytest.importorskip("starlette")
    from flowers_torch.commands.serve import listen, make_server
    from flowers_torch.deploy.serve import Limits, Service, make_app

    service = Service(classifier, "<i>a run</i>", Limits(**limits), coverage=coverage)
    with listen("127.0.0.1", 0) as listener:
        server = make_server(make_app(service), connections)
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
def served_classifier(served_file: Path) -> Predictor:
    return Predictor.load(served_file, Runtime(torch.device("cpu"), "fp32", "for a test"))


@pytest.fixture(scope="module")
def served(served_classifier: Predictor) -> Iterator[Served]:
    with serving(served_classifier, image_bytes=1 << 20) as running:
        yield running


@pytest.fixture
def serve_with(served_classifier: Predictor) -> Any:
    """Starts another server, with the given limits or of another classifier."""
    return lambda classifier=served_classifier, **limits: serving(classifier, **limits)
