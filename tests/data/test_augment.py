"""Transforms: evaluation is fixed, policies are what they say, Keras's affine agrees with its definition."""

import numpy as np
import pytest
import torch
from PIL import Image

from flowers_torch.data.augment import POLICIES, RandomKerasAffine, eval_transform, train_transform

RECORD = {"size": 32, "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.25, 0.3)}


def photo(width: int = 60, height: int = 40) -> Image.Image:
    draw = np.random.default_rng(0)
    return Image.fromarray(draw.integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("size", [(60, 40), (40, 60), (1, 200), (32, 32)])
@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_gives_the_input_shape(policy: str, size: tuple[int, int]) -> None:
    out = train_transform(policy, **RECORD)(photo(*size))
    assert out.shape == (3, 32, 32) and out.dtype == torch.float32 and out.isfinite().all()


def test_evaluation_by_hand() -> None:
    out = eval_transform(32, RECORD["mean"], RECORD["std"], "bilinear", crop=0.8)(photo())
    resized = np.asarray(photo().resize((60, 40), Image.Resampling.BILINEAR)) / 255  # 32 / 0.8 = 40
    expected = (resized[4:36, 14:46] - RECORD["mean"]) / RECORD["std"]
    assert np.allclose(out.permute(1, 2, 0).numpy(), expected, atol=1e-5)


def test_squash_keeps_the_whole_photo() -> None:
    picture = Image.new("RGB", (60, 40))
    picture.paste((255, 255, 255), (0, 0, 2, 40))  # at the left edge, which a centre crop loses
    zero = {"size": 32, "mean": (0.0,) * 3, "std": (1.0,) * 3}
    assert eval_transform(**zero, squash=True)(picture).max() > 0.9
    assert eval_transform(**zero, squash=False)(picture).max() == 0


@pytest.mark.parametrize("policy", [policy for policy in POLICIES if policy != "none"])
def test_policies_are_a_function_of_the_seed(policy: str) -> None:
    transform, views = train_transform(policy, **RECORD), []
    for seed in (1, 2, 1):
        torch.manual_seed(seed)
        views.append(transform(photo()))
    assert torch.equal(views[0], views[2]) and not torch.equal(views[0], views[1])


def test_keras_affine_without_range_is_the_identity() -> None:
    image = torch.rand(3, 20, 30)
    assert torch.allclose(RandomKerasAffine(0, 0, 0)(image), image, atol=1e-5)


def test_keras_affine_shift_moves_and_repeats_the_border(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        torch, "rand", lambda n: torch.tensor([0.5, 1.0, 0.5, 0.5, 0.5])
    )  # full shift in x only
    image = torch.arange(10.0).expand(1, 10, 10)
    moved = RandomKerasAffine(rotation=0, shift=0.2, zoom=0)(image)
    assert torch.allclose(moved[0, 0], torch.tensor([2.0, 3, 4, 5, 6, 7, 8, 9, 9, 9]), atol=1e-4)


def test_keras_affine_rotation_is_rigid_on_oblong_photos(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter turn about the centre maps pixel (row, column) as a rotation of the plane does."""
    monkeypatch.setattr(torch, "rand", lambda n: torch.tensor([1.0, 0.5, 0.5, 0.5, 0.5]))
    image = torch.zeros(1, 21, 41)
    image[0, 10, 25] = 1  # five right of the centre
    turned = RandomKerasAffine(rotation=90, shift=0, zoom=0)(image)
    row, column = divmod(int(turned.argmax()), 41)
    assert abs(row - 10) == 5 and column == 20


def test_unknown_policy() -> None:
    with pytest.raises(ValueError, match="unknown augmentation policy 'lite'"):
        train_transform("lite", **RECORD)
