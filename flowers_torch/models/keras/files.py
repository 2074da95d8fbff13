"""Reading Keras's weights files: legacy .h5, Keras 3's .weights.h5, and .keras archives.

Only arrays and names are read. Links to other files and implausible sizes are errors.
"""

import io
import itertools
import math
import zipfile
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flowers_torch.errors import ModelFileError, UsageError, printable
from flowers_torch.files.reading import plausible_bytes, reading, require_regular, zip_members

Weights = list[tuple[str, np.ndarray]]  # (name, array) in Keras's order within the layer

HDF5 = b"\x89HDF\r\n\x1a\n"
MEMBER = "model.weights.h5"  # of a .keras archive
CONTAINERS = ("layers", "_layer_checkpoint_dependencies")  # groups of layers, in Keras 3
MAX_OBJECTS = 10_000  # groups, and arrays; the largest network has 1,500


class KerasFile(NamedTuple):
    """The layers with weights, in the file's order; a model used as a layer is replaced by its layers."""

    layers: dict[str, Weights]
    named: bool = True  # whether the keys are the layers' names; early Keras 3 wrote kinds and numbers
    backend: str = ""  # of the Keras that wrote it, where the file says so


def is_keras_file(path: Path) -> bool:
    """Whether a file is HDF5, or a zip archive with Keras's weights in it.

    Raises:
        ModelFileError: it cannot be read.
    """
    require_regular(path, ModelFileError)
    with reading(path, "a valid weights file", ModelFileError):
        with open(path, "rb") as file:
            start = file.read(8)
        return start == HDF5 or (start[:2] == b"PK" and MEMBER in zip_members(path, ModelFileError))


def read_keras_file(path: Path) -> KerasFile:
    """Reads weights that Keras saved; the content, not the name, decides the kind of file.

    Raises:
        UsageError: h5py is not installed.
        ModelFileError: the file is missing, damaged, or of another kind.
    """
    try:
        import h5py
    except ImportError as error:
        raise UsageError("reading Keras weights needs h5py", 'pip install "flowers-torch[keras]"') from error
    size = require_regular(path, ModelFileError)
    with reading(path, "a valid Keras weights file", ModelFileError):  # guard: S8 keras
        source: Any = path
        if zipfile.is_zipfile(path):
            if MEMBER not in zip_members(path, ModelFileError):
                raise ValueError(f"it holds no {MEMBER}")
            with zipfile.ZipFile(path) as archive:
                source = io.BytesIO(archive.read(MEMBER))
        with h5py.File(source, "r") as file:
            reader = _Reader(size)
            is_keras3 = any(reader.follow(file, name) is not None for name in CONTAINERS)
            return _read_keras3(file, reader) if is_keras3 else _read_legacy(file, reader)


class _Reader:
    """Reads groups, names and arrays that lie in the file itself, and no more than is plausible for its size.

    All its errors are ValueErrors.
    """

    def __init__(self, size: int) -> None:
        self.left, self.arrays = plausible_bytes(size), 0
        self.visited: set[Any] = set()

    def follow(self, group: Any, path: str) -> Any:
        """What lies at a path in a group; None if there is nothing.

        Only hard links are followed. Others may lead to another file, or to a pipe that would never answer.
        """
        for name in filter(None, path.split("/")):
            if not group.id.links.exists(name.encode()):
                return None
            if group.id.links.get_info(name.encode()).type != 0:  # guard: S4 links
                raise ValueError(f"{printable(path)} lies elsewhere")
            group = group[name]
        return group

    def visit(self, group: Any) -> bool:
        """Whether a group has not been visited before; two links may lead to one group, many times over."""
        if len(self.visited) >= MAX_OBJECTS:
            raise ValueError("it has too many groups")
        is_new = group not in self.visited  # guard: S4 once
        self.visited.add(group)
        return is_new

    def array(self, group: Any, path: str) -> np.ndarray:
        """The array at a path in a group."""
        dataset = self.follow(group, path)
        if dataset is None or dataset.is_virtual or dataset.external:  # guard: S4 virtual
            raise ValueError(f"{printable(path)} is missing, or lies in another file")
        if dataset.dtype.kind not in "fiu":  # guard: S8 array
            raise ValueError(f"{printable(path)} holds no numbers")
        # A chunk may be larger than its array, and all of it is unpacked.
        claimed = max(math.prod(shape) for shape in (dataset.shape, dataset.chunks or ()))
        self.spend(claimed * max(4, dataset.dtype.itemsize))
        self.arrays += 1
        if self.arrays > MAX_OBJECTS:
            raise ValueError("it has too many arrays")
        return np.asarray(dataset, dtype=np.float32)

    def texts(self, group: Any, key: str) -> list[str]:
        """The texts of an attribute; none if it is absent."""
        if key not in group.attrs:
            return []
        kind = group.attrs.get_id(key)
        count = math.prod(kind.shape)
        if count == 0:  # Keras writes a list without names as one without numbers
            return []
        if kind.dtype.kind not in "SO" or count > MAX_OBJECTS:  # guard: S4 texts
            raise ValueError(f"{printable(key)} is not a list of names")
        self.spend(count * kind.dtype.itemsize)
        items = [item.decode() if isinstance(item, bytes) else str(item) for item in np.ravel(group.attrs[key])]
        self.spend(4 * sum(map(len, items)))
        return items

    def spend(self, claimed: int) -> None:
        """Raises ValueError when the file has claimed too much."""
        self.left -= claimed
        if self.left < 0:  # guard: S4 claims
            raise ValueError("it claims to hold much more than its bytes")


