"""The augmentations by name, and the ranges that they draw from."""

import math

# Augmentations of whole batches of tensors; see `loading/batches.py`.
BATCH_AUGMENTATIONS = ("none", "mirror", "light", "crop", "keras", "keras_zoom", "keras_shift", "alexnet")
# Augmentations of single images, which torchvision does not have for batches; see `per_image.py`.
IMAGE_AUGMENTATIONS = ("rand", "trivial")
AUGMENTATIONS = BATCH_AUGMENTATIONS + IMAGE_AUGMENTATIONS

# Random crops: fraction of the area, and ratio of width to height.
CROPS = {"light": ((0.7, 1.0), (0.85, 1.18)), "crop": ((0.3, 1.0), (3 / 4, 4 / 3))}
COLOR = (0.2, 0.2, 0.2)  # brightness, contrast and saturation of `crop`
# `shear_range=0.2` of the original tutorials, in degrees: Keras took radians until the end of 2017.
SHEAR = math.degrees(0.2)
# The original tutorials: rotation in degrees, shift as a fraction of the side, shear in degrees, zoom.
KERAS = {
    "keras": (30, 0.2, 0, 0.2),  # Flowers-17
    "keras_zoom": (0, 0, SHEAR, 0.2),  # "very little data", and the five animals
    "keras_shift": (0, 0.1, 0, 0),  # CIFAR-10
}
