"""Sorting of photos into folders by predicted class, with links; the photos themselves are not moved."""

import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from flowers_torch.deploy.inputs import is_url
from flowers_torch.deploy.predictor import Prediction
from flowers_torch.errors import ResourceError, UsageError, printable
from flowers_torch.files.atomic import refuse_link, write_text
from flowers_torch.files.system import caseless, link_or_copy, valid_name

UNSURE, UNREADABLE = "unsure", "unreadable"


def sort_into(folder: Path, prediction: Prediction, names: Mapping[str, str]) -> Path:
    """Links an image into `folder/<class>/`, `unsure/` or `unreadable/`; a second one of its name gets a number.

    `names` are the names of the folders by class, from `folder_names`. Without links in the file system, the image
    is copied. A URL is written to a text file.

    Raises:
        ResourceError: the folder cannot be written.
    """
    name = UNREADABLE if prediction.error else UNSURE if prediction.reason else names[prediction.classes[0]]
    target = folder / name
    try:
        refuse_link(target).mkdir(parents=True, exist_ok=True)
        if is_url(prediction.file):
            path = _free_path(target, f"{Path(prediction.file).name[:100] or 'photo'}.txt", None)
            write_text(path, prediction.file + "\n")
            return path
        image = Path(prediction.file).absolute()
        path = _free_path(target, image.name, image)
        if not path.is_symlink():
            link_or_copy(image, path)
    except OSError as error:
        what = f"cannot sort into {printable(target)}: {error.strerror}"
        raise ResourceError(what, "choose another folder") from error
    return path


def folder_names(classes: Sequence[str]) -> dict[str, str]:
    """The folder of each class: its name as far as it is valid, and a number if another class has that already.

    File systems of macOS and Windows do not tell upper from lower case.
    """
    taken, names = set[str](), dict[str, str]()
    for label in classes:
        name = folder_name(label)
        numbered = (name if number == 1 else f"{name}-{number}" for number in itertools.count(1))
        names[label] = next(name for name in numbered if caseless(name) not in taken)  # guard: D29 folders
        taken.add(caseless(names[label]))
    return names


def folder_name(label: str) -> str:
    """A class name as the name of one folder, which cannot lead to another folder."""
    name = valid_name(label)
    return f"{name}_class" if name.lower() in (UNSURE, UNREADABLE) else name


def check_folder(folder: Path, images: list[Path]) -> None:
    """Refuses a folder that holds the images, and a file."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{printable(folder)} is a file", "name a folder")
    resolved = folder.resolve()
    if any(resolved == image.resolve().parent for image in images):
        raise UsageError(f"{printable(folder)} holds the photos themselves", "name another folder")


def _free_path(folder: Path, name: str, image: Path | None) -> Path:
    """A path that is free or already links to this image."""
    stem, suffix = os.path.splitext(name)
    for number in itertools.count(1):
        path = folder / (name if number == 1 else f"{stem}-{number}{suffix}")
        if not os.path.lexists(path) or (image and path.is_symlink() and path.resolve() == image.resolve()):
            break
    return path
