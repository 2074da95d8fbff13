"""`flowers-torch export`: a written file computes what the network does."""

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from flowers_torch.cli import main
from flowers_torch.deploy import export
from flowers_torch.deploy.export import METADATA_FILE, PARITY_IMAGES, compare, export_onnx, export_program
from flowers_torch.deploy.graph import ExportableClassifier
from flowers_torch.deploy.onnx_file import open_onnx, parse_onnx
from flowers_torch.deploy.quantize import QuantizationLoss, outputs_of, require_accuracy
from flowers_torch.errors import ExportError, UsageError
from flowers_torch.evaluation.metrics import fit_temperature
from flowers_torch.evaluation.prediction_sets import fit_sets
from flowers_torch.models.checkpoint import build, load_classifier, save_classifier


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    lines = capsys.readouterr().err.splitlines()
    (line,) = [line for line in lines if line.startswith("flowers-torch: error: ")]
    return line


def eager(model: ExportableClassifier) -> Any:
    """An exported model that computes what `model` does."""

    def run(inputs: Any) -> Any:
        with torch.inference_mode():
            outputs = model(torch.from_numpy(inputs))
        return {name: value.numpy() for name, value in zip(model.outputs, outputs, strict=True)}

    return run


def test_parity_sees_the_worst_photo_of_all_batches(small: Any) -> None:
    model, images = ExportableClassifier(small.network, small.info), small.data.images
    exact = compare(model, eager(model), images)
    assert exact.holds and exact.logits < 1e-5 and exact.images == PARITY_IMAGES
    calls = []

    def wrong(inputs: Any) -> Any:
        calls.append(len(inputs))
        outputs = eager(model)(inputs)
        if len(inputs) == 17:
            outputs["logits"] = outputs["logits"].copy()
            outputs["logits"][16, 2] += 0.5
        return outputs

    off = compare(model, wrong, images)
    assert calls == [1, 2, 17] and off.logits == pytest.approx(0.5, abs=1e-4) and not off.holds
    nan = compare(model, lambda x: {k: v * np.nan for k, v in eager(model)(x).items()}, images)
    assert not nan.holds


