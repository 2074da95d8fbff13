"""Static int8 quantization of .onnx models by ONNX Runtime, with the loss of accuracy measured.

Weights are scaled per output channel, activations per layer. Training images calibrate the activations, so
validation images can measure the accuracy, and fit temperature, thresholds and prediction sets of the int8 model.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from flowers_torch.deploy.onnx_file import OnnxModel, need
from flowers_torch.errors import ExportError, plural, printable
from flowers_torch.evaluation.metrics import fit_temperature
from flowers_torch.evaluation.prediction_sets import fit_thresholds
from flowers_torch.evaluation.selective import distance_limit
from flowers_torch.files.atomic import temporary_folder
from flowers_torch.models.checkpoint import ModelInfo

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

    @classmethod
    def of(cls, before: NDArray[Any], after: NDArray[Any], labels: Sequence[int]) -> "QuantizationLoss":
        """From the logits (N, classes) of both models and the labels (N,)."""
        first, second, truth = before.argmax(1), after.argmax(1), np.array(labels)
        return cls(len(truth), int((first == truth).sum()), int((second == truth).sum()), int((first == second).sum()))

    def describe(self) -> str:
        """One line."""
        before, after = (correct / self.images for correct in (self.correct_before, self.correct_after))
        accuracy = f"accuracy on {plural(self.images, 'validation photo')} {before:.4f} before, {after:.4f} after"
        return f"{accuracy}; {plural(self.agree, 'prediction is', 'predictions are')} the same"


def quantize(content: bytes, inputs: Iterable[NDArray[Any]]) -> bytes:
    """Quantizes the content of an .onnx file to int8; batches of inputs calibrate the activations."""
    onnx, quantization = need("onnx"), need("onnxruntime.quantization")
    shape_inference = need("onnxruntime.quantization.shape_inference")
    with temporary_folder() as folder:
        path, inferred = folder / "int8.onnx", folder / "inferred.onnx"
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


def outputs_of(model: OnnxModel, inputs: Iterable[NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
    """All outputs of a model for batches of one image, by name."""
    rows = [model(values) for values in inputs]
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def refit(info: ModelInfo, outputs: dict[str, NDArray[np.float32]], labels: Sequence[int]) -> ModelInfo:
    """The metadata with what the outputs of the int8 model for validation images say instead of float32's."""
    logits, truth = torch.from_numpy(outputs["logits"]), torch.tensor(labels)
    temperature = fit_temperature(logits, truth)
    selective = info.selective | fit_thresholds((logits / temperature).softmax(1), truth)
    if "ood_distance" in outputs:
        distances = torch.from_numpy(outputs["ood_distance"])
        selective["ood_detector"] = info.selective["ood_detector"] | {"threshold": distance_limit(distances)}
    return dataclasses.replace(info, temperature=temperature, selective=selective)


def require_accuracy(loss: QuantizationLoss, max_loss: float, path: object) -> None:
    """Raises ExportError if an int8 model loses more accuracy than `max_loss`."""
    if loss.fraction > max_loss:
        what = f"{printable(path)} was not written because int8 loses too much accuracy: {loss.describe()}"
        raise ExportError(what, f"leave out --int8, or allow it with --max-loss {loss.fraction:.1%}")
