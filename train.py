"""Trains an image classifier on your photos in two stages.

    python train.py --arch inception_v3                  Flowers-17, downloaded once, ImageNet weights
    python train.py --arch inception_v3 --data demo      drawn flowers, nothing downloaded
    python train.py --data my_photos/                    a folder with a subfolder for each class

The recipe is in flowers_torch/runs/recipe.py, the options are in flowers_torch/config.py. After installation
the same command is `flowers-torch train`.
"""

import sys

from flowers_torch.cli import guarded, program

if __name__ == "__main__":
    program(lambda: guarded("train", sys.argv[1:], prog="python train.py"))
