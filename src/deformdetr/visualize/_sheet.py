"""Sheets of pictures."""

from collections.abc import Sequence

from PIL import Image


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
