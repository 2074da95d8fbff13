"""Against Keras itself; `python benchmarks/keras_parity.py` does the same for all and writes the table."""

import importlib.util
import os
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks/keras_parity.py"
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