def test_a_network_that_exports_wrong_leaves_no_file(
    small: Any, onnx_bytes: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """The graph has other weights."""
    torch.manual_seed(1)
    path = tmp_path / "other.safetensors"
    save_classifier(build(small.info).state_dict(), small.info, path)
    monkeypatch.setattr(export, "to_onnx", lambda model, metadata: onnx_bytes)
    out = tmp_path / "out" / "model.onnx"
    assert main(["export", str(path), "--with-preprocessing", "--out", str(out)]) == 8
    assert "was not written because it would not compute what the network does" in one_line(capsys)
    assert not out.parent.exists()


def test_the_command_writes_what_was_checked(
    small: Any, onnx_bytes: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(export, "to_onnx", lambda model, metadata: onnx_bytes)
    out = tmp_path / "flowers.onnx"
    assert main(["export", str(small.file), "--with-preprocessing", "--out", str(out)]) == 0
    captured = capsys.readouterr()
    assert f"export   {out}, 0." in captured.out and "drawings: 20 photos in batches of 1, 2, 17" in captured.out
    assert "compared on drawings: a weights file alone has no photos" in captured.out
    assert [path.name for path in tmp_path.iterdir()] == ["flowers.onnx"]
    assert open_onnx(out).metadata["parity"]["images"] == 20


@pytest.mark.slow
def test_export_of_network_inputs(small: Any, tmp_path: Path) -> None:
    pytest.importorskip("onnx", reason="needs the extra onnx")
    out = tmp_path / "flowers.onnx"
    assert main(["export", str(small.file), "--out", str(out)]) == 0
    images = torch.randn(3, 3, 32, 32)
    with torch.inference_mode():
        expected = small.network(images)
    model = open_onnx(out)
    assert model.metadata["input"] == "pixel_values"
    np.testing.assert_allclose(model(images.numpy())["logits"], expected.numpy(), atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("with_preprocessing", [False, True])
def test_torch_export(small: Any, tmp_path: Path, with_preprocessing: bool) -> None:
    path = tmp_path / "model.pt2"
    export_program(small.network, small.info, small.data, path, with_preprocessing).write(path)
    files = {METADATA_FILE: ""}
    program = torch.export.load(path, extra_files=files).module()
    assert tuple(json.loads(files[METADATA_FILE])["classes"]) == small.info.classes
    with zipfile.ZipFile(path) as archive:  # without paths of this machine
        assert not any(str(Path(__file__).parents[2]).encode() in archive.read(name) for name in archive.namelist())
    for count in (1, 2, 17):
        shape = (count, 41, 53, 3) if with_preprocessing else (count, 3, 32, 32)
        inputs = torch.randint(0, 256, shape, dtype=torch.uint8) if with_preprocessing else torch.randn(shape)
        with torch.inference_mode():
            expected = ExportableClassifier(small.network, small.info, with_preprocessing)(inputs)
            torch.testing.assert_close(program(inputs), expected)


def test_safetensors(small: Any, tmp_path: Path) -> None:
    out = tmp_path / "copy.safetensors"
    assert main(["export", str(small.file), "--format", "safetensors", "--out", str(out)]) == 0
    network, info = load_classifier(out)
    assert info == small.info
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(network(images), small.network(images))


def test_weights_that_are_not_finite(small: Any, tmp_path: Path, capsys: Any) -> None:
    state = small.network.state_dict()
    state = state | {"head.fc.bias": torch.full_like(state["head.fc.bias"], torch.nan)}
    save_classifier(state, small.info, tmp_path / "nan.safetensors")
    assert main(["export", str(tmp_path / "nan.safetensors")]) == 4
    assert "not finite" in one_line(capsys) and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format", "coreml"], "use onnx, torch-export, safetensors, page"),
        (["--format", "torch-export", "--int8"], "use it with onnx or page"),
        (["--format", "safetensors", "--with-preprocessing"], "use it with onnx or torch-export"),
        (["--runtime", "x"], "use it with page"),
        (["--max-loss", "much"], "is not a valid fraction"),
        (["--int8"], "--int8 needs photos of the run"),
    ],
)
def test_mistakes(arguments: list[str], message: str, small: Any, tmp_path: Path, capsys: Any) -> None:
    pytest.importorskip("onnx", reason="needs the extra onnx")
    out = tmp_path / "x"
    assert main(["export", str(small.file), "--out", str(out), *arguments]) == 2
    assert message in one_line(capsys) and not out.exists()


def test_int8_that_loses_too_much_is_refused() -> None:
    require_accuracy(QuantizationLoss(100, 90, 88, 95), 0.02, "x")
    with pytest.raises(ExportError, match="0.9000 before, 0.8700 after; .*allow it with --max-loss 3.0%"):
        require_accuracy(QuantizationLoss(100, 90, 87, 95), 0.02, "x")


@pytest.mark.slow
def test_int8(small: Any, photo_folder: Path, tmp_path: Path) -> None:
    """A smaller file, nearly the same predictions, and the accuracy on the validation images."""
    files = sorted(photo_folder.rglob("*.png"))
    data = export.VerificationData(small.data.images, "noise", files[::2], files[1::2], [0] * 30)
    path = Path("x.onnx")
    whole = export_onnx(small.network, small.info, data, path, with_preprocessing=True)
    int8 = export_onnx(small.network, small.info, data, path, with_preprocessing=True, int8_max_loss=1)
    assert len(int8.content) < 0.6 * len(whole.content)
    model = parse_onnx(int8.content, path)
    loss = model.metadata["int8"]
    assert loss["images"] == 30 and loss["agree"] >= 25 and any("accuracy on 30" in line for line in int8.lines)
    assert model.session.get_inputs()[0].type == "tensor(uint8)"
    images = np.stack([np.asarray(image.crop((0, 0, 40, 40))) for image in small.data.images])
    whole_metadata = parse_onnx(whole.content, path).metadata
    outputs, expected = model(images), parse_onnx(whole.content, path)(images)
    assert np.abs(outputs["logits"] - expected["logits"]).max() < 0.3 * np.abs(expected["logits"]).max()
    np.testing.assert_allclose(outputs["probabilities"].sum(1), 1, atol=1e-6)
    # What depends on the outputs is the int8 model's own.
    own = outputs_of(model, (np.asarray(Image.open(file).convert("RGB"))[None] for file in data.validation))
    logits, labels = torch.from_numpy(own["logits"]), torch.zeros(30, dtype=torch.long)
    assert model.metadata["temperature"] == pytest.approx(fit_temperature(logits, labels), rel=1e-3)
    assert model.metadata["temperature"] != whole_metadata["temperature"]
    sets, curve = (model.metadata["selective"][name] for name in ("sets", "curve"))
    expected = fit_sets(torch.from_numpy(own["probabilities"]), labels)
    assert sets["images"] == 30 and np.allclose(sets["quantiles"], expected["quantiles"], atol=2e-6)
    assert curve[-1][1] == 30 and "parity" not in model.metadata
    assert int8.lines[0].startswith("float32  noise: ") and "are off by" in int8.lines[1]
    if "ood_distance" in own:
        assert model.metadata["selective"]["ood_threshold"] == pytest.approx(own["ood_distance"].max(), abs=1e-4)


def test_int8_is_refused_before_anything_is_computed(small: Any) -> None:
    from flowers_torch.runs.export import find_verification_data

    with pytest.raises(UsageError, match="leave out --int8"):
        find_verification_data(small.file, int8=True)
