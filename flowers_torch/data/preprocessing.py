"""How an image becomes the input of a network."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """Input size, normalization and resizing; every transform is derived from it."""

    size: int = 224  # pixels, height and width
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)  # of RGB in 0..1
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    interpolation: str = "bicubic"  # or "bilinear"
    crop: float = 0.875  # side of the center crop as a fraction of the resized image's shorter side
    stretch: bool = False  # resize to `size` x `size` without a crop, as Keras's target_size does

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Preprocessing":
        """Reads the fields from JSON, which has lists instead of tuples."""
        values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
        return cls(**values)
