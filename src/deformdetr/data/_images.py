"""Image files as tensors."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from PIL import Image
from torch import Tensor

from deformdetr.data._errors import DatasetError

_EXIF_ORIENTATION = 0x0112


def load_image(path: Path) -> UInt8[Tensor, "3 height width"]:
    """Decode a whole image file to red, green and blue.

    Grey, palette and CMYK images are converted, transparency is dropped, 16-bit grey keeps its upper 8 bits. The EXIF
    orientation is not applied: COCO boxes refer to the pixels as stored.

    Raises:
        DatasetError: If the file is missing, truncated or no image; it names the file.
    """
    try:
        with Image.open(path) as image:
            image.load()
            return torch.from_numpy(_to_rgb(image)).permute(2, 0, 1).contiguous()
    except Exception as error:
        # Broken files make decoders raise OSError, SyntaxError, ValueError, struct.error and more.
        raise DatasetError(f"{path}: cannot be read as an image: {error}") from error


def _to_rgb(image: Image.Image) -> UInt8[np.ndarray, "height width 3"]:
    if image.mode.startswith("I;16"):
        upper = (np.asarray(image) >> 8).astype(np.uint8)
        return np.repeat(upper[..., None], 3, axis=2)
    if image.mode in ("I", "F"):
        raise ValueError(f"32-bit grey (mode {image.mode!r}) has no known range; convert it to 8 or 16 bits")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return np.array(image.convert("RGB"))


class ImageFiles:
    """Load images by their position in a list, and hold each against the size that its annotations state.

    Args:
        paths: One file per image.
        sizes: (height, width) of each in pixels.
    """

    def __init__(self, paths: Sequence[Path], sizes: Int64[np.ndarray, "images 2"]) -> None:
        # One array instead of many strings: reading it does not copy pages into every loader process.
        self._paths = np.array([str(path) for path in paths])
        self._sizes = sizes

    def __len__(self) -> int:
        return len(self._paths)

    def __call__(self, index: int) -> UInt8[Tensor, "3 height width"]:
        """Load one image.

        Raises:
            DatasetError: If the file cannot be decoded, or its size is not the annotated one.
        """
        path = Path(str(self._paths[index]))
        image = load_image(path)
        height, width = (int(side) for side in self._sizes[index])
        if image.shape[1:] != (height, width):
            raise DatasetError(
                f"{path}: the file holds {image.shape[2]} x {image.shape[1]} pixels (width x height), "
                f"its annotations say {width} x {height}{_orientation_hint(path)}"
            )
        return image


def _orientation_hint(path: Path) -> str:
    with Image.open(path) as image:
        orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    if orientation in (5, 6, 7, 8):
        return f"; its EXIF orientation is {orientation}, and boxes must refer to the pixels as stored, not rotated"
    return ""


class ImageArray:
    """Give images of one size from memory, by their position."""

    def __init__(self, images: UInt8[Tensor, "images 3 height width"]) -> None:
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def __call__(self, index: int) -> UInt8[Tensor, "3 height width"]:
        """Give one image."""
        return self._images[index]
