"""The entry points of hubconf.py, through torch.hub."""

import ast
import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from PIL import Image

from flowers_torch.data.augment.per_image import eval_transform
from flowers_torch.data.preprocessing import Preprocessing
from flowers_torch.errors import ModelFileError, ResourceError, UsageError
from flowers_torch.models.checkpoint import ModelInfo, build, save_classifier

REPOSITORY = Path(__file__).parents[1]


def hub_load(name: str, **keywords: Any) -> torch.nn.Module:
    return torch.hub.load(str(REPOSITORY), name, source="local", trust_repo=True, **keywords)


class Checkpoint(NamedTuple):
    file: Path
    sha256: str
    info: ModelInfo
    network: torch.nn.Module


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    preprocessing = Preprocessing(size=32, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7), crop=0.8)
    info = ModelInfo("cifar_resnet", ("daisy", "rose", "tulip"), preprocessing, model_options={"depth": 8})
    torch.manual_seed(0)
    network = build(info).eval()
    file = tmp_path / "run" / "model.safetensors"
    save_classifier(network.state_dict(), info, file)
    return Checkpoint(file, hashlib.sha256(file.read_bytes()).hexdigest(), info, network)


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("FLOWERS_TORCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


NETWORKS = {
    "alexnet": {},
    "cifar10_net": {},
    "cifar_resnet": {},
    "densenet121": {},
    "densenet169": {},
    "densenet201": {},
    "googlenet": {},
    "happy_blocks": {},
    "happy_model": {},
    "inception_v3": {},
    "lenet5": {"in_chans": 3},
    "mobilenet": {"alpha": 0.5},
    "mobilenet_v2": {},
    "nasnet_large": {},
    "nasnet_mobile": {},
    "resnet50": {"lineage": "course", "input_size": 224},
    "resnet101": {},
    "resnet152": {},
    "resnet50v2": {},
    "resnet101v2": {},
    "resnet152v2": {},
    "resnext50": {},
    "squeezenet": {"ceil_mode": False},
    "resnext101": {},
    "small_convnet": {},
    "vgg16": {},
    "vgg19": {},
    "xception": {},
}
SIZES = {"cifar10_net": 32, "cifar_resnet": 32, "happy_blocks": 64, "happy_model": 64, "lenet5": 32}
SIZES |= {"small_convnet": 150}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name: str) -> None:
    size = SIZES.get(name, 224)
    with torch.device("meta"):
        network = hub_load(name, num_classes=4, **NETWORKS[name]).eval()
        assert network(torch.empty(2, 3, size, size)).shape == (2, 4)


def test_entry_points_are_complete_and_documented() -> None:
    module = torch.hub._import_module("hubconf", str(REPOSITORY / "hubconf.py"))
    names = {name for name in dir(module) if callable(getattr(module, name)) and not name.startswith("_")}
    assert names == {*NETWORKS, "flowers_classifier"}
    for name in NETWORKS:
        assert getattr(module, name).__doc__


def test_classifier_computes_what_the_trained_network_does(checkpoint: Checkpoint) -> None:
    loaded = hub_load("flowers_classifier", checkpoint=str(checkpoint.file))
    assert not loaded.training
    assert loaded.classes == ("daisy", "rose", "tulip")
    image = Image.linear_gradient("L").convert("RGB")
    expected = eval_transform(**checkpoint.info.preprocessing.transform_options())(image)
    torch.testing.assert_close(loaded.transform(image), expected)
    with torch.inference_mode():
        assert torch.equal(loaded(expected[None]), checkpoint.network(expected[None]))


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
def test_the_transform_turns_phone_photos_upright(checkpoint: Checkpoint, tmp_path: Path, mode: str) -> None:
    upright = Image.linear_gradient("L").resize((60, 40)).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    transform: Any = hub_load("flowers_classifier", checkpoint=str(checkpoint.file)).transform
    with Image.open(tmp_path / "turned.png") as turned:
        torch.testing.assert_close(transform(turned), transform(upright))
        assert not torch.allclose(transform(turned), transform(upright.rotate(180)), atol=0.1)


def test_classifier_from_a_url_with_its_hash(checkpoint: Checkpoint, own_cache: Path) -> None:
    url = checkpoint.file.as_uri()
    loaded = hub_load("flowers_classifier", checkpoint=url, sha256=checkpoint.sha256.upper())
    assert loaded.classes == checkpoint.info.classes
    cached = own_cache / "hub" / checkpoint.sha256 / "model.safetensors"
    assert cached.is_file()

    checkpoint.file.unlink()  # the second call uses the cache
    hub_load("flowers_classifier", checkpoint=url, sha256=checkpoint.sha256)
    cached.write_bytes(b"damaged")
    with pytest.raises(ResourceError, match="its sha256 is .* expected"):
        hub_load("flowers_classifier", checkpoint=url, sha256=checkpoint.sha256)


