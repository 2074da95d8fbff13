"""Do the networks here compute what keras.applications computes? Same weights, same picture, both logits.

    pip install "flowers-torch[keras]" keras tensorflow-cpu
    python benchmarks/keras_parity.py                  # all: about 7 minutes of one core
    python benchmarks/keras_parity.py Xception VGG16   # some

Each finished network's row in docs/keras-parity.md is replaced; the others stay.

Each Keras network gets random weights (batch norm statistics too), is saved in all three forms (legacy .h5,
.weights.h5, .keras) and read here by the package's own loader. The pictures have Keras's usual size and an
odd one, because TensorFlow pads odd and even sizes differently.
"""

import os

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import dataclasses
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch._inductor  # before TensorFlow: two copies of LLVM start well in this order only

from flowers_torch.models.factory import create_model
from flowers_torch.models.inspect.summary import parameter_counts
from flowers_torch.models.keras.layers import KerasLayer, keras_layers, renumbered
from flowers_torch.models.keras.weights import keras_options, load_keras_weights
from flowers_torch.models.registry import REGISTRY

import keras  # isort: skip

FORMS = (".h5", ".weights.h5", ".keras")
ARCHS = {
    entry.keras_name: name for name, entry in REGISTRY.items() if hasattr(keras.applications, entry.keras_name or "-")
}
LIMIT = 1e-4  # largest difference of two logits, relative to the largest logit
PAGE = Path(__file__).parents[1] / "docs" / "keras-parity.md"
HEADING = f"""# Parity with Keras

Written by `python benchmarks/keras_parity.py` with Keras {keras.__version__} ({keras.backend.backend()}) and
torch {torch.__version__.partition("+")[0]}, on one core of an Intel Xeon with AMX, in float32.

Each network of keras.applications gets random weights and predicts random images, in Keras and here. The
largest difference is that of the 1000 logits, relative to the largest logit, over two image sizes (the usual
and an odd one; only the usual one for VGG) and three file formats (legacy `.h5`, `.weights.h5`, `.keras`).
The tolerance is {LIMIT:g}. The last column says whether `flowers-torch layers ARCH --keras` lists the layers
of `model.layers` with equal classes, output shapes, parameter counts and names (numbered default names
excepted). ResNeXt50 and ResNeXt101 are no longer part of Keras; tests of the loader cover them.

| Keras | here | parameters | largest difference | layers |
|---|---|---|---|---|
"""


@dataclasses.dataclass
class Row:
    """What was found for one network."""

    name: str
    arch: str
    parameters: int
    differences: dict[str, float]  # size and form -> largest difference relative to the largest logit
    same_layers: bool  # whether the layer lists (names unless counted, shapes, parameters) are equal

    @property
    def worst(self) -> float:
        return max(self.differences.values())


