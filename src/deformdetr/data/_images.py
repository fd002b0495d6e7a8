"""Reading image files as tensors."""

import os
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int64, Shaped, UInt8
from PIL import Image
from torch import Tensor

from deformdetr.data._config import DEFAULT_DECODING, DecodeConfig
from deformdetr.data._errors import DatasetError

_EXIF_ORIENTATION = 0x0112
# How each EXIF orientation is turned upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_QUARTER_TURNS = (5, 6, 7, 8)
_GRAY_BITS = (8, 10, 12, 14, 16)
_PILLOW_LIMIT_LOCK = threading.Lock()


class ImageHeader(NamedTuple):
    """What the header of an image file tells. The size is that of the decoded image."""

    height: int
    width: int
    mode: str
    """Pillow's name of the pixel format, such as "RGB"."""
    orientation: int
    """EXIF orientation from 1 to 8. 1 is upright."""


def load_image(
    path: str | Path, decode: DecodeConfig = DEFAULT_DECODING, *, content: bytes | None = None
) -> UInt8[Tensor, "3 height width"]:
    """Read an image file as 8-bit RGB.

    Photographs are turned by their EXIF orientation unless `decode` says otherwise. TIFF files are always turned, by
    Pillow itself. Grayscale, palette and CMYK images are converted. Transparency is dropped. 16-bit grayscale keeps the
    upper 8 of the bits that it uses.

    Args:
        path: The file.
        decode: Orientation, bits of grayscale, and the limit of the size.
        content: Content of the file, if it is in memory. `path` is then only its name in messages.

    Raises:
        DatasetError: If the file is missing, truncated, not an image or too large. The message names the file.

    Examples:
        >>> import tempfile
        >>> from PIL import Image
        >>> from deformdetr.data import load_image
        >>> with tempfile.NamedTemporaryFile(suffix=".png") as file:
        ...     Image.new("L", (40, 30)).save(file.name)
        ...     load_image(file.name).shape
        torch.Size([3, 30, 40])
    """
    with _opened(path, decode, content) as image:
        image.load()
        return image_tensor(image, decode)


def image_tensor(image: Image.Image, decode: DecodeConfig = DEFAULT_DECODING) -> UInt8[Tensor, "3 height width"]:
    """Return a PIL image as 8-bit RGB, by the rules of `load_image`.

    Args:
        image: The image, which may have an EXIF orientation.
        decode: Orientation, and bits of grayscale.

    Raises:
        ValueError: If it is 32-bit grayscale without a defined range.

    Examples:
        >>> from PIL import Image
        >>> from deformdetr.data import image_tensor
        >>> image_tensor(Image.new("L", (40, 30))).shape
        torch.Size([3, 30, 40])
    """
    turn = _TURNS.get(_orientation(image)) if decode.orientation == "upright" else None
    upright = image if turn is None else image.transpose(turn)
    return torch.from_numpy(_to_rgb(upright, decode.gray_bits)).permute(2, 0, 1).contiguous()


def read_header(
    path: str | Path, decode: DecodeConfig = DEFAULT_DECODING, *, content: bytes | None = None
) -> ImageHeader:
    """Read size, pixel format and orientation of an image file without decoding it. Arguments are as of `load_image`.

    Raises:
        DatasetError: If the file is missing, not an image or too large.

    Examples:
        >>> import tempfile
        >>> from PIL import Image
        >>> from deformdetr.data import read_header
        >>> with tempfile.NamedTemporaryFile(suffix=".png") as file:
        ...     Image.new("L", (40, 30)).save(file.name)
        ...     read_header(file.name)
        ImageHeader(height=30, width=40, mode='L', orientation=1)
    """
    with _opened(path, decode, content) as image:
        width, height = image.size
        orientation = _orientation(image)
        if decode.orientation == "upright" and orientation in _QUARTER_TURNS:
            width, height = height, width
        return ImageHeader(height, width, image.mode, orientation)


@contextmanager
def _opened(path: str | Path, decode: DecodeConfig, content: bytes | None) -> Iterator[Image.Image]:
    try:
        with _open(path if content is None else BytesIO(content), decode.max_pixels) as image:
            yield image
    except Image.DecompressionBombError as error:
        reason = str(error).removesuffix(".")
        raise DatasetError(
            f"{path}: {reason}; data.decode.max_pixels sets another limit for files you trust"
        ) from error
    except Exception as error:
        # On broken files, decoders raise OSError, SyntaxError, ValueError, struct.error and others.
        raise DatasetError(f"{path}: cannot be read as an image: {error}") from error


def _open(file: str | Path | BytesIO, max_pixels: int | None) -> Image.Image:
    if max_pixels is None:
        return Image.open(file)
    # Pillow checks its limit, a variable of its module, when it reads the header.
    with _PILLOW_LIMIT_LOCK:
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            image = Image.open(file)
        finally:
            Image.MAX_IMAGE_PIXELS = before
    if image.width * image.height > max_pixels:
        image.close()
        raise Image.DecompressionBombError(
            f"the image has {image.width * image.height:,} pixels, and the limit is {max_pixels:,}"
        )
    return image


