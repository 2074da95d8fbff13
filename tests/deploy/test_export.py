"""`flowers-torch export`: what is written answers as the network does, or is not written."""

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flowers_torch.cli import main
from flowers_torch.deploy import export
from flowers_torch.deploy.export import METADATA_FILE, make_onnx, make_program
from flowers_torch.deploy.graph import ExportableClassifier
from flowers_torch.deploy.onnx_file import open_onnx, parse_onnx
from flowers_torch.deploy.parity import PHOTOS, compare
from flowers_torch.deploy.quantize import Cost, require_accuracy
from flowers_torch.errors import ExportError, UsageError
from flowers_torch.models.checkpoint import build, load_classifier, save_classifier


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    lines = capsys.readouterr().err.splitlines()
    (line,) = [line for line in lines if line.startswith("flowers-torch: error: ")]
    return line


def eager(answers: ExportableClassifier) -> Any:
    """A model that computes what `answers` does."""

    def run(inputs: Any) -> Any:
        with torch.inference_mode():
            outputs = answers(torch.from_numpy(inputs))
        return {name: value.numpy() for name, value in zip(answers.outputs, outputs, strict=True)}

    return run


def test_parity_sees_the_worst_photo_of_all_batches(small: Any) -> None:
    answers, photos = ExportableClassifier(small.network, small.info), small.trial.photos
    exact = compare(answers, eager(answers), photos)
    assert exact.holds and exact.logits < 1e-5 and exact.photos == PHOTOS
    calls = []

    def wrong(inputs: Any) -> Any:
        calls.append(len(inputs))
        outputs = eager(answers)(inputs)
        if len(inputs) == 17:
            outputs["logits"] = outputs["logits"].copy()
            outputs["logits"][16, 2] += 0.5
        return outputs

    off = compare(answers, wrong, photos)
    assert calls == [1, 2, 17] and off.logits == pytest.approx(0.5, abs=1e-4) and not off.holds
    nan = compare(
        answers, lambda x: {k: v * np.nan for k, v in eager(answers)(x).items()}, small.trial.photos
    )
    assert not nan.holds


def test_a_network_that_exports_wrong_leaves_no_file(
    small: Any, onnx_bytes: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """The graph is that of other weights."""
    torch.manual_seed(1)
    path = tmp_path / "other.safetensors"
    save_classifier(build(small.info).state_dict(), small.info, path)
    monkeypatch.setattr(export, "to_onnx", lambda answers, metadata: onnx_bytes)
    out = tmp_path / "out" / "model.onnx"
    assert main(["export", str(path), "--with-preprocessing", "--out", str(out)]) == 8
    assert "was not written, it would not compute what the network does" in one_line(capsys)
    assert not out.parent.exists()


def test_the_command_writes_what_was_checked(
    small: Any, onnx_bytes: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(export, "to_onnx", lambda answers, metadata: onnx_bytes)
    out = tmp_path / "flowers.onnx"
    assert main(["export", str(small.file), "--with-preprocessing", "--out", str(out)]) == 0
    captured = capsys.readouterr()
    assert (
        f"export   {out}, 0." in captured.out and "drawings: 20 photos in batches of 1, 2, 17" in captured.out
    )
    assert "compared on drawings: a weights file alone has no photos" in captured.err
    assert [path.name for path in tmp_path.iterdir()] == ["flowers.onnx"]
    assert open_onnx(out).metadata["check"]["photos"] == 20


@pytest.mark.slow
def test_export_of_network_inputs(small: Any, tmp_path: Path) -> None:
    pytest.importorskip("onnx", reason="needs the extra onnx")
    out = tmp_path / "flowers.onnx"
    assert main(["export", str(small.file), "--out", str(out)]) == 0
    images = torch.randn(3, 3, 32, 32)
    with torch.inference_mode():
        expected = small.network(images)
    model = open_onnx(out)
    assert model.metadata["input"] == "images"
    np.testing.assert_allclose(model(images.numpy())["logits"], expected.numpy(), atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("photos", [False, True])
def test_torch_export(small: Any, tmp_path: Path, photos: bool) -> None:
    path = tmp_path / "model.pt2"
    make_program(small.network, small.info, small.trial, path, photos).write(path)
    files = {METADATA_FILE: ""}
    program = torch.export.load(path, extra_files=files).module()
    assert tuple(json.loads(files[METADATA_FILE])["classes"]) == small.info.classes
    with zipfile.ZipFile(path) as archive:  # where it was made stays private
        assert not any(
            str(Path(__file__).parents[2]).encode() in archive.read(name) for name in archive.namelist()
        )
    for count in (1, 2, 17):
        shape = (count, 41, 53, 3) if photos else (count, 3, 32, 32)
        inputs = torch.randint(0, 256, shape, dtype=torch.uint8) if photos else torch.randn(shape)
        with torch.inference_mode():
            expected = ExportableClassifier(small.network, small.info, photos)(inputs)
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
        (["--max-loss", "much"], "is no share"),
        (["--int8"], "--int8 needs photos of the run"),
    ],
)
def test_mistakes(arguments: list[str], message: str, small: Any, tmp_path: Path, capsys: Any) -> None:
    pytest.importorskip("onnx", reason="needs the extra onnx")
    out = tmp_path / "x"
    assert main(["export", str(small.file), "--out", str(out), *arguments]) == 2
    assert message in one_line(capsys) and not out.exists()


def test_eight_bits_that_cost_too_much_are_refused() -> None:
    require_accuracy(Cost(100, 90, 88, 95), 0.02, "x")
    with pytest.raises(ExportError, match="0.9000 before, 0.8700 after; .*allow it with --max-loss 3.0%"):
        require_accuracy(Cost(100, 90, 87, 95), 0.02, "x")


@pytest.mark.slow
def test_eight_bits(small: Any, photo_folder: Path, tmp_path: Path) -> None:
    """A quarter of the size, nearly the same answers, measured on the photos that are given for it."""
    photos = sorted(photo_folder.rglob("*.png"))
    trial = export.Trial(small.trial.photos, "noise", photos[::2], photos[1::2], [0] * 30)
    path = Path("x.onnx")
    whole = make_onnx(small.network, small.info, trial, path, photos=True)
    eight = make_onnx(small.network, small.info, trial, path, photos=True, int8=True, most_lost=1)
    assert len(eight.content) < 0.6 * len(whole.content)
    model = parse_onnx(eight.content, path)
    told = model.metadata["int8"]
    assert (
        told["photos"] == 30 and told["agree"] >= 25 and any("accuracy on 30" in line for line in eight.lines)
    )
    assert model.session.get_inputs()[0].type == "tensor(uint8)"
    images = np.stack([np.asarray(photo.crop((0, 0, 40, 40))) for photo in small.trial.photos])
    outputs, expected = model(images), parse_onnx(whole.content, path)(images)
    assert np.abs(outputs["logits"] - expected["logits"]).max() < 0.3 * np.abs(expected["logits"]).max()
    np.testing.assert_allclose(outputs["probabilities"].sum(1), 1, atol=1e-6)


def test_int8_is_refused_before_anything_is_computed(small: Any) -> None:
    from flowers_torch.commands.export import find_trial

    with pytest.raises(UsageError, match="leave out --int8"):
        find_trial(small.file, int8=True)
