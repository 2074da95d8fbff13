"""From photos to answers, cell by cell: open it in VS Code, Spyder or Jupyter (jupytext), or run it as it is.

python examples/notebook.py [PHOTOS]
"""

# %% What to train on: a folder of class folders; without one, drawn flowers.
import sys

from flowers_torch import load, predict, train

PHOTOS = sys.argv[1] if len(sys.argv) > 1 else "demo"

# %% Train. A small network from random weights, because the demo must not need a download; for your photos
# take `train(PHOTOS, "tf_efficientnet_lite0", "offline")`, or `train(PHOTOS)` for InceptionV3.
result = train(PHOTOS, "small_convnet", "none", size=48, epochs=(1, 3), quiet=True)

# %% How good is it, on photos that decided nothing?
low, high = result.test.interval()
print(f"accuracy {result.test.accuracy:.3f} ({low:.3f} .. {high:.3f}) on {result.test.photos} test photos")

# %% How did it get there?
for row in result.history:
    print(
        f"{row['stage']:10} {row['epoch']:3}  loss {row['train_loss']:.3f}  validation {row['val_loss']:.3f}"
    )

# %% What does it say of photos? Here of those it misjudged most confidently, from the table of the test.
import csv  # noqa: E402

with (result.folder / "predictions.csv").open() as file:
    wrong = [row["file"] for row in csv.DictReader(file) if not int(row["right"])]
print(f"{len(wrong)} test photos are wrong; the report shows them: {result.folder / 'report.html'}")

# %% The model as an object: class names, the network itself, answers to any photo.
model = load(result.folder)
print(model.record.classes, sum(p.numel() for p in model.model.parameters()), "parameters")
if PHOTOS != "demo":
    for answer in predict(model, PHOTOS, top=2)[:5]:
        print(answer.file, answer.classes, answer.probabilities)
