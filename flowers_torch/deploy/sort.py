"""Sorting of photos into folders by predicted class, with links; the photos themselves are not moved."""

import itertools
import os
import shutil
from pathlib import Path

from flowers_torch.deploy.classifier import Prediction, is_url
from flowers_torch.errors import ResourceError, UsageError, printable
from flowers_torch.files.atomic import write_text

UNSURE, UNREADABLE = "unsure", "unreadable"


def sort_into(folder: Path, prediction: Prediction) -> Path:
    """Links an image into `folder/<class>/`, or into `unsure/` or `unreadable/`.

    The image is copied if the file system has no links. A URL is written to a text file. An image that is
    already linked is left alone; another image of the same name gets a number.

    Raises:
        ResourceError: the folder cannot be written.
    """
    if prediction.error or prediction.reason:
        target = folder / (UNREADABLE if prediction.error else UNSURE)
    else:
        target = folder / folder_name(prediction.classes[0])
    try:
        target.mkdir(parents=True, exist_ok=True)
        if is_url(prediction.file):
            path = _free_path(target, f"{Path(prediction.file).name[:100] or 'photo'}.txt", None)
            write_text(path, prediction.file + "\n")
            return path
        image = Path(prediction.file).absolute()
        path = _free_path(target, image.name, image)
        if not path.is_symlink():
            try:
                os.symlink(image, path)
            except (OSError, NotImplementedError):  # no permission, or a file system without links
                shutil.copy2(image, path)
    except OSError as error:
        raise ResourceError(
            f"cannot sort into {printable(target)}: {error.strerror}", "choose another folder"
        ) from error
    return path


def folder_name(label: str) -> str:
    """A class name as the name of one folder, which cannot lead to another folder."""
    name = "".join("_" if c in '/\\:*?"<>|' or not c.isprintable() else c for c in label).strip(" .")[:100]
    return f"{name}_class" if name.lower() in (UNSURE, UNREADABLE) else name or "_"


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
        if not os.path.lexists(path) or (image and path.is_symlink() and path.readlink() == image):
            break
    return path
