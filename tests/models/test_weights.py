"""The weights that training starts from: every choice of --weights and its errors."""

import contextlib
import dataclasses
import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch

from flowers_torch.errors import ModelFileError, ResourceError, UsageError
from flowers_torch.models.checkpoint import ModelInfo, build, save_classifier
from flowers_torch.models.pretrained import fetch_imagenet
from flowers_torch.models.weights import load_weights, plan_weights

ARCH = "test_resnet"


def info(classes: int) -> ModelInfo:
    return ModelInfo(ARCH, tuple(map(str, range(classes))), plan_weights(ARCH, "none").preprocessing)


def test_no_weights_change_nothing() -> None:
    model = build(info(3))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert load_weights(model, ARCH, plan_weights(ARCH, "none")) == "random weights"
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("kind", ["pth", "safetensors", "ours"])
@pytest.mark.parametrize("classes", [3, 10])
def test_a_file_fills_the_backbone_and_a_head_of_the_same_size(tmp_path: Path, kind: str, classes: int) -> None:
    source, model = build(info(10)), build(info(classes))
    path = tmp_path / f"w.{kind}"
    if kind == "pth":
        torch.save({"state_dict": {f"module.{k}": v for k, v in source.state_dict().items()}}, path)
    elif kind == "safetensors":
        safetensors.torch.save_file(source.state_dict(), path)
    else:
        save_classifier(source.state_dict(), info(10), path)
    plan = plan_weights(ARCH, str(path))
    text = load_weights(model, ARCH, plan)
    assert torch.equal(model.conv1[0].weight, source.conv1[0].weight)
    assert text.endswith("head loaded" if classes == 10 else "head newly initialized")
    assert torch.equal(model.fc.weight, source.fc.weight) == (classes == 10)


@pytest.mark.parametrize("hidden", [0, 3])  # 3: a hidden layer as wide as the number of classes
def test_rows_of_the_head_are_copied_by_class_name(tmp_path: Path, hidden: int) -> None:
    before = dataclasses.replace(info(0), classes=("iris", "rose", "tulip"), head_hidden=hidden)
    after = dataclasses.replace(before, classes=("lily", "tulip", "rose", "iris"))
    source, model = build(before), build(after)
    fresh = last_layer(model).weight.clone()
    save_classifier(source.state_dict(), before, tmp_path / "w")
    text = load_weights(model, ARCH, plan_weights(ARCH, str(tmp_path / "w")), after.classes)
    assert text.endswith("head loaded, 3 of its 4 classes known from before")
    for kind in ("weight", "bias"):
        ours, theirs = (getattr(last_layer(network), kind) for network in (model, source))
        assert torch.equal(ours[1:], theirs[[2, 1, 0]])
    assert torch.equal(last_layer(model).weight[0], fresh[0])
    if hidden:
        assert torch.equal(model.fc.hidden.weight, source.fc.hidden.weight)

    others = dataclasses.replace(before, classes=("a", "b", "c"))  # the same number of classes
    unrelated = build(others)
    fresh = last_layer(unrelated).weight.clone()
    load_weights(unrelated, ARCH, plan_weights(ARCH, str(tmp_path / "w")), others.classes)
    assert torch.equal(last_layer(unrelated).weight, fresh)


@pytest.mark.parametrize(("after", "sign"), [(("cat", "dog"), 1), (("dog", "cat"), -1), (("dog", "elk"), 0)])
def test_a_sigmoid_head_is_copied_by_class_name(tmp_path: Path, after: tuple[str, str], sign: int) -> None:
    before = dataclasses.replace(info(0), classes=("cat", "dog"), head="sigmoid")
    source, model = build(before), build(dataclasses.replace(before, classes=after))
    fresh = last_layer(model).weight.clone()
    save_classifier(source.state_dict(), before, tmp_path / "w")
    load_weights(model, ARCH, plan_weights(ARCH, str(tmp_path / "w")), after)
    assert torch.equal(last_layer(model).weight, sign * last_layer(source).weight if sign else fresh)


def last_layer(model: torch.nn.Module) -> torch.nn.Linear:
    return [module for module in model.fc.modules() if isinstance(module, torch.nn.Linear)][-1]


