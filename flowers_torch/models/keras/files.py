"""Reading Keras's weights files: legacy .h5, Keras 3's .weights.h5, and .keras archives.

Only arrays and names are read. Links to other files and implausible sizes are errors.
"""

import io
import itertools
import zipfile
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flowers_torch.errors import FlowersError, ModelFileError, UsageError, one_line, printable

Weights = list[tuple[str, np.ndarray]]  # (name, array) in Keras's order within the layer

MAX_BYTES = 4 * 1024**3  # the largest network has 0.36 GB; an HDF5 header can claim any size


class KerasFile(NamedTuple):
    """The layers with weights, in the file's order; a model used as a layer is replaced by its layers."""

    layers: dict[str, Weights]
    named: bool = True  # whether the keys are the layers' names; early Keras 3 wrote kinds and numbers


def is_keras_file(path: Path) -> bool:
    """Whether a file is HDF5, or a zip archive with Keras's weights in it."""
    with path.open("rb") as file:
        if file.read(8) == b"\x89HDF\r\n\x1a\n":
            return True
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return "model.weights.h5" in archive.namelist()


def read_keras_file(path: Path) -> KerasFile:
    """Reads weights that Keras saved; the content, not the name, decides the kind of file.

    Raises:
        UsageError: h5py is not installed.
        ModelFileError: the file is missing, damaged, or of another kind.
    """
    if not path.is_file():
        raise ModelFileError(f"no Keras weights at {printable(path)}", "name an .h5 or .keras file")
    try:
        with _open(path) as file:
            is_keras3 = "layers" in file or "_layer_checkpoint_dependencies" in file
            return _read_keras3(file, path) if is_keras3 else _read_legacy(file, path)
    except FlowersError:
        raise
    except Exception as error:  # h5py raises OSError, KeyError, RuntimeError, ... on damaged files
        what = f"{printable(path)} cannot be read as Keras weights: {one_line(error)}"
        raise ModelFileError(what, "use another copy") from error


def _open(path: Path) -> Any:
    try:
        import h5py
    except ImportError as error:
        raise UsageError("reading Keras weights needs h5py", 'pip install "flowers-torch[keras]"') from error
    if not zipfile.is_zipfile(path):
        return h5py.File(path, "r")
    with zipfile.ZipFile(path) as archive:
        if "model.weights.h5" not in archive.namelist():
            what = f"{printable(path)} is not a valid .keras archive: it holds no model.weights.h5"
            raise ModelFileError(what, "give a file from model.save")
        if archive.getinfo("model.weights.h5").file_size > MAX_BYTES:
            raise ModelFileError(f"{printable(path)} is implausibly large", "use another copy")
        return h5py.File(io.BytesIO(archive.read("model.weights.h5")), "r")


class _Budget:
    """Reads arrays that lie in the file itself, up to `MAX_BYTES` in total."""

    def __init__(self, file: Any, path: Path) -> None:
        self.file, self.path, self.left = file, path, MAX_BYTES

    def take(self, name: str, dataset: Any) -> np.ndarray:
        is_foreign = dataset.file.filename != self.file.filename or dataset.external or dataset.is_virtual
        self.left -= 4 * int(dataset.size)
        if is_foreign or self.left < 0:
            reason = "lies in another file" if is_foreign else "is implausibly large"
            raise ModelFileError(f"{printable(self.path)}: {printable(name)} {reason}", "use another copy")
        return np.asarray(dataset, dtype=np.float32)


def _read_legacy(file: Any, path: Path) -> KerasFile:
    """Keras 1 and 2: attributes layer_names and weight_names, one level deeper for a whole model."""
    root = file["model_weights"] if "model_weights" in file else file
    names = _attribute(root, "layer_names")
    if not names:
        what = f"{printable(path)} is HDF5 without Keras weights: it has no layer_names"
        raise ModelFileError(what, "give a file from model.save_weights or model.save")
    budget = _Budget(file, path)
    layers: dict[str, Weights] = {}
    for layer in names:
        weights = [(name, budget.take(name, root[layer][name])) for name in _attribute(root[layer], "weight_names")]
        layers |= _split_nested(layer, weights)
    return KerasFile(layers)


def _attribute(group: Any, name: str) -> list[str]:
    """A list of names; Keras divides lists over 64 kB into name0, name1, ..."""
    numbered = itertools.takewhile(group.attrs.__contains__, (f"{name}{i}" for i in itertools.count()))
    items = itertools.chain(*(group.attrs[key] for key in ([name] if name in group.attrs else numbered)))
    return [item.decode() if isinstance(item, bytes) else str(item) for item in items]


def _split_nested(layer: str, weights: Weights) -> dict[str, Weights]:
    """Weights by the layer that owns them; a layer that is a whole model has several owners."""
    owners: dict[str, Weights] = defaultdict(list)
    for weight, data in weights:
        owner, _, name = weight.rpartition("/")
        owners[owner].append((name.partition(":")[0], data))
    if len(owners) > 1:
        # Keras 3 puts the model's name before the layer's.
        return {owner.removeprefix(f"{layer}/"): arrays for owner, arrays in owners.items()}
    return {layer: next(iter(owners.values()))} if owners else {}


def _read_keras3(file: Any, path: Path) -> KerasFile:
    """Keras 3: a group `vars` of numbered arrays in each layer's group, its name as attribute."""
    budget = _Budget(file, path)
    found: list[tuple[str, str, Weights]] = []  # group, name or "", weights

    def visit(group: Any, where: str) -> None:
        variables = group.get("vars", {})
        weights = [(n, budget.take(f"{where}/{n}", variables[n])) for n in sorted(variables, key=int)]
        if weights:
            found.append((where, str(variables.attrs.get("name", "")), weights))
        for container in ("layers", "_layer_checkpoint_dependencies"):
            for name, layer in group.get(container, {}).items():
                visit(layer, name)
        if "_functional" in group:
            visit(group["_functional"], where)

    visit(file, "")
    if not found:
        raise ModelFileError(f"{printable(path)} holds no layer with weights", "use another copy")
    named = all(name for _, name, _ in found)
    return KerasFile({name if named else where: weights for where, name, weights in found}, named)