def compare(name: str, folder: Path) -> Row:
    """Compares one network of keras.applications, by its name there, with ours."""
    arch = ARCHS[name]
    size = REGISTRY[arch].preprocessing.size
    keras.utils.set_random_seed(0)
    keras.backend.clear_session()
    theirs = build(name, size)
    randomise(theirs)
    results: dict[str, float] = {}
    for form in FORMS:
        path = folder / f"{name}{form}"
        theirs.save_weights(path) if form == ".weights.h5" else theirs.save(path)
    for form in FORMS:
        ours = create_model(arch, **keras_options(arch)).eval()
        report = load_keras_weights(ours, arch, folder / f"{name}{form}", with_head=True, keras_input="tf")
        if not report.head_loaded or report.used != len(weights_of(theirs)):
            raise RuntimeError(f"{name}{form}: {report.used} of {len(weights_of(theirs))} arrays used")
        results[f"{size} {form}"] = difference(theirs, ours, size)
    row = Row(name, arch, parameter_counts(ours)[0], results, same_layers(theirs, ours, size))
    if not name.startswith("VGG"):  # whose dense layers are made for one size
        other = build(name, size // 2 | 1)
        other.set_weights(theirs.get_weights())
        results[f"{size // 2 | 1}"] = difference(other, ours, size // 2 | 1)
    for form in FORMS:
        (folder / f"{name}{form}").unlink()
    return row


def difference(theirs: Any, ours: torch.nn.Module, size: int) -> float:
    """Largest difference of the logits of one picture of noise, relative to the largest logit."""
    image = np.random.default_rng(1).uniform(-1, 1, (1, size, size, 3)).astype(np.float32)
    wanted = np.asarray(theirs(image, training=False))
    if np.std(wanted) < 1e-6:
        raise RuntimeError("the logits are all alike, nothing is compared")
    with torch.no_grad():
        found = ours(torch.from_numpy(image).permute(0, 3, 1, 2)).numpy()
    if not np.isfinite(found).all():
        raise RuntimeError("the logits here are not all finite")
    return float(abs(found - wanted).max() / abs(wanted).max())


def build(name: str, size: int) -> Any:
    """The Keras network with its 1000-class head and logits as output."""
    constructor = getattr(keras.applications, name)
    return constructor(weights=None, input_shape=(size, size, 3), classifier_activation=None)


def weights_of(model: Any) -> list[np.ndarray]:
    """Arrays without the counters of Keras's random layers, which are no weights of the network."""
    return [weight for layer in model.layers if "dropout" not in layer.name for weight in layer.get_weights()]


def randomise(model: Any) -> None:
    """Batch norm away from its initial 0 and 1, biases away from 0; kernels are random already."""
    generator = np.random.default_rng(0)
    for layer in model.layers:
        for weight in layer.weights:
            kind = weight.path.rpartition("/")[2]
            if kind in ("gamma", "moving_variance"):
                weight.assign(generator.uniform(0.5, 1.5, weight.shape))
            elif kind in ("beta", "moving_mean", "bias"):
                weight.assign(generator.normal(0, 0.1, weight.shape))


def same_layers(theirs: Any, ours: torch.nn.Module, size: int) -> bool:
    """Whether Keras's list of layers, head excepted, is the one that `keras_layers` works out."""
    for layer, expected in zip(keras_layers(ours, size), theirs.layers, strict=False):
        kind, shape = type(expected).__name__, tuple(expected.output.shape[1:])
        # A sum that is scaled first is a class of its own in keras.applications.
        found = ("CustomScaleLayer" if kind == "CustomScaleLayer" and layer.kind == "Add" else layer.kind,)
        found += (layer.shape[1:], layer.parameters, bare_name(layer.name, layer.kind))
        wanted = (kind, shape, expected.count_params(), bare_name(expected.name, kind))
        if found != wanted:
            print(f"  layer {layer.name} {found} is {expected.name} {wanted} in Keras")
            return False
    return True


def bare_name(name: str, kind: str) -> str:
    """A layer's name; "" for one that Keras makes up by counting, which differs from session to session."""
    counted = renumbered([KerasLayer(name, kind, (), 0, "", ())])[0].name
    return "" if re.fullmatch(rf"{counted}(_\d+)?", name) else name


def write_page(measured: dict[str, str]) -> None:
    """Puts lines of the table, by Keras's name, into the page of the documentation.

    Lines of networks that were measured before stay as they are; all are in the order of `ARCHS`.
    """
    old = PAGE.read_text().splitlines() if PAGE.is_file() else []
    known = {line.split()[1]: line for line in old if line.startswith("| ")}
    rows = [line for name in ARCHS if (line := (known | measured).get(name))]
    PAGE.write_text(HEADING + "\n".join([*rows, ""]))


def line_of(row: Row) -> str:
    """A network's line of the table."""
    layers = "equal" if row.same_layers else "DIFFERENT"
    return f"| {row.name} | `{row.arch}` | {row.parameters:,} | {row.worst:.1e} | {layers} |"


def main(names: list[str]) -> int:
    """Compares the named networks, or all; returns 1 where one is off."""
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        for name in names or ARCHS:
            row = compare(name, Path(folder))
            print(line_of(row), flush=True)
            write_page({name: line_of(row)})
            wrong += row.worst > LIMIT or not row.same_layers
    return int(wrong > 0)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
