"""The pictures that the documentation's build draws."""

import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from docs.hooks.pictures import (
    HEADS,
    LEVELS,
    PICTURES,
    SHAPES,
    draw_dat_points,
    draw_directions,
    draw_reference_points,
    draw_sampling_grids,
    to_svg,
)
from matplotlib.axes import Axes


def _points(axis: Axes) -> list[np.ndarray]:
    """Return the points of every scatter plot."""
    return [np.asarray(collection.get_offsets()) for collection in axis.collections]


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_are_svg_and_the_same_in_every_build(name: str):
    picture, again = (to_svg(PICTURES[name]()) for _ in range(2))
    assert ElementTree.fromstring(picture).tag.endswith("svg")
    assert picture == again


def test_pages_show_every_picture():
    pages = (Path(__file__).parents[1] / "docs").glob("*.md")
    shown = {name for page in pages for name in re.findall(r"\(images/drawn/(\w+)\.svg\)", page.read_text())}
    assert shown == set(PICTURES)


def test_reference_points_are_the_centers_of_pixels_that_are_not_padding():
    for axis, ((height, _), valid) in zip(draw_reference_points().axes, LEVELS, strict=True):
        expected = [(column + 0.5, line + 0.5) for line in range(height) for column in range(valid)]
        np.testing.assert_allclose(_points(axis)[0], expected, atol=1e-5)


def test_heads_point_in_directions_of_their_own_with_points_at_whole_distances():
    heads = _points(draw_directions().axes[0])
    assert len(heads) == len(HEADS)
    for points in heads:
        np.testing.assert_allclose(np.abs(points).max(1), [1, 2, 3, 4], atol=1e-5)
    assert len({tuple(points[0].round(3) + 0.0) for points in heads}) == len(HEADS)


@pytest.mark.parametrize("level", range(3))
def test_sampling_grids_count_pixels_around_a_point_and_fill_a_box(level: int):
    figure, (height, width) = draw_sampling_grids(), SHAPES[level]
    center = np.array([0.4 * width, 0.45 * height])
    around_point, around_box = (np.concatenate(_points(figure.axes[row * 3 + level])) - center for row in (0, 1))
    np.testing.assert_allclose(np.abs(around_point).max(), 4, atol=1e-4)
    np.testing.assert_allclose(np.abs(around_box).max(0), [0.5 * width / 2, 0.6 * height / 2], atol=1e-4)


def test_groups_of_dat_move_one_grid_by_at_most_its_spacing():
    first, second = (_points(axis)[-2:] for axis in draw_dat_points().axes)
    np.testing.assert_array_equal(first[0], second[0])
    spacing = np.unique(first[0][:, 0])[1] - np.unique(first[0][:, 0])[0], first[0][6, 1] - first[0][0, 1]
    for grid, moved in (first, second):
        assert grid.shape == moved.shape == (4 * 6, 2)
        assert (np.abs(moved - grid) < spacing).all()
        assert np.abs(moved - grid).max() > 0.2
    assert np.abs(first[1] - second[1]).max() > 0.2
