"""Photos sorted into folders by what the network named them; the photos themselves stay where they are."""

import os
import shutil
from pathlib import Path

from flowers_torch.deploy.classifier import Prediction, is_address
from flowers_torch.errors import ResourceError, UsageError, printable
from flowers_torch.files.atomic import write_text

UNSURE, UNREADABLE = "unsure", "unreadable"


def sort_into(folder: Path, answer: Prediction) -> Path:
    """Links a photo into `folder/<class>/`, or into `unsure/` or `unreadable/`.

    Where the file system has no links the photo is copied; an address becomes a text file that holds it.
    A photo that is linked there already is left alone; another one of the same name gets a number.

    Args:
        folder: Made where it is missing.
        answer: Of a photo.

    Raises:
        ResourceError: the folder cannot be written.
    """
    if answer.error:
        name = UNREADABLE
    elif answer.doubt:
        name = UNSURE
    else:
        name = folder_name(answer.classes[0])
    target = folder / name
    try:
        target.mkdir(parents=True, exist_ok=True)
        if is_address(answer.file):
            place = _free(target, f"{Path(answer.file).name[:100] or 'photo'}.txt", None)
            write_text(place, answer.file + "\n")
            return place
        photo = Path(answer.file).absolute()
        place = _free(target, photo.name, photo)
        if not place.is_symlink():
            try:
                os.symlink(photo, place)
            except (OSError, NotImplementedError):  # no right, or a file system without links
                shutil.copy2(photo, place)
    except OSError as error:
        raise ResourceError(
            f"cannot sort into {printable(target)}: {error.strerror}", "choose another folder"
        ) from error
    return place


def folder_name(label: str) -> str:
    """A class as the name of one folder, whatever the weights file calls it: it must not lead elsewhere."""
    name = "".join("_" if c in '/\\:*?"<>|' or not c.isprintable() else c for c in label).strip(" .")[:100]
    return f"{name}_class" if name.lower() in (UNSURE, UNREADABLE) else name or "_"


def check_folder(folder: Path, photos: list[Path]) -> None:
    """Refuses a folder that would become part of the photos, or that is a file."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{printable(folder)} is a file", "name a folder")
    home = folder.resolve()
    if any(home == photo.resolve().parent for photo in photos):
        raise UsageError(f"{printable(folder)} holds the photos themselves", "name another folder")


def _free(folder: Path, name: str, photo: Path | None) -> Path:
    """A place for a file of this name: free, or linked to this photo already."""
    stem, suffix = os.path.splitext(name)
    number = 1
    while True:
        place = folder / (name if number == 1 else f"{stem}-{number}{suffix}")
        if not os.path.lexists(place) or (photo and place.is_symlink() and Path(os.readlink(place)) == photo):
            return place
        number += 1
