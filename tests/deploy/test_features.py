"""Features of image files."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from flowers_torch.deploy.features import image_features, open_network
from flowers_torch.errors import DataError, UsageError
from flowers_torch.training.device import choose_runtime


def test_batches_do_not_matter_and_a_bad_image_is_reported(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.png" for i in range(5)]
    for i, path in enumerate(paths):
        Image.effect_noise((50 + i, 40), 60).convert("RGB").save(path)
    torch.manual_seed(0)
    model, preprocessing, loaded = open_network("test_resnet", "none")
    assert loaded
    runtime, done = choose_runtime("cpu", "fp32"), []
    whole = image_features(model, preprocessing, paths, runtime, batch_size=2, progress=done.append)
    assert done == [2, 4, 5] and whole.shape[0] == 5 and whole.ndim == 2
    single = image_features(model, preprocessing, paths[3:4], runtime)
    torch.testing.assert_close(whole[3], single[0], atol=1e-5, rtol=1e-4)
    paths[1].write_bytes(b"")
    with pytest.raises(DataError, match="1.png"):
        image_features(model, preprocessing, paths, runtime)


def test_a_missing_model() -> None:
    with pytest.raises(UsageError, match="nowhere.*--weights"):
        open_network("nowhere")
