"""Drawing of boxes and masks on images."""

import colorsys
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from PIL import Image, ImageDraw
from torch import Tensor

from deformdetr.boxes import cxcywh_to_xyxy, scale_boxes
from deformdetr.structures import Detections, Target
from deformdetr.visualize._fonts import Font, load_font
from deformdetr.visualize._images import displayable, enlarged

Color = tuple[int, int, int]

_PALETTE: tuple[Color, ...] = (
    (230, 57, 70),
    (29, 131, 220),
    (42, 157, 73),
    (244, 162, 28),
    (142, 68, 173),
    (0, 172, 172),
    (233, 30, 140),
    (121, 85, 72),
)
_OPACITY = 0.45
_GOLDEN_RATIO = 0.618034


def class_color(label: int) -> Color:
    """Return the (red, green, blue) of a label, from 0 to 255. Consecutive labels differ clearly.

    Examples:
        >>> from deformdetr.visualize import class_color
        >>> class_color(0)
        (230, 57, 70)
    """
    if label < len(_PALETTE):
        return _PALETTE[label]
    hue = (label * _GOLDEN_RATIO) % 1
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85, 0.6 + 0.35 * (label % 2))
    return int(255 * red), int(255 * green), int(255 * blue)


def draw_boxes(
    image: UInt8[Tensor, "3 height width"] | Float[Tensor, "3 height width"],
    boxes: Float[Tensor, "n 4"],
    labels: Int64[Tensor, " n"],
    names: Sequence[str],
    *,
    scores: Float[Tensor, " n"] | None = None,
    masks: Bool[Tensor, "n height width"] | None = None,
    min_size: int = 512,
    font: str | Path | None = None,
) -> Image.Image:
    """Draw boxes with class names, optional scores and optional translucent masks, in one color per class.

    Args:
        image: uint8, or floating-point in [0, 1].
        boxes: xyxy in pixels of the image.
        labels: Label of each box.
        names: Name of each label.
        scores: Scores in [0, 1]. Boxes with higher scores are drawn on top.
        masks: True inside the object.
        min_size: An image whose longer side is shorter is enlarged by an integer factor, to keep names legible.
        font: Font file for the names. None finds an installed font that has their characters.

    Raises:
        ValueError: If a label has no name.
        OSError: If the font file cannot be read.

    Examples:
        >>> import torch
        >>> from deformdetr.visualize import draw_boxes
        >>> boxes, labels = torch.tensor([[10.0, 10, 90, 90]]), torch.tensor([0])
        >>> picture = draw_boxes(torch.zeros(3, 100, 200), boxes, labels, ["cat"])
        >>> picture.size
        (600, 300)
    """
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(names):
        raise ValueError(f"labels from {int(labels.min())} to {int(labels.max())} do not fit {len(names)} names")
    order = range(len(labels)) if scores is None else scores.argsort().tolist()
    colors = displayable(image)
    if masks is not None:
        colors = blend_colors(colors, masks[order], labels[order])
    picture = enlarged(colors, min_size)
    factor = picture.width // colors.shape[2]
    pixels = (boxes.detach().cpu().double() * factor).tolist()
    draw = ImageDraw.Draw(picture)
    line = max(2, max(picture.size) // 250)
    for index in order:
        draw_outline(draw, pixels[index], class_color(int(labels[index])), line)
    placed: list[tuple[float, float, float, float]] = []
    text_size = max(14, max(picture.size) // 42)
    # Names of high scores are placed first, and get the best places.
    for index in reversed(order):
        label = int(labels[index])
        text = names[label] if scores is None else f"{names[label]} {float(scores[index]):.2f}"
        of_text = load_font(text, text_size, font)
        placed.append(draw_tag(draw, pixels[index], text, class_color(label), of_text, picture.size, placed))
    return picture


def draw_comparison(
    image: UInt8[Tensor, "3 height width"] | Float[Tensor, "3 height width"],
    detections: Detections,
    target: Target,
    names: Sequence[str],
    *,
    score_threshold: float = 0.3,
    min_size: int = 512,
    font: str | Path | None = None,
) -> Image.Image:
    """Draw the ground truth on the left and detections on the right, with masks if they have any.

    Args:
        image: uint8, or floating-point in [0, 1].
        detections: Boxes in pixels of this image. Masks are probabilities or boolean.
        target: Boxes as fractions of this image. Masks have its size.
        names: Name of each label.
        score_threshold: Detections with lower scores are left out.
        min_size: As in `draw_boxes`.
        font: As in `draw_boxes`.

    Examples:
        >>> import torch
        >>> from deformdetr.visualize import draw_comparison
        >>> labels = torch.tensor([0])
        >>> detections = {"boxes": torch.tensor([[9.0, 9, 90, 90]]), "scores": torch.tensor([0.9]), "labels": labels}
        >>> target = {"boxes": torch.tensor([[0.5, 0.5, 0.8, 0.8]]), "labels": labels}
        >>> picture = draw_comparison(torch.zeros(3, 100, 100), detections, target, ["cat"])
    """
    height, width = image.shape[1:]
    truth = scale_boxes(cxcywh_to_xyxy(target["boxes"]), (height, width))
    keep = detections["scores"] >= score_threshold
    masks = detections["masks"][keep, 0] > 0.5 if "masks" in detections else None
    left = draw_boxes(image, truth, target["labels"], names, masks=target.get("masks"), min_size=min_size, font=font)
    right = draw_boxes(
        image,
        detections["boxes"][keep],
        detections["labels"][keep],
        names,
        scores=detections["scores"][keep],
        masks=masks,
        min_size=min_size,
        font=font,
    )
    titles = (
        f"ground truth: {len(truth)}",
        f"detections: {int(keep.sum())} with a score of at least {score_threshold:.3g}",
    )
    return _side_by_side((left, right), titles)


def blend_colors(
    image: UInt8[Tensor, "3 height width"], masks: Bool[Tensor, "n height width"], labels: Int64[Tensor, " n"]
) -> UInt8[Tensor, "3 height width"]:
    """Blend the color of each label into the pixels of its mask, with the last mask on top."""
    tinted = image.float()
    for mask, label in zip(masks.cpu(), labels.tolist(), strict=True):
        color = torch.tensor(class_color(label), dtype=torch.float32)[:, None, None]
        tinted = torch.where(mask, (1 - _OPACITY) * tinted + _OPACITY * color, tinted)
    return tinted.round().to(torch.uint8)


def draw_outline(draw: ImageDraw.ImageDraw, box: Sequence[float], color: Color, line: int) -> None:
    """Outline a box (left, top, right, bottom), in pixels, with lines of `line` pixels."""
    left, top = (min(box[axis], box[axis + 2]) for axis in (0, 1))
    right, bottom = (max(box[axis], box[axis + 2]) for axis in (0, 1))
    # The dark outline keeps a box visible on a background of its own color.
    draw.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline=(20, 20, 20), width=line + 2)
    draw.rectangle((left, top, right, bottom), outline=color, width=line)


def draw_tag(
    draw: ImageDraw.ImageDraw,
    box: Sequence[float],
    text: str,
    color: Color,
    font: Font,
    size: tuple[int, int],
    placed: Sequence[tuple[float, float, float, float]],
) -> tuple[float, float, float, float]:
    """Write text above, inside or below the box, where there is free space, and return its rectangle."""
    _, _, text_right, text_bottom = draw.textbbox((0, 0), text, font=font)
    width, height = text_right + 6, text_bottom + 5
    left = float(min(max(box[0] - 1, 0), max(size[0] - width, 0)))
    tops = (box[1] - height, box[1] + 1, box[3], box[3] - height)
    inside = [top for top in tops if 0 <= top <= size[1] - height] or [max(0.0, min(box[1], size[1] - height))]
    places = [(left, top, left + width, top + height) for top in inside]
    place = next((place for place in places if not any(_overlap(place, other) for other in placed)), places[0])
    draw.rectangle(place, fill=color)
    red, green, blue = color
    is_bright = 0.299 * red + 0.587 * green + 0.114 * blue > 150
    draw.text((place[0] + 3, place[1] + 1), text, fill=(0, 0, 0) if is_bright else (255, 255, 255), font=font)
    return place


def _overlap(a: Sequence[float], b: Sequence[float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _side_by_side(pictures: Sequence[Image.Image], titles: Sequence[str]) -> Image.Image:
    gap = 12
    text_size = max(14, max(pictures[0].size) // 36)
    header = int(text_size * 1.8)
    width = sum(picture.width for picture in pictures) + gap * (len(pictures) + 1)
    canvas = Image.new("RGB", (width, pictures[0].height + header + gap), (255, 255, 255))
    draw = ImageDraw.Draw(canvas)
    left = gap
    for picture, title in zip(pictures, titles, strict=True):
        draw.text((left, header / 2), title, fill=(30, 30, 30), font=load_font(title, text_size), anchor="lm")
        canvas.paste(picture, (left, header))
        left += picture.width + gap
    return canvas
