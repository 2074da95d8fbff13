"""Do the networks here compute what keras.applications computes? Same weights, same picture, both logits.

    pip install "flowers-torch[keras]" keras tensorflow-cpu
    python benchmarks/keras_parity.py            # all, writes docs/keras-parity.md, about ten minutes
    python benchmarks/keras_parity.py Xception   # one, prints only

Each Keras network gets random weights (batch norm statistics too), is saved in all three forms (legacy .h5,
.weights.h5, .keras) and read here by the package's own loader. The pictures have Keras's usual size and an
odd one, because TensorFlow pads odd and even sizes differently.
"""

import os

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import dataclasses
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch._inductor  # before TensorFlow: two copies of LLVM start well in this order only

from flowers_torch.models.keras_layers import keras_count, keras_layers
from flowers_torch.models.keras_weights import keras_options, load_keras_weights
from flowers_torch.models.zoo import REGISTRY, create_model

import keras  # isort: skip

FORMS = (".h5", ".weights.h5", ".keras")
ARCHS = {
    entry.keras_name: name
    for name, entry in REGISTRY.items()
    if hasattr(keras.applications, entry.keras_name or "-")
}
LIMIT = 1e-4  # largest difference of two logits, relative to the largest logit


@dataclasses.dataclass
class Row:
    """What was found for one network."""

    name: str
    arch: str
    parameters: int
    differences: dict[str, float]  # size and form -> largest difference relative to the largest logit
    same_layers: bool  # whether the layer lists (name unless counted, parameters) are equal

    @property
    def worst(self) -> float:
        return max(self.differences.values())


def compare(name: str, folder: Path, odd: bool = True) -> Row:
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
        ours = create_model(arch, 1000, options=keras_options(arch)).eval()
        report = load_keras_weights(ours, arch, folder / f"{name}{form}", with_head=True, from_bgr=False)
        if not report.head_loaded or report.used != len(weights_of(theirs)):
            raise RuntimeError(f"{name}{form}: {report.used} of {len(weights_of(theirs))} arrays used")
        results[f"{size} {form}"] = difference(theirs, ours, size)
    row = Row(name, arch, keras_count(ours), results, same_layers(theirs, ours, size))
    if odd and not name.startswith("VGG"):  # whose dense layers are made for one size
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
    found = keras_layers(ours, size)
    for layer, expected in zip(found, theirs.layers, strict=False):
        shape = expected.output.shape[1:]
        if layer.parameters != expected.count_params() or layer.shape[1:] != tuple(shape):
            print(
                f"  layer {layer.name} {layer.shape} {layer.parameters} is {expected.name} {shape} in Keras"
            )
            return False
    return True


def table(rows: list[Row]) -> str:
    """The page of the documentation."""
    lines = [
        "# Parity with Keras",
        "",
        f"Written by `python benchmarks/keras_parity.py` with Keras {keras.__version__} "
        f"({keras.backend.backend()}), torch {torch.__version__.partition('+')[0]}, on the CPU in float32.",
        "",
        "Same random weights, same picture. The difference is the largest one of the 1000 logits relative to "
        "the largest logit, over two picture sizes (the usual and an odd one) and all three file forms "
        f"(legacy `.h5`, `.weights.h5`, `.keras`); at most {LIMIT:g} is asked for. "
        "Layers: whether `flowers-torch layers ARCH --keras` "
        "lists what `model.layers` lists, with every output shape and parameter count.",
        "",
        "| Keras | here | parameters | largest difference | layers |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {row.name} | `{row.arch}` | {row.parameters:,} | {row.worst:.1e} | "
        f"{'equal' if row.same_layers else 'DIFFERENT'} |"
        for row in rows
    ]
    return "\n".join(
        [*lines, "", "ResNeXt50 and ResNeXt101 are no longer part of Keras; see the loader's tests.", ""]
    )


def main(names: list[str]) -> int:
    """Compares the named networks, or all; returns 1 where one is off."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in names or ARCHS:
            rows.append(compare(name, Path(folder)))
            print(
                f"{name:20}{rows[-1].worst:.1e} {'' if rows[-1].same_layers else 'layers differ'}", flush=True
            )
    if not names:
        (Path(__file__).parents[1] / "docs" / "keras-parity.md").write_text(table(rows))
    return int(any(row.worst > LIMIT or not row.same_layers for row in rows))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
