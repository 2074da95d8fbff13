"""ONNX files: exported as one file with metadata in JSON, and validated before they are opened."""

import contextlib
import dataclasses
import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.export import Dim, ExportedProgram

from flowers_torch import __version__
from flowers_torch.deploy.graph import ExportableClassifier
from flowers_torch.errors import ExportError, ModelFileError, UsageError, one_line, printable
from flowers_torch.files.reading import check, read_bytes, reading
from flowers_torch.models.checkpoint import (
    CLASSES,
    CURVE,
    FORMAT,
    PREPROCESSING,
    SETS,
    TEMPERATURE,
    ModelInfo,
    check_classes,
    check_value_range,
)

OPSET = 20
MAX_BYTES = (1 << 31) - 1  # of a protobuf message
METADATA = {  # its form, as `check` takes it
    **{"format": (1, FORMAT), "flowers_torch": str, "arch": str, "classes": CLASSES, "preprocessing": PREPROCESSING},
    **{"input": {"images", "pixel_values"}, "temperature": TEMPERATURE, "weights": str, "license": str},
    "selective": {"curve?": CURVE, "sets?": SETS, "ood_threshold?": (-0.1, 2.1)},
}
INSTALL = 'pip install "flowers-torch[onnx]"'


@dataclasses.dataclass(frozen=True)
class OnnxModel:
    """An .onnx file of this package, ready to run."""

    session: Any  # onnxruntime.InferenceSession
    metadata: dict[str, Any]  # from `export_metadata`

    def __call__(self, inputs: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
        """Outputs by name; the input is what the metadata's `input` says."""
        names = [output.name for output in self.session.get_outputs()]
        values = self.session.run(names, {self.session.get_inputs()[0].name: inputs})
        return dict(zip(names, values, strict=True))


def need(name: str) -> ModuleType:
    """Imports a package of the extra `onnx`; UsageError if it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:  # guard: E04
        raise UsageError(f"ONNX needs {name.partition('.')[0]}", INSTALL) from error


def export_metadata(info: ModelInfo, with_preprocessing: bool) -> dict[str, Any]:
    """The metadata of an exported model, in every format; images are uint8, pixel values normalized."""
    selective = {name: info.selective[name] for name in ("curve", "sets") if info.selective.get(name)}
    if detector := info.selective.get("ood_detector"):
        selective["ood_threshold"] = detector["threshold"]
    return {
        "format": FORMAT,
        "flowers_torch": __version__,
        "arch": info.arch,
        "classes": list(info.classes),
        "preprocessing": dataclasses.asdict(info.preprocessing),  # guard: E05
        "input": "images" if with_preprocessing else "pixel_values",
        "temperature": info.temperature,
        "selective": selective,
        "weights": Path(info.weights).name,  # the name alone: the folder is private
        "license": info.license,
    }


def trace(model: ExportableClassifier) -> ExportedProgram:
    """Traces a model for any batch size and, with preprocessing, any image size.

    Raises:
        ExportError: the network computes what PyTorch cannot trace.
    """
    size = model.preprocessing.size
    # A batch of two: the exporter treats a size of 1 as a constant.
    if model.with_preprocessing:
        example = torch.zeros(2, 40, 50, 3, dtype=torch.uint8)
        dynamic = {0: Dim.DYNAMIC, 1: Dim.DYNAMIC, 2: Dim.DYNAMIC}  # guard: E03
    else:
        example, dynamic = torch.zeros(2, 3, size, size), {0: Dim.DYNAMIC}
    with torch.no_grad(), _exporting(model):
        program = torch.export.export(model, (example,), dynamic_shapes=(dynamic,))
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)  # contains paths of this machine
    return program


def to_onnx(model: ExportableClassifier, metadata: dict[str, Any]) -> bytes:
    """The .onnx file of a model with all weights, which PyTorch's own `save` would put into a second file.

    Raises:
        UsageError: a package is missing, or the model is larger than an .onnx file can be.
        ExportError: PyTorch cannot trace the network, or ONNX lacks one of its operations.
    """
    need("onnx"), need("onnxscript")
    weights = sum(value.numel() * value.element_size() for value in model.state_dict().values())
    if weights > MAX_BYTES - (1 << 24):
        raise UsageError(f"{weights >> 20} MB of weights do not fit into one .onnx file", "use --format torch-export")
    names: dict[str, Any] = {"input_names": [metadata["input"]], "output_names": model.outputs}
    traced = trace(model)
    with _exporting(model):
        program: Any = torch.onnx.export(traced, dynamo=True, opset_version=OPSET, verbose=False, **names)
    proto = program.model_proto  # guard: E01
    return attach_metadata(proto.SerializeToString(), metadata)


@contextlib.contextmanager
def _exporting(model: ExportableClassifier) -> Iterator[None]:
    """Names the network where PyTorch's exporters raise what they like."""
    try:
        yield
    except Exception as error:
        cause: BaseException = error
        while cause.__cause__:  # torch wraps it in advice for its own developers
            cause = cause.__cause__
        reason = f"{type(cause).__name__}: {one_line(cause)[:200]}"
        what = f"{type(model.network).__name__} cannot be exported: {reason}"
        raise ExportError(what, "use --format safetensors, or train another network") from error


def attach_metadata(content: bytes, metadata: dict[str, Any]) -> bytes:
    """Replaces the metadata of an .onnx file."""
    model = need("onnx").load_model_from_string(content)
    del model.metadata_props[:]
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=json.dumps(value))
    return bytes(model.SerializeToString())


def open_onnx(path: Path, threads: int = 0) -> OnnxModel:
    """Opens an .onnx file of this package; ONNX Runtime takes one thread per core if `threads` is 0.

    Raises:
        UsageError: a package is missing.
        ModelFileError: the file is missing, damaged, of another origin, or has weights in other files.
    """
    return parse_onnx(read_bytes(path, "an .onnx file", ModelFileError, MAX_BYTES), path, threads)


def parse_onnx(content: bytes, path: Path, threads: int = 0) -> OnnxModel:
    """Like `open_onnx`, from the content of a file; `path` is for error messages."""
    onnx, runtime = need("onnx"), need("onnxruntime")
    # protobuf, onnx and onnxruntime each have their own errors
    with reading(path, "a valid .onnx file of this package", ModelFileError, "export it again"):  # guard: E07 damaged
        model = onnx.load_model_from_string(content)
        problems = [f"it refers to the file {printable(name)}" for name in _external_files(model)]
        if problems:  # guard: E07 outside
            raise ValueError(problems[0])
        metadata = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
        check(metadata, METADATA)  # guard: S8 onnx
        check_classes(metadata["classes"])
        check_value_range(metadata["preprocessing"].get("value_range") or [])
        onnx.checker.check_model(model)
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3  # errors only; they are raised too
        session = runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return OnnxModel(session, metadata)


def _external_files(message: Any) -> Iterator[str]:
    """The names of files that any tensor of a model refers to."""
    if message.DESCRIPTOR.name == "TensorProto" and (message.external_data or message.data_location == 1):
        yield next((entry.value for entry in message.external_data if entry.key == "location"), "(unnamed)")
    for field, value in message.ListFields():
        if field.message_type is not None:
            for child in [value] if hasattr(value, "DESCRIPTOR") else value:
                yield from _external_files(child)
