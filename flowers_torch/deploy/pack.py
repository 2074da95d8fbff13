"""A trained model as a folder to give away or upload: weights, a card, a hubconf.py and checksums."""

from pathlib import Path

from flowers_torch import __version__
from flowers_torch.deploy.hub import flowers_classifier
from flowers_torch.errors import DataError, UsageError, printable
from flowers_torch.files import atomic_write, file_digest, write_text
from flowers_torch.models.classifier import Record, load_classifier
from flowers_torch.report.facts import Facts, read_facts

MODEL, CARD, HUBCONF, SUMS = "model.safetensors", "README.md", "hubconf.py", "SHA256SUMS"
MOST_CLASSES = 100  # named in the card

HUBCONF_TEXT = '''"""torch.hub entry point of this model; needs flowers_torch."""

from pathlib import Path

dependencies = ["torch", "flowers_torch"]


def classifier():
    """The trained network, with `classes`, `transform` and `record`; refuses weights that were changed."""
    from flowers_torch.deploy.hub import flowers_classifier

    path = Path(__file__).with_name("model.safetensors")
    return flowers_classifier(str(path), sha256="{digest}")
'''

CARD_START = """---
library_name: flowers_torch
pipeline_tag: image-classification
tags: [image-classification, pytorch, transfer-learning]
---"""
CARD_USE = """```python
import torch
from flowers_torch.data.images import load_image

network = torch.hub.load("path/to/this/folder", "classifier", source="local")
logits = network(network.transform(load_image("photo.jpg"))[None])
probabilities = (logits / network.record.temperature).softmax(1)[0]
print(network.classes[probabilities.argmax()], float(probabilities.max()))
```

From the command line: `flowers-torch predict path/to/this/folder photo.jpg`."""
CARD_LIMITS = """It names one of its classes whatever a photo shows; `flowers-torch predict --max-error 2%`
makes it say "unsure". The numbers hold for photos like those it was tested on: other cameras, seasons or
surroundings can be worse. It was not tested for decisions about people or health."""


def pack(model: Path, folder: Path) -> list[Path]:
    """Writes the folder, tries it, and returns its files.

    Args:
        model: Run folder, or a weights file alone, whose card can state no numbers.
        folder: New, empty, or packed before.

    Raises:
        UsageError: the folder holds other things.
        ModelFileError: the weights cannot be used.
    """
    weights = model / MODEL if model.is_dir() else model
    _, record = load_classifier(weights)
    facts = None
    if model.is_dir():
        try:
            facts = read_facts(model)
        except DataError as error:
            raise DataError(
                f"the card needs a finished run: {error}", f"pack {weights.name} alone"
            ) from error
    names = (MODEL, CARD, HUBCONF, SUMS)
    if folder.exists() and (not folder.is_dir() or {path.name for path in folder.iterdir()} - set(names)):
        raise UsageError(f"{printable(folder)} holds other things", "name a new folder with --out")
    content = weights.read_bytes()
    with atomic_write(folder / MODEL, size=len(content)) as file:
        file.write(content)
    digest = file_digest(folder / MODEL)
    flowers_classifier(str(folder), sha256=digest)  # as people will load it
    write_text(folder / CARD, card(record, digest, facts))
    write_text(folder / HUBCONF, HUBCONF_TEXT.format(digest=digest))
    write_text(folder / SUMS, "".join(f"{file_digest(folder / name)}  {name}\n" for name in names[:3]))
    return [folder / name for name in names]


def card(record: Record, digest: str, facts: Facts | None = None) -> str:
    """The model card, Markdown as hubs show it.

    Args:
        record: Of the network.
        digest: Of the weights file.
        facts: Of the run; without, the card says that nothing was measured.
    """
    size, classes = record.preprocessing.size, record.classes
    named = ", ".join(code(name) for name in classes[:MOST_CLASSES])
    more = f" and {len(classes) - MOST_CLASSES} more" if len(classes) > MOST_CLASSES else ""
    began = "random weights" if record.weights == "none" else code(Path(record.weights).name)
    licence = f"Those weights are licensed {code(record.licence)}. " if record.licence else ""
    numbers = "Nothing was measured where this folder was made: the weights came without their run."
    blocks = [
        CARD_START,
        f"# A classifier of photos into {len(classes)} classes",
        f"{code(record.arch)}, photos of {size} x {size} pixels, trained with flowers_torch {__version__}.",
        "## Classes",
        f"{named}{more}",
        "## Use",
        CARD_USE,
        f"The weights file holds class names, preprocessing and temperature; its sha256 is `{digest}`.",
        "## Data and numbers",
        _numbers(record, facts) if facts else numbers,
        "## Limits",
        CARD_LIMITS,
        "## Licence",
        f"Training began with {began}. {licence}Who publishes this model chooses its licence within those of "
        "the first weights and of the photos.",
    ]
    return "\n\n".join(blocks) + "\n"


def _numbers(record: Record, facts: Facts) -> str:
    scores = facts.scores()
    low, high = scores.interval()
    told = {"train": "to train on", "val": "to validate", "test": "to test"}
    counts = ", ".join(f"{len(facts.split[part]):,} {text}" for part, text in told.items())
    recalls = sorted(zip(scores.recalls().tolist(), facts.classes, strict=True))[:3]
    weakest = ", ".join(f"{code(name)} {recall:.2f}" for recall, name in recalls)
    return "\n".join(
        [
            f"Photos: {code(facts.data)}, {counts}; no photo is in two parts.",
            "",
            "| on the test photos, used once | |",
            "|---|---:|",
            f"| accuracy | {scores.accuracy:.4f} |",
            f"| 95% interval of it | {low:.3f} .. {high:.3f} |",
            f"| calibration error (temperature {record.temperature:.2f}) | {scores.calibration_error:.3f} |",
            "",
            f"The lowest recalls: {weakest}.",
        ]
    )


def code(name: str) -> str:
    """A name from strangers as code, which Markdown shows as it is."""
    return f"`{printable(name, 80).replace('`', chr(39)).replace('|', '/')}`"
