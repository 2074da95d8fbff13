"""ONNX files: complete in one file, with metadata, and validated when opened."""

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flowers_torch.cli import main
from flowers_torch.data.preprocessing import Preprocessing
from flowers_torch.deploy.graph import ExportableClassifier
from flowers_torch.deploy.onnx_file import attach_metadata, export_metadata, need, open_onnx, parse_onnx, trace
from flowers_torch.errors import ExportError, ModelFileError, UsageError


def test_a_lone_file_is_complete(onnx_bytes: bytes, small: Any, tmp_path: Path) -> None:
    """No weights are in a second file."""
    path = tmp_path / "alone.onnx"
    path.write_bytes(onnx_bytes)
    model = open_onnx(path, threads=1)
    images = np.stack([np.asarray(image.crop((0, 0, 40, 40))) for image in small.data.images[:2]])
    found = model(images)
    with torch.inference_mode():
        expected = ExportableClassifier(small.network, small.info, True)(torch.from_numpy(images))
    assert list(found) == ["logits", "probabilities", "ood_distance"]
    for value, wanted in zip(found.values(), expected, strict=True):
        np.testing.assert_allclose(value, wanted.numpy(), atol=2e-2)


def test_the_page_s_own_lines_run(
    onnx_bytes: bytes, small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "export.md").read_text(encoding="utf-8")
    code = page.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    Path("model.onnx").write_bytes(
        attach_metadata(onnx_bytes, export_metadata(small.info, True) | {"classes": ["a"] * 3})
    )
    small.data.images[0].save("photo.jpg")
    exec(code, {})
    name, probability = capsys.readouterr().out.split()
    assert name == "a" and 1 / 3 < float(probability) <= 1


@pytest.mark.parametrize("count", [1, 2, 17])
@pytest.mark.parametrize(("height", "width"), [(40, 50), (64, 33), (200, 20)])
def test_any_number_of_photos_of_any_size(onnx_bytes: bytes, count: int, height: int, width: int) -> None:
    model = parse_onnx(onnx_bytes, Path("x.onnx"), threads=1)
    images = np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)
    together = model(images)["logits"]
    assert together.shape == (count, 3)
    np.testing.assert_allclose(together[-1:], model(images[-1:])["logits"], atol=1e-4)


def test_the_metadata_say_all_that_is_needed(onnx_bytes: bytes, small: Any) -> None:
    found = parse_onnx(onnx_bytes, Path("x.onnx")).metadata
    assert tuple(found["classes"]) == small.info.classes
    assert Preprocessing.from_dict(found["preprocessing"]) == small.info.preprocessing
    assert found["temperature"] == 0.5 and found["input"] == "images"
    assert found["selective"]["curve"] == [[0.9, 4, 0], [0.4, 10, 2]]
    assert found["selective"]["ood_threshold"] == small.info.selective["ood_detector"]["threshold"]
    assert found["parity"]["images"] == 20 and found["weights"] == "secret.h5" and found["license"] == "mit"
    assert "\\ud800" in json.dumps(found["classes"])  # stored as it is, though not valid UTF-8
    assert b"/a/private/place" not in onnx_bytes and str(Path(__file__).parents[2]).encode() not in onnx_bytes


def test_cut_and_altered_files(onnx_bytes: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    for content in (
        b"",
        onnx_bytes[:100],
        onnx_bytes[: len(onnx_bytes) // 2],
        onnx_bytes[:-1],
        b"\x08" * 4096,
    ):
        path.write_bytes(content)
        with pytest.raises(ModelFileError, match="model.onnx is not a valid .onnx file"):
            open_onnx(path)
    with pytest.raises(ModelFileError, match="No such file"):
        open_onnx(tmp_path / "nothing.onnx")


@pytest.mark.parametrize("location", ["../../etc/passwd", "/etc/passwd", "weights.bin"])
def test_weights_outside_of_the_file_are_refused(onnx_bytes: bytes, location: str) -> None:
    onnx = need("onnx")
    model = onnx.load_model_from_string(onnx_bytes)
    weights = model.graph.initializer[0]
    weights.ClearField("raw_data")
    weights.data_location = onnx.TensorProto.EXTERNAL
    weights.external_data.add(key="location", value=location)
    with pytest.raises(ModelFileError, match=f"refers to the file {location}"):
        parse_onnx(model.SerializeToString(), Path("x.onnx"))


def test_weights_outside_are_found_in_constants_and_functions(onnx_bytes: bytes) -> None:
    onnx = need("onnx")
    model = onnx.load_model_from_string(onnx_bytes)
    tensor = onnx.TensorProto(data_location=onnx.TensorProto.EXTERNAL)
    node = onnx.helper.make_node("Constant", [], ["c"], value=tensor)
    model.functions.add(name="f", domain="d").node.append(node)
    with pytest.raises(ModelFileError, match="refers to the file"):
        parse_onnx(model.SerializeToString(), Path("x.onnx"))


def test_files_of_other_origin_are_refused(onnx_bytes: bytes, small: Any) -> None:
    metadata = export_metadata(small.info, with_preprocessing=True)
    del metadata["temperature"]
    with pytest.raises(ModelFileError, match="temperature is None"):
        parse_onnx(attach_metadata(onnx_bytes, metadata), Path("x.onnx"))


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named_with_its_install_line(
    package: str, small: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UsageError, match=f'ONNX needs {package}; fix: pip install "flowers-torch'):
        need(package)
    assert main(["export", str(small.file)]) == 2
    assert 'pip install "flowers-torch[onnx]"' in capsys.readouterr().err
    assert not (small.file.parent / "exported").exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("classes", value) for value in (None, [], ["a", "a"], "ab", [1, 2], {"a": 1})),
        *(("temperature", value) for value in (0, -1, "1", float("nan"), 10**400)),
        *(("format", "1"), ("input", "x"), ("preprocessing", {}), ("selective", {"curve": [[]]}), ("license", [1])),
    ],
)
def test_metadata_have_types_and_ranges(onnx_bytes: bytes, small: Any, key: str, value: object) -> None:
    content = attach_metadata(onnx_bytes, export_metadata(small.info, with_preprocessing=True) | {key: value})
    with pytest.raises(ModelFileError, match="x.onnx is not a valid .onnx file of this package: "):
        parse_onnx(content, Path("x.onnx"))


@pytest.mark.needs("pipes")
def test_other_kinds_of_files_are_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.onnx")
    for path, reason in ((tmp_path / "model.onnx", "not a regular file"), (tmp_path, "a folder")):
        with pytest.raises(ModelFileError, match=reason):
            open_onnx(path)


class Branching(torch.nn.Module):
    """Which layers it runs depends on its input."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = torch.nn.Linear(3, 3)

    def get_classifier(self) -> torch.nn.Module:
        return self.fc

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        means = images.mean((2, 3))
        logits: torch.Tensor = self.fc(-means if means.sum() > 0 else means)
        return logits


def test_a_network_that_cannot_be_traced_is_named(small: Any) -> None:
    exportable = ExportableClassifier(Branching(), dataclasses.replace(small.info, selective={})).eval()
    with pytest.raises(ExportError, match="Branching cannot be exported: .*fix: use --format safetensors"):
        trace(exportable)
