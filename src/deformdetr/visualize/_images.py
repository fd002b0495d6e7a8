"""Images as pixels to draw on, side by side on sheets, and as files."""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from deformdetr._files import check_writable, replacing


def displayable(
    image: UInt8[Tensor, "3 height width"] | Float[Tensor, "3 height width"],
    *,
    mean: Sequence[float] = (0.0, 0.0, 0.0),
    std: Sequence[float] = (1.0, 1.0, 1.0),
) -> UInt8[Tensor, "3 height width"]:
    """Return an image as uint8, after undoing its normalization.

    Args:
        image: uint8, which is returned unchanged, or floating-point, on a scale of 0 to 1 before normalization.
        mean: Value that was subtracted from each channel.
        std: Value that each channel was divided by.

    Examples:
        >>> import torch
        >>> from deformdetr.visualize import displayable
        >>> displayable(torch.ones(3, 1, 1), mean=(0.5, 0.5, 0.5), std=(0.1, 0.2, 0.3)).flatten()
        tensor([153, 178, 204], dtype=torch.uint8)
    """
    if image.dtype == torch.uint8:
        return image.cpu()
    plain = image.detach().to("cpu", torch.float32) * torch.tensor(std).view(3, 1, 1)
    plain += torch.tensor(mean).view(3, 1, 1)
    return (plain.clamp(0, 1) * 255).round().to(torch.uint8)


def enlarged(image: UInt8[Tensor, "3 height width"], min_size: int) -> Image.Image:
    """Return a picture of an image, enlarged by an integer factor so that its longer side has `min_size` pixels."""
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    factor = max(1, -(-min_size // max(picture.size)))
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.BICUBIC)


def tile_pictures(pictures: Sequence[Image.Image], *, columns: int = 4, side: int = 400) -> Image.Image:
    """Return a sheet of pictures in rows, each shrunk or enlarged to fit a square, on white.

    Args:
        pictures: At least one.
        columns: Pictures per row.
        side: Height and width of the squares in pixels.

    Raises:
        ValueError: If there is no picture.

    Examples:
        >>> from PIL import Image
        >>> from deformdetr.visualize import tile_pictures
        >>> tile_pictures([Image.new("RGB", (40, 30))] * 6, columns=4, side=100).size
        (420, 212)
    """
    if not pictures:
        raise ValueError("a sheet needs at least one picture, got none")
    gap = max(4, side // 50)
    step = side + gap
    rows = -(-len(pictures) // columns)
    width = min(columns, len(pictures))
    sheet = Image.new("RGB", (width * step + gap, rows * step + gap), (255, 255, 255))
    for index, picture in enumerate(pictures):
        factor = side / max(picture.size)
        size = max(1, round(picture.width * factor)), max(1, round(picture.height * factor))
        row, column = divmod(index, columns)
        place = gap + column * step + (side - size[0]) // 2, gap + row * step + (side - size[1]) // 2
        sheet.paste(picture.resize(size, Image.Resampling.LANCZOS), place)
    return sheet


def save_image(image: Image.Image, path: str | Path) -> None:
    """Write an image file, replacing an existing one atomically. The suffix gives the format.

    Raises:
        ValueError: If the suffix does not belong to an image format.
        OSError: If the file cannot be written. An existing file is then unchanged.

    Examples:
        >>> import tempfile
        >>> from PIL import Image
        >>> from deformdetr.visualize import save_image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_image(Image.new("RGB", (40, 30)), f"{folder}/picture.jpg")
    """
    path = Path(path)
    image_format = _format(path)
    with replacing(path) as unfinished:
        image.save(unfinished, format=image_format)


def check_picture(path: str | Path) -> None:
    """Check that `save_image` can write to a path, before the picture is computed.

    Raises:
        ValueError: If the suffix does not belong to an image format.
        FileExistsError: If it is a folder.
        FileNotFoundError: If the folder of the file does not exist.

    Examples:
        >>> from deformdetr.visualize import check_picture
        >>> check_picture("picture.txt")
        Traceback (most recent call last):
            ...
        ValueError: picture.txt: no image format has the suffix '.txt'; use .png or .jpg
    """
    path = Path(path)
    _format(path)
    check_writable(path, suffixes=(path.suffix,), overwrite=True)


def _format(path: Path) -> str:
    Image.init()
    image_format = Image.registered_extensions().get(path.suffix.lower())
    if image_format not in Image.SAVE:
        raise ValueError(f"{path}: no image format has the suffix {path.suffix!r}; use .png or .jpg")
    return image_format