def test_the_error_for_another_network_lists_names(tmp_path: Path) -> None:
    torch.save(timm.create_model("test_efficientnet").state_dict(), tmp_path / "w.pth")
    model = build(info(3))
    before = model.conv1[0].weight.clone()
    with pytest.raises(ModelFileError, match=r"missing \(.*unexpected \(conv_stem"):
        load_weights(model, ARCH, plan_weights(ARCH, str(tmp_path / "w.pth")))
    assert torch.equal(model.conv1[0].weight, before)


def test_invalid_choices(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--arch tf_efficientnet_lite0"):
        plan_weights("inception_v3", "offline")
    with pytest.raises(ModelFileError, match="no weights file"):
        plan_weights("inception_v3", "imagnet")
    with pytest.raises(UsageError, match="no network is called 'inception_v4x'.*inception_v4"):
        plan_weights("inception_v4x", "none")


# Fetches the weights and reports for each line that it reads.
FETCH = """
import json, sys, torch
from flowers_torch.errors import FlowersError
from flowers_torch.models.pretrained import fetch_imagenet
from flowers_torch.models.weights import load_weights, plan_weights
from flowers_torch.models.checkpoint import ModelInfo, build
for _ in sys.stdin:
    try:
        path = fetch_imagenet("test_resnet")
        plan = plan_weights("test_resnet", "imagenet")
        model = build(ModelInfo("test_resnet", ("a", "b"), plan.preprocessing))
        report = load_weights(model, "test_resnet", plan), plan.license
        torch.save(model.conv1[0].weight, sys.argv[1])
    except FlowersError as error:
        report = error.exit_code, str(error)
    print(json.dumps(report), flush=True)
"""


@contextlib.contextmanager
def hub_client(home: Path, endpoint: str) -> Iterator[Callable[[], list[Any]]]:
    """Reports of FETCH in a new process, because the hub's client reads its address on import."""
    hub = {"HF_HOME": str(home), "HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    environment = {**os.environ, **hub, "FLOWERS_TORCH_CACHE": str(home)}
    command, root = [sys.executable, "-c", FETCH, str(home / "out.pt")], Path(__file__).parent.parent.parent
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=environment, cwd=root, stdin=pipe, stdout=pipe, text=True) as process:

        def fetch() -> list[Any]:
            assert process.stdin and process.stdout
            print(file=process.stdin, flush=True)
            report: list[Any] = json.loads(process.stdout.readline())
            return report

        yield fetch
        assert process.stdin
        process.stdin.close()
    assert process.returncode == 0


def test_imagenet_weights_without_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    what = (
        "^cannot fetch ImageNet weights for test_resnet from http://127.0.0.1:9/timm/test_resnet.*--weights offline.*$"
    )
    with pytest.raises(ResourceError, match=what):
        fetch_imagenet("test_resnet")


def test_imagenet_weights_from_a_hub(tmp_path: Path) -> None:
    torch.manual_seed(5)
    original = timm.create_model(ARCH)
    content = safetensors.torch.save(original.state_dict())
    digest, requests = hashlib.sha256(content).hexdigest(), list[str]()

    class Hub(http.server.BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            requests.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("ETag", f'"{digest}"')
            self.send_header("X-Repo-Commit", "0" * 40)
            self.end_headers()

        def do_GET(self) -> None:
            self.do_HEAD()
            self.wfile.write(json.dumps({}).encode() if "/api/" in self.path else content)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server, contextlib.ExitStack() as stack:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        stack.callback(thread.join)
        stack.callback(server.shutdown)
        fetch = stack.enter_context(hub_client(tmp_path, f"http://127.0.0.1:{server.server_port}"))
        loaded, license_name = fetch()
        assert "head newly initialized" in loaded and "apache-2.0" in license_name
        assert torch.equal(torch.load(tmp_path / "out.pt", weights_only=True), original.conv1[0].weight)
        # From here on the cached file is used, unless it is damaged.
        requests.clear()
        assert fetch() == [loaded, license_name]
        (blob,) = tmp_path.rglob(digest)
        blob.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        code, text = fetch()
        assert code == 6 and "is damaged: its sha256 is" in text and not requests
