"""Transforms and augmentations: for one image, for batches of tensors, and as Keras defines them."""
