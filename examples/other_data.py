"""Trains on a DataFrame, on paths and labels, on a torch dataset, and on a Hugging Face dataset.

pip install pandas "flowers-torch[hf]" && python examples/other_data.py
"""

from pathlib import Path

import datasets
import pandas
from torchvision.datasets import ImageFolder

from flowers_torch import train

paths = sorted(Path("my_photos").rglob("*.png"))
labels = [path.parent.name for path in paths]
sources = {
    "paths and labels": (paths, labels),
    "DataFrame": pandas.DataFrame({"path": paths, "species": labels}),
    "torch": ImageFolder("my_photos"),
    "Hugging Face": datasets.load_dataset("imagefolder", data_dir="my_photos"),
}
for name, data in sources.items():
    print(name, train(data, "tf_efficientnet_lite0", "offline", head_only=True, quiet=True))