def test_run_folder_with_its_hash(checkpoint: Checkpoint) -> None:
    folder = str(checkpoint.file.parent)
    loaded = hub_load("flowers_classifier", checkpoint=folder, sha256=checkpoint.sha256)
    assert loaded.info == checkpoint.info


def test_wrong_hash_of_a_url_leaves_no_file(checkpoint: Checkpoint, own_cache: Path) -> None:
    with pytest.raises(ResourceError, match=f"has sha256 {checkpoint.sha256}, expected {'0' * 64}"):
        hub_load("flowers_classifier", checkpoint=checkpoint.file.as_uri(), sha256="0" * 64)
    assert not [path for path in own_cache.rglob("*") if path.is_file()]


def test_wrong_hash_of_a_file_is_an_error(checkpoint: Checkpoint) -> None:
    with pytest.raises(ModelFileError, match=f"has sha256 {checkpoint.sha256}, expected {'0' * 64}"):
        hub_load("flowers_classifier", checkpoint=str(checkpoint.file), sha256="0" * 64)


@pytest.mark.parametrize(
    ("sha256", "message"),
    [("", "needs a checksum"), ("../../x", "is not a valid sha256"), ("abc", "is not a valid sha256")],
)
def test_url_needs_a_valid_hash(checkpoint: Checkpoint, sha256: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        hub_load("flowers_classifier", checkpoint=checkpoint.file.as_uri(), sha256=sha256)


def test_pickled_code_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "ran"),)

    file = tmp_path / "evil.pth"
    torch.save({"model": Evil()}, file)
    with pytest.raises(ModelFileError, match="holds more than tensors"):
        hub_load("flowers_classifier", checkpoint=str(file))
    assert not (tmp_path / "ran").exists()


def test_hubconf_only_imports_and_defines() -> None:
    docstring, *rest = ast.parse((REPOSITORY / "hubconf.py").read_text()).body
    assert isinstance(docstring, ast.Expr) and isinstance(docstring.value, ast.Constant)
    assert all(isinstance(node, ast.Import | ast.ImportFrom | ast.FunctionDef | ast.Assign) for node in rest)
    (assigned,) = [node for node in rest if isinstance(node, ast.Assign)]
    assert ast.unparse(assigned.targets[0]) == "dependencies"
    assert {"torch", "timm", "safetensors"} <= set(ast.literal_eval(assigned.value))


def test_documented_calls_do_not_ask_for_confirmation() -> None:
    """For a GitHub repository torch.hub asks on stdin, which is an EOFError where stdin is closed."""
    pages = [REPOSITORY / "README.md", REPOSITORY / "hubconf.py", *(REPOSITORY / "docs").glob("*.md")]
    calls = [call for page in pages for call in page.read_text().split("torch.hub.load(")[1:]]
    assert len(calls) >= 3
    for call in calls:
        assert 'source="local"' in call[:200] or "trust_repo=True" in call[:200]


class Canary:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self.path, "w")


@pytest.mark.parametrize("legacy", [False, True])
def test_pickled_code_from_a_url_is_not_run(tmp_path: Path, legacy: bool) -> None:
    """Even if its checksum is given."""
    file, canary = tmp_path / "evil.pth", tmp_path / "canary"
    torch.save({"model": Canary(canary)}, file, _use_new_zipfile_serialization=not legacy)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    with pytest.raises(ModelFileError):
        hub_load("flowers_classifier", checkpoint=file.as_uri(), sha256=digest)
    assert not canary.exists()


def test_the_documented_call_works_without_stdin(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.hub asks for confirmation for a repository on the web, not for a local folder."""
    assert '"flowers_classifier", source="local"' in (REPOSITORY / "docs/torch-hub.md").read_text()

    def no_stdin(*_: object) -> str:
        raise EOFError

    monkeypatch.setattr("builtins.input", no_stdin)
    monkeypatch.setattr(sys, "stdin", None)
    loaded = torch.hub.load(str(REPOSITORY), "flowers_classifier", source="local", checkpoint=str(checkpoint.file))
    assert loaded.classes == checkpoint.info.classes


@pytest.mark.slow
def test_import_opens_no_files() -> None:
    """Only Python's imports open files, and no socket connects."""
    code = """
import sys, torch, torchvision, timm, safetensors.torch
events = []
def watch(event, args):
    if event in ("socket.connect", "os.mkdir", "os.rename", "os.remove"):
        events.append((event, args))
    elif event == "open" and not str(args[0]).endswith((".py", ".pyc", ".so")):
        events.append((event, args))
sys.addaudithook(watch)
sys.dont_write_bytecode = True
import hubconf
print(events)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert done.stdout.strip() == "[]"