def _read_legacy(file: Any, reader: _Reader) -> KerasFile:
    """Keras 1 and 2: attributes layer_names and weight_names, one level deeper for a whole model."""
    whole = reader.follow(file, "model_weights")
    root = file if whole is None else whole
    layers: dict[str, Weights] = {}
    for layer in _names(reader, root, "layer_names"):
        group = reader.follow(root, layer)
        if group is None or not reader.visit(group):
            raise ValueError(f"it has no layer {printable(layer)}, or two")
        layers |= _split_nested(layer, [(n, reader.array(group, n)) for n in _names(reader, group, "weight_names")])
    if not reader.visited:
        raise ValueError("it has no layer_names")
    backend = reader.texts(root, "backend") or reader.texts(file, "backend")
    return KerasFile(layers, backend="".join(backend))


def _names(reader: _Reader, group: Any, key: str) -> list[str]:
    """A list of names; Keras divides lists over 64 kB into key0, key1, ..."""
    parts = (reader.texts(group, f"{key}{i}") for i in itertools.count())
    names = reader.texts(group, key) or list(itertools.chain(*itertools.takewhile(bool, parts)))
    if len(names) > MAX_OBJECTS:
        raise ValueError("it has too many names")
    return names


def _split_nested(layer: str, weights: Weights) -> dict[str, Weights]:
    """Weights by the layer that owns them; a layer that is a whole model has several owners."""
    owners: dict[str, Weights] = defaultdict(list)
    for weight, data in weights:
        owner, _, name = weight.rpartition("/")
        own = weight.removeprefix(f"{layer}_")  # Keras 1 wrote fire2/expand1x1_b for the layer fire2/expand1x1
        owner = layer if not owner or (own != weight and "/" not in own) else owner
        owners[owner].append((name.partition(":")[0], data))
    if len(owners) > 1:
        # Keras 3 puts the model's name before the layer's.
        return {owner.removeprefix(f"{layer}/"): arrays for owner, arrays in owners.items()}
    return {layer: next(iter(owners.values()))} if owners else {}


def _read_keras3(file: Any, reader: _Reader) -> KerasFile:
    """Keras 3: a group `vars` of numbered arrays in each layer's group, its name as attribute."""
    found: list[tuple[str, str, Weights]] = []  # group, name or "", weights

    def visit(group: Any, where: str) -> None:
        if not reader.visit(group):
            return
        variables = reader.follow(group, "vars")
        if variables is not None and len(variables):
            weights = [(number, reader.array(variables, number)) for number in sorted(variables, key=int)]
            found.append((where, "".join(reader.texts(variables, "name")), weights))
        for container in filter(None, (reader.follow(group, name) for name in CONTAINERS)):
            for name in container:
                visit(reader.follow(container, name), name)
        if (inner := reader.follow(group, "_functional")) is not None:
            visit(inner, where)

    visit(file, "")
    if not found:
        raise ValueError("it holds no layer with weights")
    named = all(name for _, name, _ in found)
    return KerasFile({name if named else where: weights for where, name, weights in found}, named)
