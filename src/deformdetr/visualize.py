"""Drawing of boxes and masks on images, of sampling points, and of training curves."""

import colorsys
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from deformdetr._files import replacing
from deformdetr.boxes import cxcywh_to_xyxy, scale_boxes
from deformdetr.structures import Detections, Target

__all__ = [
    "Color",
    "class_color",
    "displayable",
    "draw_boxes",
    "draw_comparison",
    "plot_curves",
    "plot_sampling_points",
    "save_image",
]

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
_LEVEL_COLORS = ("#00e5ff", "#8cff5a", "#ffd000", "#ff5c8a", "#c79bff", "#ffffff")
_MARGIN = 0.03
_OPACITY = 0.45
_GOLDEN_RATIO = 0.618034
_LAYER_SUFFIX = re.compile(r"_(\d+|enc|interm)$")


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


def draw_boxes(
    image: UInt8[Tensor, "3 height width"] | Float[Tensor, "3 height width"],
    boxes: Float[Tensor, "n 4"],
    labels: Int64[Tensor, " n"],
    names: Sequence[str],
    *,
    scores: Float[Tensor, " n"] | None = None,
    masks: Bool[Tensor, "n height width"] | None = None,
    min_size: int = 512,
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

    Raises:
        ValueError: If a label has no name.

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
        colors = _tinted(colors, masks[order], labels[order])
    picture = Image.fromarray(colors.permute(1, 2, 0).contiguous().numpy())
    factor = max(1, -(-min_size // max(picture.size)))
    picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.BICUBIC)
    pixels = (boxes.detach().cpu().double() * factor).tolist()
    draw = ImageDraw.Draw(picture)
    line = max(2, max(picture.size) // 250)
    for index in order:
        _draw_outline(draw, pixels[index], class_color(int(labels[index])), line)
    placed: list[tuple[float, float, float, float]] = []
    font = ImageFont.load_default(size=max(14, max(picture.size) // 42))
    # Names of high scores are placed first, and get the best places.
    for index in reversed(order):
        label = int(labels[index])
        text = names[label] if scores is None else f"{names[label]} {float(scores[index]):.2f}"
        placed.append(_draw_tag(draw, pixels[index], text, class_color(label), font, picture.size, placed))
    return picture


def draw_comparison(
    image: UInt8[Tensor, "3 height width"] | Float[Tensor, "3 height width"],
    detections: Detections,
    target: Target,
    names: Sequence[str],
    *,
    score_threshold: float = 0.3,
    min_size: int = 512,
) -> Image.Image:
    """Draw the ground truth on the left and detections on the right, with masks if they have any.

    Args:
        image: uint8, or floating-point in [0, 1].
        detections: Boxes in pixels of this image. Masks are probabilities or boolean.
        target: Boxes as fractions of this image. Masks have its size.
        names: Name of each label.
        score_threshold: Detections with lower scores are left out.
        min_size: As in `draw_boxes`.

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
    left = draw_boxes(image, truth, target["labels"], names, masks=target.get("masks"), min_size=min_size)
    right = draw_boxes(
        image,
        detections["boxes"][keep],
        detections["labels"][keep],
        names,
        scores=detections["scores"][keep],
        masks=masks,
        min_size=min_size,
    )
    titles = (
        f"ground truth: {len(truth)}",
        f"detections: {int(keep.sum())} with a score of at least {score_threshold:g}",
    )
    return _side_by_side((left, right), titles)


def plot_sampling_points(
    image: UInt8[Tensor, "3 height width"] | Float[Tensor, "3 height width"],
    locations: Float[Tensor, "heads levels points 2"],
    weights: Float[Tensor, "heads levels points"],
    *,
    reference: Float[Tensor, "2"] | Float[Tensor, "4"],
    title: str = "",
) -> Image.Image:
    """Plot where one query samples an image. Color shows the feature level, area the attention weight.

    Args:
        image: uint8, or floating-point in [0, 1].
        locations: (x, y) as fractions of the image.
        weights: Attention weights, which sum to 1 over levels and points. Points far outside the image are not shown,
            but the legend includes their weights.
        reference: Reference point (x, y) or box (cx, cy, w, h) of the query, as fractions of the image.
        title: Title above the image.

    Examples:
        >>> import torch
        >>> from deformdetr.visualize import plot_sampling_points
        >>> locations, weights = torch.rand(8, 4, 4, 2), torch.full((8, 4, 4), 1 / 16)
        >>> picture = plot_sampling_points(
        ...     torch.zeros(3, 60, 80), locations, weights, reference=torch.tensor([0.5, 0.5])
        ... )
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    height, width = image.shape[1:]
    n_levels = locations.shape[1]
    figure = Figure(figsize=(8, 8 * height / width + 1.1), layout="constrained")
    axes = figure.subplots()
    # The image is darkened so that the points stand out.
    axes.imshow(displayable(image).permute(1, 2, 0).numpy() * 0.7 / 255, extent=(0, width, height, 0))
    places = locations.detach().cpu().double().numpy()
    areas = weights.detach().cpu().double().numpy()
    for level in range(n_levels):
        near = (np.abs(places[:, level] - 0.5) <= 0.5 + _MARGIN).all(axis=-1)
        x, y = (places[:, level][near] * (width, height)).T
        axes.scatter(
            x,
            y,
            s=12 + 320 * areas[:, level][near] / areas.max(),
            color=_LEVEL_COLORS[level % len(_LEVEL_COLORS)],
            alpha=0.9,
            edgecolors="black",
            linewidths=0.6,
            clip_on=False,
            label=f"{level + 1}: {areas[:, level].sum() / len(areas):.0%}",
            zorder=3 + n_levels - level,
        )
    pixels = reference.detach().cpu().double().numpy() * np.resize((width, height), len(reference))
    center, size = pixels[:2], pixels[2:]
    for edge, line in (("black", 4.5), ("white", 2.0)):
        if len(size):
            axes.add_patch(Rectangle(tuple(center - size / 2), *size, fill=False, edgecolor=edge, linewidth=line))
        axes.plot(*center, marker="+", markersize=16, markeredgewidth=line, color=edge, zorder=20)
    margin = np.array((width, height)) * _MARGIN
    axes.set(xlim=(-margin[0], width + margin[0]), ylim=(height + margin[1], -margin[1]), title=title)
    axes.set_axis_off()
    handles, labels = axes.get_legend_handles_labels()
    legend_title = "feature level: share of the attention weight"
    figure.legend(handles, labels, loc="outside lower center", ncols=n_levels, frameon=False, title=legend_title)
    return _rendered(figure)


def plot_curves(metrics: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Plot losses and average precision over training to an image file.

    The horizontal axis is `epoch`, or `step` if no record has an epoch. Curves are the values named `loss` or
    `loss_...`, except those of single decoder layers, and `AP`, `AP50` and `AP75`. `None` leaves a gap.

    Args:
        metrics: One record per epoch or step, possibly nested, as in the `metrics.jsonl` of a run.
        path: File to write. The suffix gives the format. An existing file is replaced atomically.

    Raises:
        ValueError: If no record has a loss or a precision.

    Examples:
        >>> import tempfile
        >>> from deformdetr.visualize import plot_curves
        >>> records = [{"epoch": 1, "loss": 9.0}, {"epoch": 2, "loss": 5.0, "AP": 0.1}]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     plot_curves(records, f"{folder}/curves.png")
    """
    from matplotlib.figure import Figure

    records = [_flatten(record) for record in metrics]
    axis = "epoch" if any("epoch" in record for record in records) else "step"
    names = sorted({name for record in records for name, value in record.items() if value is not None})
    last = {name: name.rpartition("/")[2] for name in names}
    losses = [name for name in names if re.match(r"loss(_|$)", last[name]) and not _LAYER_SUFFIX.search(name)]
    precisions = [name for name in names if last[name] in ("AP", "AP50", "AP75")]
    panels = [(title, curves) for title, curves in (("loss", losses), ("average precision", precisions)) if curves]
    if not panels:
        raise ValueError(f"none of the {len(records)} records has a loss or a precision; they have {names}")
    figure = Figure(figsize=(5.5 * len(panels), 4), layout="constrained")
    all_axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (title, curves) in zip(all_axes, panels, strict=True):
        _plot_panel(axes, records, curves, axis)
        axes.set(title=title, xlabel=axis)
    if precisions:
        all_axes[-1].set_ylim(0, 1)
    save_image(_rendered(figure), path)


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
    image_format = Image.registered_extensions().get(path.suffix.lower())
    if image_format is None:
        raise ValueError(f"{path}: no image format has the suffix {path.suffix!r}; use .png or .jpg")
    with replacing(path) as unfinished:
        image.save(unfinished, format=image_format)


def _plot_panel(axes: Any, records: Sequence[Mapping[str, Any]], curves: Sequence[str], axis: str) -> None:
    for name in curves:
        present = [(number, record) for number, record in enumerate(records) if record.get(name) is not None]
        x = [record.get(axis, number) for number, record in present]
        is_total = name.rpartition("/")[2] in ("loss", "AP")
        width = 2.2 if is_total else 1.2
        axes.plot(x, [record[name] for _, record in present], label=name, linewidth=width, marker=".", markersize=4)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)


def _tinted(
    image: UInt8[Tensor, "3 height width"], masks: Bool[Tensor, "n height width"], labels: Int64[Tensor, " n"]
) -> UInt8[Tensor, "3 height width"]:
    """Blend the color of each label into the pixels of its mask, with the last mask on top."""
    tinted = image.float()
    for mask, label in zip(masks.cpu(), labels.tolist(), strict=True):
        color = torch.tensor(class_color(label), dtype=torch.float32)[:, None, None]
        tinted = torch.where(mask, (1 - _OPACITY) * tinted + _OPACITY * color, tinted)
    return tinted.round().to(torch.uint8)


def _draw_outline(draw: ImageDraw.ImageDraw, box: Sequence[float], color: Color, line: int) -> None:
    left, top = (min(box[axis], box[axis + 2]) for axis in (0, 1))
    right, bottom = (max(box[axis], box[axis + 2]) for axis in (0, 1))
    # The dark outline keeps a box visible on a background of its own color.
    draw.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline=(20, 20, 20), width=line + 2)
    draw.rectangle((left, top, right, bottom), outline=color, width=line)


def _draw_tag(
    draw: ImageDraw.ImageDraw,
    box: Sequence[float],
    text: str,
    color: Color,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
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
    font = ImageFont.load_default(size=text_size)
    header = int(text_size * 1.8)
    width = sum(picture.width for picture in pictures) + gap * (len(pictures) + 1)
    canvas = Image.new("RGB", (width, pictures[0].height + header + gap), (255, 255, 255))
    draw = ImageDraw.Draw(canvas)
    left = gap
    for picture, title in zip(pictures, titles, strict=True):
        draw.text((left, header / 2), title, fill=(30, 30, 30), font=font, anchor="lm")
        canvas.paste(picture, (left, header))
        left += picture.width + gap
    return canvas


def _flatten(record: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in record.items():
        if isinstance(value, Mapping):
            flat.update(_flatten(value, f"{prefix}{key}/"))
        else:
            flat[prefix + key] = value
    return flat


def _rendered(figure: Any) -> Image.Image:
    # Figures created without pyplot do not affect the caller's backend or open windows.
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    buffer.seek(0)
    with Image.open(buffer) as image:
        return image.convert("RGB")
