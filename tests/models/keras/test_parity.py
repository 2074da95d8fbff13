"""Logits against Keras; `python benchmarks/keras_parity.py` compares all networks and writes the table."""

import importlib.util
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from flowers_torch.models.factory import create_model
from flowers_torch.models.heads import set_head
from flowers_torch.models.keras.weights import keras_options, load_keras_weights

SCRIPT = Path(__file__).parents[3] / "benchmarks/keras_parity.py"
REASON = "needs Keras: pip install keras tensorflow-cpu"


@pytest.fixture(scope="module")
def parity() -> ModuleType:
    if importlib.util.find_spec("keras") is None:
        pytest.skip(REASON)
    if importlib.util.find_spec("tensorflow") is None and "KERAS_BACKEND" not in os.environ:
        pytest.skip(REASON)
    spec = importlib.util.spec_from_file_location("keras_parity", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # TensorFlow's and Keras's own
@pytest.mark.parametrize(
    "name",
    [
        *("Xception", "VGG16", "VGG19", "ResNet50", "ResNet101", "ResNet152"),
        *("ResNet50V2", "ResNet101V2", "ResNet152V2", "InceptionV3", "InceptionResNetV2"),
        *("MobileNet", "MobileNetV2", "DenseNet121", "DenseNet169", "DenseNet201"),
        *("NASNetMobile", "NASNetLarge"),
    ],
)
def test_same_weights_give_keras_logits(parity: ModuleType, name: str, tmp_path: Path) -> None:
    row = parity.compare(name, tmp_path)
    assert row.worst <= parity.LIMIT, row.differences
    assert row.same_layers


def tutorial_model(keras: Any, name: str) -> Any:
    """A network of the original tutorials in Keras, with logits as output."""
    layers = keras.layers
    if name == "inception_v3":  # Flowers-17
        backbone = keras.applications.InceptionV3(weights=None, include_top=False, input_shape=(75, 75, 3))
        pooled = layers.GlobalAveragePooling2D()(backbone.output)
        return keras.Model(backbone.input, layers.Dense(17)(layers.Dense(1024, activation="relu")(pooled)))
    if name == "happy_model":
        image = keras.Input((64, 64, 3))
        x = layers.Conv2D(32, (7, 7), name="conv0")(layers.ZeroPadding2D((3, 3))(image))
        x = layers.Activation("relu")(layers.BatchNormalization(axis=3, name="bn0")(x))
        x = layers.Flatten()(layers.MaxPooling2D((2, 2), name="max_pool")(x))
        return keras.Model(image, layers.Dense(3, name="fc")(x))
    features = [keras.Input((150, 150, 3))]  # cats and dogs
    for filters in (32, 32, 64):
        features += [layers.Conv2D(filters, (3, 3), activation="relu"), layers.MaxPooling2D((2, 2))]
    dense = [layers.Dense(64, activation="relu"), layers.Dropout(0.5), layers.Dense(3)]
    return keras.Sequential([*features, layers.Flatten(), *dense])


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", ["inception_v3", "happy_model", "small_convnet"])
def test_whole_models_of_the_original_tutorials(parity: ModuleType, name: str, tmp_path: Path) -> None:
    parity.keras.utils.set_random_seed(0)
    theirs = tutorial_model(parity.keras, name)
    parity.randomise(theirs)
    theirs.save(tmp_path / "model.h5")
    size, classes = theirs.input_shape[1], theirs.output_shape[-1]
    ours = create_model(name, classes, size=size, **keras_options(name))
    if name == "inception_v3":
        set_head(ours, classes, hidden=1024)
    report = load_keras_weights(ours.eval(), name, tmp_path / "model.h5")
    assert report.head_loaded and report.used == len(parity.weights_of(theirs))
    assert parity.difference(theirs, ours, size) <= parity.LIMIT
