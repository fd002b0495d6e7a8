"""Drawing of panoptic segmentations on images."""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int64, UInt8
from PIL import Image, ImageDraw
from torch import Tensor

from deformdetr.structures import PanopticSegmentation
from deformdetr.visualize._boxes import blend_colors, class_color, draw_tag
from deformdetr.visualize._fonts import load_font
from deformdetr.visualize._images import displayable, enlarged


def draw_panoptic(
    image: UInt8[Tensor, "3 height width"] | Float[Tensor, "3 height width"],
    segmentation: PanopticSegmentation,
    names: Sequence[str],
    *,
    min_size: int = 512,
    font: str | Path | None = None,
) -> Image.Image:
    """Draw segments in the color of their class, with white borders between them and a name in each.

    Pixels without a segment keep their color.

    Args:
        image: uint8, or floating-point in [0, 1].
        segmentation: Segments of the image, with a map of its size.
        names: Name of each label.
        min_size: As in `draw_boxes`.
        font: As in `draw_boxes`.

    Raises:
        ValueError: If the map has another size than the image, or a label has no name.
        OSError: If the font file cannot be read.

    Examples:
        >>> import torch
        >>> from deformdetr.visualize import draw_panoptic
        >>> segmentation = {"segment_map": torch.ones(100, 200, dtype=torch.int64), "labels": torch.tensor([0])}
        >>> draw_panoptic(torch.zeros(3, 100, 200), segmentation, ["sky"]).size
        (600, 300)
    """
    segment_map, labels = segmentation["segment_map"].cpu(), segmentation["labels"].cpu()
    if segment_map.shape != image.shape[1:]:
        raise ValueError(f"the map has {tuple(segment_map.shape)} pixels, but the image {tuple(image.shape[1:])}")
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(names):
        raise ValueError(f"labels from {int(labels.min())} to {int(labels.max())} do not fit {len(names)} names")
    masks = segment_map == torch.arange(1, len(labels) + 1)[:, None, None]
    colors = blend_colors(displayable(image), masks, labels)
    colors = torch.where(_borders(segment_map), 255, colors.long()).to(torch.uint8)
    picture = enlarged(colors, min_size)
    factor = picture.width // colors.shape[2]
    draw = ImageDraw.Draw(picture)
    placed: list[tuple[float, float, float, float]] = []
    for mask, label in zip(masks, labels.tolist(), strict=True):
        if not mask.any():
            continue
        x, y = (float(place * factor) for place in _inner_pixel(mask))
        text_font = load_font(names[label], max(14, max(picture.size) // 42), font)
        placed.append(draw_tag(draw, (x, y, x, y), names[label], class_color(label), text_font, picture.size, placed))
    return picture


def _borders(segment_map: Int64[Tensor, "height width"]) -> Tensor:
    """Return True at pixels whose right or lower neighbor belongs to another segment."""
    border = torch.zeros_like(segment_map, dtype=torch.bool)
    border[:, :-1] |= segment_map[:, :-1] != segment_map[:, 1:]
    border[:-1] |= segment_map[:-1] != segment_map[1:]
    return border


def _inner_pixel(mask: Tensor) -> tuple[int, int]:
    """Return (x, y) of the pixel of a mask that lies closest to its mean."""
    pixels = mask.nonzero()
    nearest = (pixels - pixels.double().mean(0)).square().sum(1).argmin()
    y, x = pixels[nearest].tolist()
    return x, y
