"""MkDocs hook that draws pictures of attention layers with the library's own functions."""

import io
from typing import Any

import matplotlib as mpl
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor, nn

from deformdetr.nn import DeformableAttention2d, MSDeformAttn, pixel_centers, valid_ratios

SHAPES = [(8, 12), (4, 6), (2, 3)]
# Columns that are not padding: two thirds.
LEVELS = list(zip(SHAPES, (8, 4, 2), strict=True))
HEADS = [f"C{head}" for head in range(8)]


def draw_reference_points() -> Figure:
    """Draw the reference points of an encoder: the centers of all pixels that are not padding, on every level."""
    masks = [torch.arange(width).expand(1, height, width) >= valid for (height, width), valid in LEVELS]
    centers = pixel_centers(SHAPES, valid_ratios(masks))[0].split([height * width for height, width in SHAPES])
    figure, axes = _draw_levels(SHAPES)
    for level, (axis, ((height, width), valid)) in enumerate(zip(axes, LEVELS, strict=True)):
        own = centers[level][:, level]
        _scatter(axis, own[~masks[level].flatten()], SHAPES[level], color="C0")
        axis.add_patch(Rectangle((valid, 0), width - valid, height, color="gray", alpha=0.3))
    return figure


def draw_directions() -> Figure:
    """Draw the offsets of a new layer: eight heads in eight directions, with four points each."""
    offsets = MSDeformAttn(n_levels=1).sampling_offsets.bias.detach().view(8, 4, 2)
    figure = Figure(figsize=(3.6, 3.6), layout="constrained")
    axis = figure.subplots()
    for head, color in enumerate(HEADS):
        axis.plot([0, offsets[head, -1, 0]], [0, offsets[head, -1, 1]], color=color, linewidth=1)
        axis.scatter(*offsets[head].T, color=color, s=25, zorder=3)
    axis.set(xlim=(-4.5, 4.5), ylim=(4.5, -4.5), aspect="equal", xticks=range(-4, 5), yticks=range(-4, 5))
    axis.set(xlabel="x, in pixels of the level", ylabel="y")
    axis.grid(linewidth=0.5)
    axis.plot(0, 0, "+", color="black", markersize=12)
    return figure


def draw_sampling_grids() -> Figure:
    """Draw where one query of a new layer samples: around a point, and below it around a box."""
    layer = MSDeformAttn(n_levels=len(SHAPES))
    figure, axes = _draw_levels(SHAPES, rows=2)
    for row, reference in enumerate(([0.4, 0.45], [0.4, 0.45, 0.5, 0.6])):
        references = torch.tensor(reference).view(1, 1, 1, -1)
        with torch.no_grad():
            locations, _ = layer.sampling_locations_and_weights(torch.zeros(1, 1, 256), references, SHAPES)
        for level, shape in enumerate(SHAPES):
            axis = axes[row * len(SHAPES) + level]
            for head, color in enumerate(HEADS):
                _scatter(axis, locations[0, 0, head, level], shape, color=color)
            _draw_reference(axis, reference, shape)
    return figure


def draw_dat_points() -> Figure:
    """Draw where a DAT layer with random weights samples a random map, for each of two groups of channels."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = DeformableAttention2d(32, n_heads=4, n_groups=2, map_size=SHAPES[0], stride=2)
        features = torch.randn(1, 32, *SHAPES[0])
    moved = layer.sampling_locations(features)[0]
    nn.init.zeros_(layer.offset_proj.weight)
    grid = layer.sampling_locations(features)[0]
    figure, axes = _draw_levels([SHAPES[0]] * 2)
    for group, axis in enumerate(axes):
        height, width = SHAPES[0]
        start, end = (each[:, group] * torch.tensor([width, height]) for each in (grid, moved))
        axis.quiver(*start.T, *(end - start).T, angles="xy", scale_units="xy", scale=1, width=0.004, color="gray")
        axis.scatter(*start.T, marker="+", color="black", s=30, linewidth=1)
        _scatter(axis, moved[:, group], SHAPES[0], color=HEADS[group])
        axis.set_title(f"group {group + 1}", fontsize=10)
    return figure


PICTURES = {
    "dat_points": draw_dat_points,
    "reference_points": draw_reference_points,
    "directions": draw_directions,
    "sampling_grids": draw_sampling_grids,
}


def on_files(files: Any, config: Any) -> Any:
    """Add the pictures to the site, as `images/drawn/NAME.svg`."""
    # Imported here, so that the pictures can be tested without it.
    from mkdocs.structure.files import File

    for name, draw in PICTURES.items():
        files.append(File.generated(config, f"images/drawn/{name}.svg", content=to_svg(draw())))
    return files


def to_svg(figure: Figure) -> bytes:
    """Return the same bytes for the same figure at every build."""
    memory = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "deformdetr", "svg.fonttype": "none"}):
        figure.savefig(memory, format="svg", metadata={"Date": None})
    return memory.getvalue()


def _draw_levels(shapes: list[tuple[int, int]], rows: int = 1) -> tuple[Figure, list[Axes]]:
    """Draw the pixels of every level side by side, at the same size."""
    figure = Figure(figsize=(9, 6.9 / len(shapes) * rows), layout="constrained")
    axes = list(figure.subplots(rows, len(shapes)).flat)
    for index, axis in enumerate(axes):
        height, width = shapes[index % len(shapes)]
        axis.set(xlim=(0, width), ylim=(height, 0), aspect="equal", xticks=range(width + 1), yticks=range(height + 1))
        axis.tick_params(labelbottom=False, labelleft=False, length=0)
        axis.grid(linewidth=0.5)
        axis.set_title(f"{height} × {width} pixels", fontsize=10)
    return figure, axes


def _scatter(axis: Axes, locations: Tensor, shape: tuple[int, int], *, color: str) -> None:
    """Draw points that are given as fractions of a level."""
    height, width = shape
    axis.scatter(locations[:, 0] * width, locations[:, 1] * height, color=color, s=14, zorder=3)


def _draw_reference(axis: Axes, reference: list[float], shape: tuple[int, int]) -> None:
    """Draw a cross at the reference point, and the box if it is one."""
    height, width = shape
    x, y, *size = reference
    axis.plot(x * width, y * height, "+", color="black", markersize=12, zorder=4)
    if size:
        corner = ((x - size[0] / 2) * width, (y - size[1] / 2) * height)
        axis.add_patch(Rectangle(corner, size[0] * width, size[1] * height, fill=False))
