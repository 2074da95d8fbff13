"""The standardization of Keras's `ImageDataGenerator` as the first layer of a network, so that it is saved with it."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from flowers_torch.errors import UsageError

KINDS = ("featurewise", "samplewise", "zca")
EPSILON = 1e-6  # Keras's, beside standard deviations and singular values
MAX_WHITENED = 48 * 48 * 3  # values of an image; the matrix has the square of it


class Standardize(nn.Module):
    """Centers and scales images N x C x H x W by statistics of the training images, or by their own.

    Args:
        kind: "featurewise" subtracts the mean of each channel in the training images and divides by its standard
            deviation. "samplewise" takes the mean and the deviation of all values of an image. "zca" subtracts the mean
            of each channel, then decorrelates all values (ZCA whitening).
        side: Height and width; only "zca" depends on it.
        epsilon: Added to standard deviations and, for "zca", to the singular values of the training images.

    Raises:
        UsageError: an unknown kind, or images that are too large to whiten.
    """

    mean: Tensor
    std: Tensor
    whitening: Tensor

    def __init__(self, kind: str, channels: int, side: int, epsilon: float = EPSILON) -> None:
        super().__init__()
        if kind not in KINDS:
            raise UsageError(f"unknown standardization {kind!r}", f"use one of {', '.join(KINDS)}")
        values = channels * side * side
        if kind == "zca" and values > MAX_WHITENED:
            what = f"images of {side} px have {values:,} values, too many to whiten"
            raise UsageError(what, "use --size 48 or less, or featurewise")
        self.kind, self.epsilon, self.shape = kind, epsilon, (channels, side, side)
        if kind != "samplewise":
            self.register_buffer("mean", torch.zeros(channels, 1, 1))
            self.register_buffer("std", torch.ones(channels, 1, 1))
        if kind == "zca":
            self.register_buffer("whitening", torch.eye(values))

    @torch.no_grad()
    def fit(self, batches: Iterable[Tensor]) -> None:
        """Sets the statistics from all training images, in batches N x C x H x W; those of samplewise need none."""
        if self.kind == "samplewise":
            return
        count, total, products = 0, torch.zeros(()), torch.zeros(())
        for images in batches:
            flat = images.cpu().double().flatten(1)
            count, total, products = count + len(flat), total + flat.sum(0), products + self._products(flat)
        channels = self.shape[0]
        mean = (total / count).view(channels, -1).mean(1)
        each = mean.repeat_interleave(total.numel() // channels)  # of each value
        if self.kind == "featurewise":
            square = (products / count).view(channels, -1).mean(1)
            self.std.copy_((square - mean**2).clamp_(min=0).sqrt().view(-1, 1, 1))
        else:
            shift = torch.outer(total / count, each)
            sizes, vectors = torch.linalg.eigh(products / count - shift - shift.T + torch.outer(each, each))
            rank = min(count, len(sizes))  # fewer images than values span no more directions
            sizes, vectors = sizes[-rank:].clamp_(min=0).sqrt(), vectors[:, -rank:]
            scales = 1 / (sizes + self.epsilon / math.sqrt(count))
            self.whitening.copy_((vectors * scales) @ vectors.T)
        self.mean.copy_(mean.view(-1, 1, 1))

    def _products(self, flat: Tensor) -> Tensor:
        """Sums of the squares of values, or of the products of all pairs of values."""
        return flat.T @ flat if self.kind == "zca" else flat.square().sum(0)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "samplewise":
            x = x - x.mean((1, 2, 3), keepdim=True)
            return x / (x.std((1, 2, 3), correction=0, keepdim=True) + self.epsilon)
        x = x - self.mean
        if self.kind == "featurewise":
            return x / (self.std + self.epsilon)
        return (x.flatten(1) @ self.whitening).unflatten(1, self.shape)


def standardization(kind: str, channels: int, side: int) -> nn.Module:
    """`Standardize`, or a module that changes nothing if `kind` is empty."""
    return Standardize(kind, channels, side) if kind else nn.Identity()
