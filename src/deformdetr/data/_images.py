"""Reading image files as tensors."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from PIL import Image
from torch import Tensor

from deformdetr.data._errors import DatasetError

_EXIF_ORIENTATION = 0x0112


def load_image(path: str | Path) -> UInt8[Tensor, "3 height width"]:
    """Read an image file as 8-bit RGB.

    Grayscale, palette and CMYK images are converted. Transparency is dropped, and 16-bit grayscale keeps its upper 8
    bits. The EXIF orientation is ignored, because COCO boxes refer to the pixels as stored.

    Raises:
        DatasetError: If the file is missing, truncated or not an image. The message names the file.

    Examples:
        >>> import tempfile
        >>> from PIL import Image
        >>> from deformdetr.data import load_image
        >>> with tempfile.NamedTemporaryFile(suffix=".png") as file:
        ...     Image.new("L", (40, 30)).save(file.name)
        ...     load_image(file.name).shape
        torch.Size([3, 30, 40])
    """
    try:
        with Image.open(path) as image:
            image.load()
            return torch.from_numpy(_to_rgb(image)).permute(2, 0, 1).contiguous()
    except Exception as error:
        # On broken files, decoders raise OSError, SyntaxError, ValueError, struct.error and others.
        raise DatasetError(f"{path}: cannot be read as an image: {error}") from error


def _to_rgb(image: Image.Image) -> UInt8[np.ndarray, "height width 3"]:
    if image.mode.startswith("I;16"):
        upper = (np.asarray(image) >> 8).astype(np.uint8)
        return np.repeat(upper[..., None], 3, axis=2)
    if image.mode in ("I", "F"):
        raise ValueError(f"32-bit grayscale (mode {image.mode!r}) has no defined range; convert it to 8 or 16 bits")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return np.array(image.convert("RGB"))


class ImageFiles:
    """Read images by index, and check each size against the annotations.

    Args:
        paths: File of each image.
        sizes: Annotated (height, width) of each image in pixels.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import numpy as np
        >>> from PIL import Image
        >>> from deformdetr.data import ImageFiles
        >>> with tempfile.NamedTemporaryFile(suffix=".png") as file:
        ...     Image.new("RGB", (40, 30)).save(file.name)
        ...     ImageFiles([Path(file.name)], sizes=np.array([[30, 40]]))(0).shape
        torch.Size([3, 30, 40])
    """

    def __init__(self, paths: Sequence[Path], sizes: Int64[np.ndarray, "images 2"]) -> None:
        # An array instead of a list of strings: reading it does not copy memory into data-loader workers.
        self._paths = np.array([str(path) for path in paths])
        self._sizes = sizes

    def __call__(self, index: int) -> UInt8[Tensor, "3 height width"]:
        """Return one image.

        Raises:
            DatasetError: If the file cannot be decoded, or its size differs from the annotated one.
        """
        path = Path(str(self._paths[index]))
        image = load_image(path)
        height, width = (int(side) for side in self._sizes[index])
        if image.shape[1:] != (height, width):
            raise DatasetError(
                f"{path}: the file holds {image.shape[2]} x {image.shape[1]} pixels (width x height), "
                f"but its annotations say {width} x {height}{_orientation_hint(path)}"
            )
        return image


def _orientation_hint(path: Path) -> str:
    with Image.open(path) as image:
        orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    if orientation in (5, 6, 7, 8):
        return f"; its EXIF orientation is {orientation}, and boxes must refer to the pixels as stored, not rotated"
    return ""
