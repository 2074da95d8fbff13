"""Standardization as a layer against the output of Keras 3.15, and in a run."""

from pathlib import Path

import numpy as np
import pytest
import torch

from flowers_torch.errors import UsageError
from flowers_torch.models.factory import create_model
from flowers_torch.models.standardize import Standardize

GOLDEN = Path(__file__).parents[1] / "data/augment/golden"


@pytest.mark.parametrize("kind", ["featurewise", "samplewise", "zca"])
def test_a_fitted_layer_is_keras(kind: str) -> None:
    """The same photos, in batches of several sizes; channels last in Keras."""
    with np.load(GOLDEN / "image_data_generator.npz") as golden:
        images = torch.from_numpy(golden["set_8x8_uint8"]).permute(0, 3, 1, 2) / 255
        expected = torch.from_numpy(golden[f"{kind}_out"]).permute(0, 3, 1, 2)
    layer = Standardize(kind, 3, 8, epsilon=1e-2 if kind == "zca" else 1e-6)
    layer.fit(images.split([7, 32, 1]))
    torch.testing.assert_close(layer(images), expected.float(), atol=2e-4, rtol=0)


def test_whitened_images_have_no_correlations() -> None:
    images = torch.randn(400, 2, 3, 3, generator=torch.Generator().manual_seed(0)).cumsum(2)
    layer = Standardize("zca", 2, 3)
    layer.fit([images])
    flat = layer(images).flatten(1)
    torch.testing.assert_close(flat.T.cov(correction=0), torch.eye(18), atol=2e-2, rtol=0)


def test_kinds_and_sizes_that_are_refused() -> None:
    with pytest.raises(UsageError, match="unknown standardization 'pca'; fix: use one of featurewise"):
        create_model("cifar10_net", standardize="pca")
    with pytest.raises(UsageError, match="images of 150 px have 67,500 values, too many to whiten"):
        create_model("small_convnet", size=150, standardize="zca")
