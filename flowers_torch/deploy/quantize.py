"""Static int8 quantization of .onnx models by ONNX Runtime, with the loss of accuracy measured.

Weights are scaled per output channel, activations per layer. Training images calibrate the activations, so
validation images can measure the accuracy.
"""

import dataclasses
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from flowers_torch.data.augment.per_image import eval_transform
from flowers_torch.data.images import load_image
from flowers_torch.data.preprocessing import Preprocessing
from flowers_torch.deploy.onnx_file import OnnxModel, need
from flowers_torch.errors import ExportError, printable

CALIBRATION_IMAGES = 128
OPERATORS = ["Add", "AveragePool", "Clip", "Concat", "Conv", "Gemm", "GlobalAveragePool", "MatMul", "MaxPool"]
OPERATORS += ["Mul", "Relu"]


@dataclasses.dataclass(frozen=True)
class QuantizationLoss:
    """Accuracy on validation images before (float32) and after (int8) quantization."""

    images: int
    correct_before: int
    correct_after: int
    agree: int  # images for which both models predict the same class

    @property
    def fraction(self) -> float:
        """Loss of accuracy; negative if int8 is better."""
        return (self.correct_before - self.correct_after) / self.images

    def describe(self) -> str:
        """One line."""
        before, after = (correct / self.images for correct in (self.correct_before, self.correct_after))
        return (
            f"accuracy on {self.images} validation photos {before:.4f} before, {after:.4f} after; "
            f"{self.agree} predictions are the same"
        )


def quantize(content: bytes, inputs: Iterable[NDArray[Any]]) -> bytes:
    """Quantizes the content of an .onnx file to int8; batches of inputs calibrate the activations."""
    onnx = need("onnx")
    quantization = need("onnxruntime.quantization")
    shape_inference = need("onnxruntime.quantization.shape_inference")
    with tempfile.TemporaryDirectory() as folder:
        path, inferred = Path(folder) / "int8.onnx", Path(folder) / "inferred.onnx"
        # Inferred shapes avoid a warning of ONNX Runtime.
        shape_inference.quant_pre_process(
            onnx.load_model_from_string(content), inferred, skip_optimization=True, skip_symbolic_shape=True
        )
        model = onnx.load_model(inferred)
        (source,) = (value.name for value in model.graph.input)
        batches = ({source: batch} for batch in inputs)
        # Probabilities and OOD distance, which the logits do not depend on, stay in float32.
        before_logits = onnx.utils.Extractor(model).extract_model([source], ["logits"]).graph.node
        names = {node.name for node in before_logits}
        quantization.quantize_static(
            model,
            path,
            SimpleNamespace(get_next=lambda: next(batches, None)),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=OPERATORS,
            nodes_to_exclude=[node.name for node in model.graph.node if node.name not in names],
            per_channel=True,
            reduce_range=True,  # 7-bit weights: processors without VNNI accumulate in 16 bits
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )
        return path.read_bytes()


def measure_loss(
    before: OnnxModel,
    after: OnnxModel,
    paths: Sequence[Path],
    labels: Sequence[int],
    preprocessing: Preprocessing,
) -> QuantizationLoss:
    """Compares the float32 and the int8 model, which take the same input, on labeled image files."""
    read = model_input(before.metadata["input"] == "images", preprocessing)
    predicted = [[int(model(values)["logits"].argmax()) for model in (before, after)] for values in map(read, paths)]
    return QuantizationLoss(
        len(paths),
        sum(first == label for (first, _), label in zip(predicted, labels, strict=True)),
        sum(second == label for (_, second), label in zip(predicted, labels, strict=True)),
        sum(first == second for first, second in predicted),
    )


def require_accuracy(loss: QuantizationLoss, max_loss: float, path: object) -> None:
    """Refuses an int8 model that loses too much accuracy.

    Raises:
        ExportError: the loss exceeds `max_loss`.
    """
    if loss.fraction > max_loss:
        raise ExportError(
            f"{printable(path)} was not written because int8 loses too much accuracy: {loss.describe()}",
            f"leave out --int8, or allow it with --max-loss {loss.fraction:.1%}",
        )


def model_input(with_preprocessing: bool, preprocessing: Preprocessing) -> Callable[[Path], NDArray[Any]]:
    """A function from an image file to a batch of one: uint8 (1, H, W, 3), or (1, 3, size, size)."""
    transform: Callable[[Image.Image], Any] = eval_transform(**dataclasses.asdict(preprocessing))

    def read(path: Path) -> NDArray[Any]:
        image = load_image(path)
        return np.asarray(image)[None] if with_preprocessing else transform(image)[None].numpy()

    return read
