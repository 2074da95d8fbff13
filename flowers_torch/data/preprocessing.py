"""How an image becomes the input of a network."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How a photo becomes the network's input; every transform is derived from this record."""

    size: int = 224  # pixels, both sides
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)  # of RGB in 0..1
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    interpolation: str = "bicubic"  # "bilinear" or "bicubic"
    crop: float = 0.875  # share of the resized photo's shorter side that the centre crop keeps
    stretch: bool = False  # resize both sides to `size` without a crop, as Keras's target_size does

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Preprocessing":
        """Rebuilds the record from JSON, where tuples have become lists."""
        values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
        return cls(**values)
