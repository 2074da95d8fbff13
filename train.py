"""Trains an image classifier on your photos, in two stages.

    python train.py --arch inception_v3                  Flowers-17, downloaded once, ImageNet weights
    python train.py --arch inception_v3 --data demo      drawn flowers, nothing downloaded
    python train.py --data my_photos/                    a folder that holds a folder for each class

The method itself is in flowers_torch/runs/recipe.py; every option and its meaning in flowers_torch/config.py.
The same command is `flowers-torch train` once the package is installed.
"""

import sys

from flowers_torch.cli import guarded

if __name__ == "__main__":
    sys.exit(guarded("train", sys.argv[1:], prog="python train.py"))
