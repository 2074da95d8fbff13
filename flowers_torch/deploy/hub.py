"""torch.hub entry point for a trained classifier."""

import re
from collections.abc import Sequence

from PIL import Image
from torch import nn

from flowers_torch.data.augment.per_image import enough_side, eval_transform
from flowers_torch.data.opened_images import to_upright_rgb
from flowers_torch.errors import ModelFileError, UsageError, printable
from flowers_torch.files.cache import cache_folder
from flowers_torch.files.download import download, file_digest
from flowers_torch.files.system import expand_home
from flowers_torch.models.checkpoint import load_classifier


def flowers_classifier(checkpoint: str, sha256: str = "") -> nn.Module:
    """A classifier trained by this package, in inference mode.

    Args:
        checkpoint: `model.safetensors`, the run folder that holds it, or its http(s) or file URL.
        sha256: Hexadecimal digest of the file; required for a URL, whose content may change.

    Returns:
        A network from (N, 3, H, W) to logits (N, classes) with the attributes `classes` (the names), `transform`
        (from a PIL image of any mode, which it turns upright by EXIF, to the network input (3, H, W)) and `info`
        (all metadata of the file).

    Raises:
        UsageError: a URL without a digest, or an invalid digest.
        ResourceError: the URL cannot be fetched, or the download has another digest.
        ModelFileError: the file is missing, damaged, of another kind, or has another digest.
    """
    digest = sha256.lower()
    if digest and not re.fullmatch("[0-9a-f]{64}", digest):
        what = f"{printable(sha256)} is not a valid sha256: expected 64 hexadecimal digits"
        raise UsageError(what, "pass the digits that sha256sum FILE prints")
    if "://" in checkpoint:
        if not digest:  # guard: H01
            raise UsageError(f"{printable(checkpoint)} needs a checksum", "pass sha256=, see sha256sum FILE")
        path = download(checkpoint, cache_folder() / "hub" / digest / "model.safetensors", digest)
    else:
        path = expand_home(checkpoint)
        path = path / "model.safetensors" if path.is_dir() else path
    if digest and path.is_file() and (found := file_digest(path)) != digest:
        raise ModelFileError(f"{printable(path)} has sha256 {found}, expected {digest}", "use another copy")
    network, info = load_classifier(path)
    prepared = info.preprocessing
    smallest = enough_side(prepared.size, prepared.crop)
    upright = Upright(smallest, prepared.value_range)
    transform = nn.Sequential(upright, *eval_transform(**prepared.transform_options()))
    # `vars` bypasses nn.Module, which would register the transform as a submodule.
    vars(network).update(info=info, classes=info.classes, transform=transform)
    return network


class Upright(nn.Module):
    """From a Pillow image of any mode to an upright RGB one; a large one need not have more than `at_least` pixels."""

    def __init__(self, at_least: int, value_range: Sequence[float]) -> None:
        super().__init__()
        self.at_least, self.value_range = at_least, tuple(value_range)

    def forward(self, image: Image.Image) -> Image.Image:
        return to_upright_rgb(image, at_least=self.at_least, value_range=self.value_range)
