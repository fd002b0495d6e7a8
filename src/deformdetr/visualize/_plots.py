"""Plots of sampling points and of training curves."""

import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from deformdetr.visualize._fonts import find_font
from deformdetr.visualize._images import displayable, save_image
from deformdetr.visualize._matplotlib import matplotlib_module, new_figure

_LEVEL_COLORS = ("#00e5ff", "#8cff5a", "#ffd000", "#ff5c8a", "#c79bff", "#ffffff")
_MARGIN = 0.03
_LAYER_SUFFIX = re.compile(r"_(\d+|enc|interm)$")


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
    height, width = image.shape[1:]
    figure = new_figure(figsize=(8, 8 * height / width + 1.1), layout="constrained")
    axes = figure.subplots()
    _plot_points(axes, image, locations, weights, reference, title)
    handles, labels = axes.get_legend_handles_labels()
    legend_title = "feature level: share of the attention weight"
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, title=legend_title)
    return rendered(figure)


def plot_sampling_layers(
    image: UInt8[Tensor, "3 height width"] | Float[Tensor, "3 height width"],
    layers: Sequence[tuple[str, Sequence[Tensor]]],
    *,
    columns: int = 3,
) -> Image.Image:
    """Plot where one query samples an image in each layer, side by side, as `plot_sampling_points` does for one.

    Args:
        image: uint8, or floating-point in [0, 1].
        layers: Title of each layer, and its locations, weights and reference, as fractions of the image:
            `deformdetr.models.Capture.in_image` returns them.
        columns: Pictures per row.

    Raises:
        ValueError: If there are no layers.

    Examples:
        >>> import torch
        >>> from deformdetr.visualize import plot_sampling_layers
        >>> sampled = torch.rand(8, 4, 4, 2), torch.full((8, 4, 4), 1 / 16), torch.tensor([0.5, 0.5])
        >>> picture = plot_sampling_layers(torch.zeros(3, 60, 80), [("layer 1", sampled), ("layer 2", sampled)])
    """
    if not layers:
        raise ValueError("there are no layers to plot")
    height, width = image.shape[1:]
    columns = min(columns, len(layers))
    rows = -(-len(layers) // columns)
    figure = new_figure(figsize=(4.5 * columns, (4.5 * height / width + 0.9) * rows), layout="constrained")
    all_axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes in all_axes[len(layers) :]:
        axes.set_axis_off()
    for axes, (title, (locations, weights, reference)) in zip(all_axes, layers, strict=False):
        _plot_points(axes, image, locations, weights, reference, title)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, 0), ncols=4, frameon=False, fontsize=8)
    return rendered(figure)


def _plot_points(axes: Any, image: Tensor, locations: Tensor, weights: Tensor, reference: Tensor, title: str) -> None:
    """Plot the sampling points of a query into the axes of a figure."""
    rectangle = matplotlib_module("patches").Rectangle
    height, width = image.shape[1:]
    n_levels = locations.shape[1]
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
            axes.add_patch(rectangle(tuple(center - size / 2), *size, fill=False, edgecolor=edge, linewidth=line))
        axes.plot(*center, marker="+", markersize=16, markeredgewidth=line, color=edge, zorder=20)
    margin = np.array((width, height)) * _MARGIN
    axes.set(xlim=(-margin[0], width + margin[0]), ylim=(height + margin[1], -margin[1]), title=title)
    show_names([axes.title])
    axes.set_axis_off()


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
    records = [_flatten(record) for record in metrics]
    axis = "epoch" if any("epoch" in record for record in records) else "step"
    names = sorted({name for record in records for name, value in record.items() if value is not None})
    last = {name: name.rpartition("/")[2] for name in names}
    losses = [name for name in names if re.match(r"loss(_|$)", last[name]) and not _LAYER_SUFFIX.search(name)]
    precisions = [name for name in names if last[name] in ("AP", "AP50", "AP75")]
    panels = [(title, curves) for title, curves in (("loss", losses), ("average precision", precisions)) if curves]
    if not panels:
        raise ValueError(f"none of the {len(records)} records has a loss or a precision; they have {names}")
    figure = new_figure(figsize=(5.5 * len(panels), 4), layout="constrained")
    all_axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (title, curves) in zip(all_axes, panels, strict=True):
        _plot_panel(axes, records, curves, axis)
        axes.set(title=title, xlabel=axis)
    if precisions:
        all_axes[-1].set_ylim(0, 1)
    save_image(rendered(figure), path)


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


def _flatten(record: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in record.items():
        if isinstance(value, Mapping):
            flat.update(_flatten(value, f"{prefix}{key}/"))
        else:
            flat[prefix + key] = value
    return flat


def rendered(figure: Any) -> Image.Image:
    """Return a figure of matplotlib as a picture."""
    # Figures created without pyplot do not affect the caller's backend or open windows.
    canvas = matplotlib_module("backends.backend_agg").FigureCanvasAgg(figure)
    figure.set_dpi(120)
    with warnings.catch_warnings():
        # `find_font` has warned of all missing characters at once.
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def show_names(texts: Sequence[Any]) -> None:
    """Show names in a figure as they are: in fonts that have their characters, and dollars as dollars, not formulas."""
    fonts = matplotlib_module("font_manager")
    for text in texts:
        text.set_parse_math(False)
        file = find_font(text.get_text())
        if file is not None:
            text.set_fontproperties(fonts.FontProperties(fname=file, size=text.get_fontsize()))
