"""How an image becomes the input of a network."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """Input size, normalization and resizing, and how pixels are read; every transform is derived from it."""

    size: int = 224  # pixels, height and width
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)  # of RGB in 0..1
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    interpolation: str = "bicubic"  # or "bilinear"
    crop: float = 0.875  # side of the center crop as a fraction of the resized image's shorter side
    stretch: bool = False  # resize to `size` x `size` without a crop, as Keras's target_size does
    # Values that become 0 and 255 in images of more than 8 bits; empty: 0 and 65535, and floats are refused.
    value_range: tuple[float, ...] = ()
    color_space: str = "sRGB"  # of the pixels; color profiles are applied

    def transform_options(self) -> dict[str, Any]:
        """The arguments of `eval_transform`."""
        names = ("size", "mean", "std", "interpolation", "crop", "stretch")
        return {name: getattr(self, name) for name in names}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Preprocessing":
        """Reads the fields from JSON, which has lists instead of tuples."""
        values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
        return cls(**values)
