"""Transfer learning for image classification on your own photos, in PyTorch."""

__version__ = "0.1.0"
