"""Models as .onnx files: written by PyTorch's exporter into one file, and read with suspicion.

What is needed to use a file is in its metadata, each entry JSON: see `describe`. Nothing is loaded from
beside a file, whatever it says.
"""

import dataclasses
import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.export import Dim, ExportedProgram

from flowers_torch import __version__
from flowers_torch.deploy.graph import ExportableClassifier
from flowers_torch.errors import ExportError, ModelFileError, UsageError, printable
from flowers_torch.models.checkpoint import FORMAT, ModelInfo

OPSET = 20
MOST_BYTES = (1 << 31) - 1  # of a protobuf message
INSTALL = 'pip install "flowers-torch[onnx]"'


@dataclasses.dataclass(frozen=True)
class OnnxModel:
    """An .onnx file that this package wrote, ready to run.

    Attributes:
        session: `onnxruntime.InferenceSession`.
        metadata: As `describe` made it.
    """

    session: Any
    metadata: dict[str, Any]

    def __call__(self, inputs: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
        """Outputs by name; the input is as the metadata's `input` says."""
        names = [output.name for output in self.session.get_outputs()]
        values = self.session.run(names, {self.session.get_inputs()[0].name: inputs})
        return dict(zip(names, values, strict=True))


def need(name: str) -> ModuleType:
    """A package of the extra `onnx`.

    Raises:
        UsageError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:  # guard: E04
        raise UsageError(f"ONNX needs {name.partition('.')[0]}", INSTALL) from error


def describe(info: ModelInfo, photos: bool) -> dict[str, Any]:
    """What travels with an exported model, in every format.

    Args:
        record: Of the network.
        photos: Whether the model prepares photos itself.
    """
    selective = {"curve": info.selective["curve"]} if info.selective.get("curve") else {}
    if familiar := info.selective.get("ood_detector"):
        selective["limit"] = familiar[
            "limit"
        ]  # of strangeness, above which a photo is unlike the training photos
    return {
        "format": FORMAT,
        "flowers_torch": __version__,
        "arch": info.arch,
        "classes": list(info.classes),
        "preprocessing": dataclasses.asdict(info.preprocessing),  # guard: E05
        "input": "photos" if photos else "images",
        "temperature": info.temperature,
        "selective": selective,
        "weights": Path(info.weights).name,  # where it is a file, its place is nobody's business
        "license": info.license,
    }


def trace(answers: ExportableClassifier) -> ExportedProgram:
    """The graph of a model for any number of photos, and photos of any size."""
    photos, size = answers.photos, answers.preprocessing.size
    # Of two photos: the exporter takes a size of 1 for a constant.
    example = torch.zeros(2, 40, 50, 3, dtype=torch.uint8) if photos else torch.zeros(2, 3, size, size)
    free = {0: Dim.DYNAMIC, 1: Dim.DYNAMIC, 2: Dim.DYNAMIC} if photos else {0: Dim.DYNAMIC}  # guard: E03
    with torch.no_grad():
        program = torch.export.export(answers, (example,), dynamic_shapes=(free,))
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)  # paths of this machine, which would travel with the file
    return program


def to_onnx(answers: ExportableClassifier, metadata: dict[str, Any]) -> bytes:
    """The .onnx file of a model, with all weights inside.

    PyTorch's own way to save puts the weights into a second file, which is lost when the first is copied.

    Raises:
        UsageError: a package is missing, or the model is larger than such a file can be.
    """
    need("onnx"), need("onnxscript")
    weights = sum(value.numel() * value.element_size() for value in answers.state_dict().values())
    if weights > MOST_BYTES - (1 << 24):
        raise UsageError(
            f"{weights >> 20} MB of weights do not fit into one .onnx file", "use --format torch-export"
        )
    program = torch.onnx.export(
        trace(answers),
        dynamo=True,
        input_names=[metadata["input"]],
        output_names=answers.outputs,
        opset_version=OPSET,
        verbose=False,
    )
    if program is None:
        raise ExportError("PyTorch exported nothing", "report it with the network's name")
    model = program.model_proto  # guard: E01
    return attach(model, metadata)


def attach(model: Any, metadata: dict[str, Any]) -> bytes:
    """The bytes of an `onnx.ModelProto` with metadata instead of those it had."""
    del model.metadata_props[:]
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=json.dumps(value))
    content: bytes = model.SerializeToString()
    return content


def relabel(content: bytes, metadata: dict[str, Any]) -> bytes:
    """As `attach`, from the bytes of a file."""
    return attach(need("onnx").load_model_from_string(content), metadata)


def open_onnx(path: Path, threads: int = 0) -> OnnxModel:
    """Opens an .onnx file that this package wrote.

    Args:
        path: The file.
        threads: Of ONNX Runtime; 0 for as many as there are cores.

    Raises:
        UsageError: a package is missing.
        ModelFileError: missing, damaged, of another origin, or with weights outside of the file.
    """
    if not Path(path).is_file():
        raise ModelFileError(f"cannot read {printable(path)}: no such file", "name an .onnx file")
    return parse_onnx(Path(path).read_bytes(), path, threads)


def parse_onnx(content: bytes, path: Path, threads: int = 0) -> OnnxModel:
    """As `open_onnx`, from what a file holds; `path` is for the errors."""
    onnx, runtime = need("onnx"), need("onnxruntime")
    try:
        model = onnx.load_model_from_string(content)
        outside = next(_files_outside(model), None)
        if outside is not None:  # guard: E07 outside
            raise ModelFileError(
                f"{printable(path)} wants to read the file {printable(outside)}",
                "use an export of this package",
            )
        onnx.checker.check_model(model)
        texts = {entry.key: entry.value for entry in model.metadata_props}
        metadata = {key: json.loads(texts[key]) for key in ("format", "classes", "temperature", "input")}
        metadata |= {key: json.loads(value) for key, value in texts.items() if key not in metadata}
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3  # errors only; they are raised too
        session = runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except ModelFileError:
        raise
    except KeyError as error:
        raise ModelFileError(
            f"{printable(path)} does not say its {printable(error.args[0])}", "use an export of this package"
        ) from error
    # guard: E07 damaged
    except Exception as error:  # protobuf, onnx and its runtime each have errors of their own
        reason = printable(" ".join(str(error).split()), 200)
        raise ModelFileError(f"{printable(path)} is damaged: {reason}", "export it again") from error
    return OnnxModel(session, metadata)


def _files_outside(message: Any) -> Any:
    """Names of files that any tensor anywhere in a model refers to."""
    if message.DESCRIPTOR.name == "TensorProto":
        if message.external_data or message.data_location == 1:
            yield next(
                (entry.value for entry in message.external_data if entry.key == "location"), "(unnamed)"
            )
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in value if not hasattr(value, "DESCRIPTOR") else [value]:
                yield from _files_outside(part)
