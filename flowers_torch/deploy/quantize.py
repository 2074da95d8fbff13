"""Eight-bit .onnx models: a quarter of the size, and what that costs in accuracy, measured.

Static quantisation by ONNX Runtime: the weights of each output channel and the activations of each layer get
a scale of their own; the activations' come from training photos, so that validation photos can judge.
"""

import dataclasses
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from flowers_torch.data.augment.per_image import eval_transform
from flowers_torch.data.images import load_image
from flowers_torch.data.preprocessing import Preprocessing
from flowers_torch.deploy.onnx_file import OnnxModel, need
from flowers_torch.errors import ExportError, printable

CALIBRATION_PHOTOS = 128
LAYERS = ["Add", "AveragePool", "Clip", "Concat", "Conv", "Gemm", "GlobalAveragePool", "MatMul", "MaxPool"]
LAYERS += ["Mul", "Relu"]


@dataclasses.dataclass(frozen=True)
class Cost:
    """What eight bits cost on labelled photos.

    Attributes:
        photos: How many.
        right_before: Photos that the model named right.
        right_after: Those that the eight-bit model does.
        agree: Photos that both give the same answer to, right or wrong.
    """

    photos: int
    right_before: int
    right_after: int
    agree: int

    @property
    def lost(self) -> float:
        """Share of photos, negative where eight bits are better."""
        return (self.right_before - self.right_after) / self.photos

    def describe(self) -> str:
        """One line."""
        before, after = (right / self.photos for right in (self.right_before, self.right_after))
        return (
            f"accuracy on {self.photos} validation photos {before:.4f} before, {after:.4f} after; "
            f"{self.agree} answers are the same"
        )


def quantize(content: bytes, inputs: Iterable[NDArray[Any]]) -> Any:
    """An eight-bit `onnx.ModelProto`.

    Args:
        content: An .onnx file in 32 bits.
        inputs: Batches that the scales of the activations are taken from.
    """
    onnx = need("onnx")
    quantization = need("onnxruntime.quantization")
    with tempfile.TemporaryDirectory() as folder:
        path, inferred = Path(folder) / "int8.onnx", Path(folder) / "inferred.onnx"
        # Without shapes ONNX Runtime says on the log that it would like them.
        shapes = need("onnxruntime.quantization.shape_inference")
        whole = onnx.load_model_from_string(content)
        shapes.quant_pre_process(whole, inferred, skip_optimization=True, skip_symbolic_shape=True)
        model = onnx.load_model(inferred)
        quantization.quantize_static(
            model,
            path,
            _Reader(model.graph.input[0].name, iter(inputs)),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=LAYERS,
            nodes_to_exclude=_not_the_network(model.graph),
            per_channel=True,
            reduce_range=True,  # seven bits of weights: processors without VNNI add up in 16 bits
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )
        return onnx.load_model_from_string(path.read_bytes())


def cost(
    before: OnnxModel,
    after: OnnxModel,
    paths: Sequence[Path],
    labels: Sequence[int],
    preprocessing: Preprocessing,
) -> Cost:
    """Compares two models on labelled photos.

    Args:
        before: In 32 bits.
        after: In eight; both take the same input.
        paths: Photos.
        labels: Of the photos, as the models count their classes.
        preprocessing: Of both.
    """
    read = reader(before.metadata["input"] == "photos", preprocessing)
    guesses = [
        [int(model(values)["logits"].argmax()) for model in (before, after)] for values in map(read, paths)
    ]
    return Cost(
        len(paths),
        sum(first == label for (first, _), label in zip(guesses, labels, strict=True)),
        sum(second == label for (_, second), label in zip(guesses, labels, strict=True)),
        sum(first == second for first, second in guesses),
    )


def require_accuracy(found: Cost, most: float, path: object) -> None:
    """Refuses an eight-bit model that lost too much.

    Raises:
        ExportError: with both accuracies.
    """
    if found.lost > most:
        raise ExportError(
            f"{printable(path)} was not written, eight bits lose too much: {found.describe()}",
            f"leave out --int8, or allow it with --max-loss {found.lost:.1%}",
        )


def reader(photos: bool, preprocessing: Preprocessing) -> Callable[[Path], NDArray[Any]]:
    """From a photo's path to a batch of one, as bytes (1, H, W, 3) or as network input (1, 3, size, size)."""
    transform: Callable[[Image.Image], Any] = eval_transform(**dataclasses.asdict(preprocessing))

    def read(path: Path) -> NDArray[Any]:
        image = load_image(path)
        return np.asarray(image)[None] if photos else transform(image)[None].numpy()

    return read


@dataclasses.dataclass
class _Reader:
    """Batches as ONNX Runtime's calibration asks for them."""

    name: str
    batches: Iterator[NDArray[Any]]

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        """The next batch; None at the end."""
        batch = next(self.batches, None)
        return None if batch is None else {self.name: batch}


def _not_the_network(graph: Any) -> list[str]:
    """Nodes that the logits do not depend on: probabilities and strangeness stay exact."""
    made_by = {output: node for node in graph.node for output in node.output}
    wanted, needed = ["logits"], set()
    while wanted:
        node = made_by.get(wanted.pop())
        if node is not None and node.name not in needed:
            needed.add(node.name)
            wanted += node.input
    return [node.name for node in graph.node if node.name not in needed]
