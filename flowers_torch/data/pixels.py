"""From the pixels of a loaded image, of any type, to 8-bit sRGB on white."""

import dataclasses

from PIL import Image

from flowers_torch.data.color import to_srgb
from flowers_torch.data.value_range import FULL, Range, is_deep_gray, join_bytes, to_8_bits

# guard: D12
BACKGROUND = (255, 255, 255)  # behind transparent pixels
STRIP_PIXELS = 1 << 20  # of an image of more than four times as many, converted at a time
PHOTOMETRIC_TAG = 0x0106  # of TIFF; 0: the smallest value is white


@dataclasses.dataclass
class LoadedImage:
    """A loaded image with what its conversion needs."""

    image: Image.Image
    low: Image.Image | None  # the low bytes of colors of 16 bits
    value_range: Range
    profile: bytes

    def to_rgb(self, box: tuple[int, int, int, int] | None = None) -> Image.Image:
        """The image in 8-bit sRGB, or those in a box."""
        pixels = self.image.crop(box) if box else self.image
        if self.low is not None:
            pixels = join_bytes(pixels, self.low.crop(box) if box else self.low, self.value_range)
        elif is_deep_gray(pixels):
            defined = self.image.format == "PPM" and pixels.mode != "F"
            tags = getattr(self.image, "tag_v2", {})
            pixels = to_8_bits(pixels, FULL if defined else self.value_range, tags.get(PHOTOMETRIC_TAG) == 0)
        if pixels.has_transparency_data or pixels.mode in ("La", "RGBa"):  # guard: D17, D17 palette
            return self._on_white(pixels.convert("LA") if pixels.mode == "La" else pixels)
        return to_srgb(pixels, self.profile)

    def _on_white(self, pixels: Image.Image) -> Image.Image:
        rgba = pixels.convert("RGBA")
        if self.profile:
            colors = to_srgb(pixels.convert("L") if pixels.mode == "LA" else rgba.convert("RGB"), self.profile)
            colors.putalpha(rgba.getchannel("A"))
            rgba = colors
        return Image.alpha_composite(Image.new("RGBA", rgba.size, (*BACKGROUND, 255)), rgba).convert("RGB")


def to_rgb(loaded: LoadedImage, at_least: int) -> Image.Image:
    """Converts in strips, because each conversion makes copies, and reduces what is larger than necessary."""
    width, height = loaded.image.size
    if width * height <= 4 * STRIP_PIXELS:  # guard: S7 strips
        return loaded.to_rgb()
    factor = max(1, min(width, height) // at_least) if at_least else 1
    rows = max(1, STRIP_PIXELS // width // factor) * factor
    whole = Image.new("RGB", (-(-width // factor), -(-height // factor)))
    for top in range(0, height, rows):
        strip = loaded.to_rgb((0, top, width, min(top + rows, height)))
        whole.paste(strip.reduce(factor) if factor > 1 else strip, (0, top // factor))
    return whole
