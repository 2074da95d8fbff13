"""From photos to predictions, cell by cell, in VS Code, Spyder or Jupyter (with jupytext), or as a program.

python examples/notebook.py [DATA]
"""

# %% Choose the photos: a folder with one folder for each class, or else drawn flowers.
import sys

from flowers_torch import train

DATA = sys.argv[1] if len(sys.argv) > 1 else "demo"

# %% Train a small network from random weights, so that nothing is downloaded. For your own photos use
# `train(DATA, "tf_efficientnet_lite0", "offline")`, or `train(DATA)` for InceptionV3.
result = train(DATA, "small_convnet", "none", size=48, epochs=(1, 3), quiet=True)

# %% Print the accuracy on the test photos, with its 95% interval.
low, high = result.interval
print(f"accuracy {result.accuracy:.3f} ({low:.3f} .. {high:.3f}) on {result.test.images} test photos")

# %% Print the loss of each epoch.
for row in result.history:
    print(f"{row['stage']:10} {row['epoch']:3}  loss {row['train_loss']:.3f}  validation {row['val_loss']:.3f}")

# %% Find the misclassified test photos in the table of predictions.
import csv  # noqa: E402

with (result.folder / "predictions.csv").open() as file:
    wrong = [row["file"] for row in csv.DictReader(file) if not int(row["correct"])]
print(f"{len(wrong)} test photos are misclassified; {result.folder / 'report.html'} shows them")

# %% Use the classifier: its class names, its network, and its predictions for other photos.
classifier = result.classifier
print(classifier.classes, sum(p.numel() for p in classifier.network.parameters()), "parameters")
if DATA != "demo":
    for prediction in classifier(DATA, top=2)[:5]:
        print(prediction.file, prediction.classes, prediction.probabilities)
