"""The package from Python: `Classifier` and `train`."""
