"""Drawing of what queries go through: proposals of the encoder, and boxes from layer to layer."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw
from torch import Tensor

from deformdetr.boxes import cxcywh_to_xyxy, scale_boxes
from deformdetr.visualize._boxes import Color, draw_outline
from deformdetr.visualize._fonts import load_font
from deformdetr.visualize._images import displayable, enlarged

# From the first layer to the last: dark blue, green, yellow.
_STOPS: tuple[Color, ...] = ((59, 60, 160), (38, 160, 150), (253, 231, 37))


def draw_refinement(
    image: UInt8[Tensor, "3 height width"] | Float[Tensor, "3 height width"],
    boxes: Sequence[Float[Tensor, "queries 4"]],
    *,
    references: Float[Tensor, "queries _"] | None = None,
    min_size: int = 512,
) -> Image.Image:
    """Draw the boxes of some queries after each decoder layer, from dark blue (first) to yellow (last).

    Args:
        image: uint8, or floating-point in [0, 1].
        boxes: Boxes after each layer, cxcywh as fractions of the image.
        references: References of the first layer, (x, y) or (cx, cy, w, h), which are drawn in white.
        min_size: As in `draw_boxes`.

    Raises:
        ValueError: If there are no layers.

    Examples:
        >>> import torch
        >>> from deformdetr.visualize import draw_refinement
        >>> first, last = torch.tensor([[0.4, 0.4, 0.5, 0.5]]), torch.tensor([[0.5, 0.5, 0.3, 0.4]])
        >>> picture = draw_refinement(torch.zeros(3, 60, 80), [first, last], references=first[:, :2])
    """
    if not boxes:
        raise ValueError("there are no layers to draw")
    picture = enlarged(_dimmed(image), min_size)
    draw, line = ImageDraw.Draw(picture), max(2, max(picture.size) // 300)
    if references is not None:
        for reference in references.detach().cpu().tolist():
            _draw_reference(draw, reference, picture.size, line)
    for index, of_layer in enumerate(boxes):
        for box in _pixels(of_layer, picture.size):
            draw_outline(draw, box, layer_color(index, len(boxes)), line)
    _draw_legend(draw, len(boxes), picture.size)
    return picture


def draw_proposals(
    image: UInt8[Tensor, "3 height width"] | Float[Tensor, "3 height width"],
    boxes: Float[Tensor, "proposals 4"],
    scores: Float[Tensor, " proposals"],
    *,
    count: int = 100,
    min_size: int = 512,
) -> Image.Image:
    """Draw the boxes that the encoder of a two-stage model proposes, the best on top and brightest.

    Args:
        image: uint8, or floating-point in [0, 1].
        boxes: cxcywh as fractions of the image.
        scores: Scores of the boxes; only their order counts.
        count: Number of proposals to draw, those of the highest scores.
        min_size: As in `draw_boxes`.

    Examples:
        >>> import torch
        >>> from deformdetr.visualize import draw_proposals
        >>> picture = draw_proposals(torch.zeros(3, 60, 80), torch.rand(50, 4), torch.rand(50), count=20)
    """
    best = scores.detach().cpu().topk(min(count, len(scores))).indices
    picture = enlarged(_dimmed(image), min_size)
    draw, line = ImageDraw.Draw(picture), max(2, max(picture.size) // 400)
    worst_first = _pixels(boxes[best.to(boxes.device)], picture.size)[::-1]
    for index, box in enumerate(worst_first):
        draw_outline(draw, box, layer_color(index, len(worst_first)), line)
    return picture


def layer_color(index: int, count: int) -> Color:
    """Return the color of a layer among `count`.

    Examples:
        >>> layer_color(0, 6), layer_color(5, 6)
        ((59, 60, 160), (253, 231, 37))
    """
    place = (len(_STOPS) - 1) * index / max(1, count - 1)
    start = min(int(place), len(_STOPS) - 2)
    share = place - start
    red, green, blue = (
        round(low + share * (high - low)) for low, high in zip(_STOPS[start], _STOPS[start + 1], strict=True)
    )
    return red, green, blue


def _dimmed(image: Tensor) -> UInt8[Tensor, "3 height width"]:
    return (displayable(image).float() * 0.75).to(torch.uint8)


def _pixels(boxes: Tensor, size: tuple[int, int]) -> list[list[float]]:
    corners = cxcywh_to_xyxy(boxes.detach().cpu().double())
    found: list[list[float]] = scale_boxes(corners, (size[1], size[0])).tolist()
    return found


def _draw_reference(draw: ImageDraw.ImageDraw, reference: list[float], size: tuple[int, int], line: int) -> None:
    if len(reference) == 4:
        (box,) = _pixels(torch.tensor([reference]), size)
        draw_outline(draw, box, (255, 255, 255), line)
        return
    x, y, arm = reference[0] * size[0], reference[1] * size[1], 4 * line
    draw.line((x - arm, y, x + arm, y), fill=(255, 255, 255), width=line)
    draw.line((x, y - arm, x, y + arm), fill=(255, 255, 255), width=line)


def _draw_legend(draw: ImageDraw.ImageDraw, count: int, size: tuple[int, int]) -> None:
    side = max(14, max(size) // 42)
    for index in range(count):
        left, top = 4 + index * (side + 2), 4
        draw.rectangle((left, top, left + side, top + side), fill=layer_color(index, count))
        text = str(index + 1)
        fill = (0, 0, 0) if index > count / 2 else (255, 255, 255)
        font = load_font(text, side - 4)
        draw.text((left + side / 2, top + side / 2), text, fill=fill, font=font, anchor="mm")