def _orientation(image: Image.Image) -> int:
    if image.format == "TIFF":
        return 1
    try:
        # Not `image.getexif()`, which decodes a whole PNG file.
        orientation = Image.Image.getexif(image).get(_EXIF_ORIENTATION, 1)
    except (LookupError, OSError, SyntaxError, TypeError, ValueError, struct.error):
        # Damaged metadata around an intact image: viewers show it as stored.
        return 1
    return orientation if orientation in _TURNS else 1


def _to_rgb(image: Image.Image, gray_bits: int | None) -> UInt8[np.ndarray, "height width 3"]:
    if image.mode == "F":
        raise ValueError("32-bit grayscale (mode 'F') has no defined range; convert it to 8 or 16 bits")
    if image.mode == "I" or image.mode.startswith("I;16"):
        gray = _upper_bits(np.asarray(image), gray_bits)
        return np.repeat(gray[..., None], 3, axis=2)
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return np.array(image.convert("RGB"))


def _upper_bits(pixels: Shaped[np.ndarray, "height width"], gray_bits: int | None) -> UInt8[np.ndarray, "height width"]:
    low, high = int(pixels.min()), int(pixels.max())
    if low < 0 or high >= 2**16:
        raise ValueError(f"32-bit grayscale from {low} to {high} has no defined range; convert it to 8 or 16 bits")
    if gray_bits is None:
        gray_bits = next(bits for bits in _GRAY_BITS if high < 2**bits)
    if high >= 2**gray_bits:
        raise ValueError(f"it has a value of {high}, which needs more than data.decode.gray_bits ({gray_bits})")
    return (pixels >> (gray_bits - 8)).astype(np.uint8)


class ImageFiles:
    """Read images by index, and check each size against the annotations.

    Args:
        paths: File of each image.
        sizes: Annotated (height, width) of each image in pixels.
        decode: How files become pixels.
        read: Function from an index and its path to the content of that file. `None` opens the path itself.

    Attributes:
        decode: How files become pixels.

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

    def __init__(
        self,
        paths: Sequence[str | Path],
        sizes: Int64[np.ndarray, "images 2"],
        decode: DecodeConfig = DEFAULT_DECODING,
        *,
        read: Callable[[int, str], bytes] | None = None,
    ) -> None:
        # An array instead of a list of strings: reading it does not copy memory into data-loader workers.
        self._paths = np.array([str(path) for path in paths])
        self._sizes = sizes
        self._read = read
        self.decode = decode

    def __len__(self) -> int:
        return len(self._paths)

    def __call__(self, index: int) -> UInt8[Tensor, "3 height width"]:
        """Return one image.

        Raises:
            DatasetError: If the file cannot be decoded, or its size differs from the annotated one.
        """
        path, content = self._source(index)
        image = load_image(path, self.decode, content=content)
        self._check_size(index, image.shape[1], image.shape[2], content)
        return image

    def path(self, index: int) -> Path:
        """Return the file of an image."""
        return Path(str(self._paths[index]))

    def resolved(self) -> set[str]:
        """Return the paths of all images, with links of their folders resolved."""
        folders: dict[str, str] = {}
        paths = set()
        for path in self._paths.tolist():
            folder, name = os.path.split(path)
            if folder not in folders:
                folders[folder] = os.path.realpath(folder)
            paths.add(f"{folders[folder]}/{name}")
        return paths

    def header(self, index: int) -> ImageHeader:
        """Return the header of an image.

        Raises:
            DatasetError: If the file is not an image, or its size differs from the annotated one.
        """
        path, content = self._source(index)
        header = read_header(path, self.decode, content=content)
        self._check_size(index, header.height, header.width, content)
        return header

    def _source(self, index: int) -> tuple[str, bytes | None]:
        """Return the path of an image and, unless it is a file to open, its content."""
        path = str(self._paths[index])
        return path, None if self._read is None else self._read(index, path)

    def _check_size(self, index: int, height: int, width: int, content: bytes | None) -> None:
        annotated = tuple(self._sizes[index].tolist())
        if annotated == (height, width):
            return
        hint = ""
        path = str(self._paths[index])
        orientation = read_header(path, self.decode, content=content).orientation
        if orientation in _QUARTER_TURNS and annotated == (width, height):
            other = "stored" if self.decode.orientation == "upright" else "upright"
            hint = (
                f"; its EXIF orientation is {orientation}, so that its boxes refer to it {_AS[other]}: set "
                f"data.decode.orientation to {other}"
            )
        raise DatasetError(
            f"{path}: the file holds {width} x {height} pixels (width x height), "
            f"but its annotations say {annotated[1]} x {annotated[0]}{hint}"
        )


_AS = {"stored": "as stored, not turned", "upright": "turned upright"}
