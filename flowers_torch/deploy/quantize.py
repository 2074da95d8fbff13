"""Static int8 quantization of .onnx models by ONNX Runtime, with the loss of accuracy measured.

Weights are scaled per output channel, activations per layer. Training images calibrate the activations, so
validation images can measure the accuracy.
"""

import dataclasses
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowers_torch.deploy.onnx_file import OnnxModel, need
from flowers_torch.errors import ExportError, printable

CALIBRATION_IMAGES = 128
OPERATORS = "Add AveragePool Clip Concat Conv Gemm GlobalAveragePool MatMul MaxPool Mul Relu".split()


@dataclasses.dataclass(frozen=True)
class QuantizationLoss:
    """Correct predictions on validation images before (float32) and after (int8) quantization."""

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
        accuracy = f"accuracy on {self.images} validation photos {before:.4f} before, {after:.4f} after"
        return f"{accuracy}; {self.agree} predictions are the same"


def quantize(content: bytes, inputs: Iterable[NDArray[Any]]) -> bytes:
    """Quantizes the content of an .onnx file to int8; batches of inputs calibrate the activations."""
    onnx, quantization = need("onnx"), need("onnxruntime.quantization")
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
        names = {node.name for node in onnx.utils.Extractor(model).extract_model([source], ["logits"]).graph.node}
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
    before: OnnxModel, after: OnnxModel, inputs: Iterable[NDArray[Any]], labels: Sequence[int]
) -> QuantizationLoss:
    """Compares the float32 and the int8 model on batches of one image."""
    pairs = [[int(model(values)["logits"].argmax()) for model in (before, after)] for values in inputs]
    correct = np.array(pairs) == np.array(labels)[:, None]
    correct_before, correct_after = correct.sum(0).tolist()
    return QuantizationLoss(len(pairs), correct_before, correct_after, sum(a == b for a, b in pairs))


def require_accuracy(loss: QuantizationLoss, max_loss: float, path: object) -> None:
    """Raises ExportError if an int8 model loses more accuracy than `max_loss`."""
    if loss.fraction > max_loss:
        what = f"{printable(path)} was not written because int8 loses too much accuracy: {loss.describe()}"
        raise ExportError(what, f"leave out --int8, or allow it with --max-loss {loss.fraction:.1%}")
