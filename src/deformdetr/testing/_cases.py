"""The named cases of the check: each is a generator of problems, and says what it looks for."""

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import torch

from deformdetr.testing._inputs import (
    LAYOUTS,
    PYRAMIDS,
    Problem,
    away_from_pixel_borders,
    make_problem,
    random_inputs,
    with_layout,
)
from deformdetr.testing._random import random_problem

Mode: TypeAlias = Literal["plain", "deterministic", "compile", "export", "autocast"]
Draw: TypeAlias = Callable[[torch.Generator, torch.dtype], Iterator[Problem]]
Shapes: TypeAlias = list[tuple[int, int]]

_HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Case:
    """A kind of input that implementations get wrong.

    Attributes:
        name: Name of the case.
        draw: Function that yields problems for a generator and the dtype of the value.
        mode: How the implementation is called: `plain`; `deterministic`, twice, with deterministic algorithms and new
            memory full of NaN; `compile`, by `torch.compile`; `export`, by `torch.export`; or `autocast`.
    """

    name: str
    draw: Draw
    mode: Mode = "plain"

    @property
    def description(self) -> str:
        """What the case looks for."""
        return (self.draw.__doc__ or "").strip()


def _draw(generator: torch.Generator, dtype: torch.dtype, shapes: Shapes, label: object = "", **sizes: int) -> Problem:
    """Draw a problem whose locations keep away from kinks."""
    value, locations, weights = random_inputs(generator, shapes, **sizes)
    locations = away_from_pixel_borders(locations, shapes)
    return make_problem((value, locations, weights), shapes, generator, dtype, label=str(label))


def pyramids(generator: torch.Generator, dtype: torch.dtype) -> Iterator[Problem]:
    """Sample levels of several sizes, inside and outside."""
    for label, shapes in PYRAMIDS.items():
        yield _draw(generator, dtype, shapes, label, channels=8)
        yield _draw(generator, dtype, shapes, f"{label}, 5 channels")


def thin_levels(generator: torch.Generator, dtype: torch.dtype) -> Iterator[Problem]:
    """Sample levels that are one pixel high or wide."""
    for shapes in ([(1, 1)], [(5, 1)], [(1, 5)], [(2, 2), (1, 1)]):
        for queries in (1, 30):
            yield _draw(generator, dtype, shapes, shapes, batch=1, queries=queries, heads=1, points=1)


def channels(generator: torch.Generator, dtype: torch.dtype) -> Iterator[Problem]:
    """Use 1 to 256 channels per head, mostly no powers of two."""
    for count in (1, 2, 3, 4, 8, 16, 20, 24, 30, 32, 48, 64, 71, 80, 96, 128, 256):
        sizes = {"batch": 1, "queries": 5, "heads": 2, "points": 2}
        yield _draw(generator, dtype, [(3, 4), (2, 2)], f"{count} channels", channels=count, **sizes)


def levels_points_heads(generator: torch.Generator, dtype: torch.dtype) -> Iterator[Problem]:
    """Use up to eight levels and seventeen points, with one and with five heads."""
    for levels, points, heads in ((1, 1, 5), (1, 16, 1), (8, 1, 5), (3, 5, 2), (4, 17, 1), (2, 3, 5)):
        shapes = [(max(1, 7 - level), level + 1 if level < 7 else 1) for level in range(levels)]
        label = f"{levels} levels, {points} points, {heads} heads"
        sizes = {"batch": 1, "queries": 3, "channels": 8}
        yield _draw(generator, dtype, shapes, label, heads=heads, points=points, **sizes)


def images_and_queries(generator: torch.Generator, dtype: torch.dtype) -> Iterator[Problem]:
    """Use from one to many images and queries."""
    for batch, queries in ((1, 1), (2, 33), (17, 2)):
        label, sizes = f"{batch} images, {queries} queries", {"heads": 2, "channels": 4, "points": 2}
        yield _draw(generator, dtype, [(3, 4)], label, batch=batch, queries=queries, **sizes)


def queries_are_pixels(generator: torch.Generator, dtype: torch.dtype) -> Iterator[Problem]:
    """Use as many queries as pixels, as an encoder does; levels end within tiles of queries."""
    sizes = {"batch": 1, "queries": 159, "heads": 2, "channels": 4, "points": 1}
    yield _draw(generator, dtype, [(9, 17), (3, 2)], **sizes)


def large_batch(generator: torch.Generator, dtype: torch.dtype) -> Iterator[Problem]:
    """Use more images than the 64 that compiled extensions take at once, and no multiple of 64."""
    sizes = {"queries": 1, "heads": 1, "channels": 4, "points": 1}
    yield _draw(generator, dtype, [(2, 2)], "65 images", batch=65, **sizes)
    yield _draw(generator, dtype, [(2, 2)], "129 images", batch=129, **sizes)


def huge_batch(generator: torch.Generator, dtype: torch.dtype) -> Iterator[Problem]:
    """Use more images than the 65,535 blocks along the second axis of a CUDA grid."""
    yield _draw(generator, dtype, [(2, 2)], batch=65_537, queries=1, heads=1, channels=4, points=1)


def empty(generator: torch.Generator, dtype: torch.dtype) -> Iterator[Problem]:
    """Use no images, no queries, or a level without pixels."""
    yield _draw(generator, dtype, [(3, 4)], "no images", batch=0)
    yield _draw(generator, dtype, [(3, 4)], "no queries", queries=0)
    yield _draw(generator, dtype, [(2, 3), (0, 4), (3, 3)], "a level without pixels")


def _at_half_pixels(generator: torch.Generator, dtype: torch.dtype, *, inside: bool) -> Iterator[Problem]:
    """Yield every half pixel between the centers of the outer pixels, or in a frame of 1.5 pixels around those."""
    # Powers of two, so that positions are exact.
    for size in (1, 2, 8):
        position = torch.arange(2 * size + 5, dtype=torch.float64) / 2 - 1.5
        grid = torch.stack(torch.meshgrid(position, position, indexing="xy"), dim=-1).view(-1, 2)
        is_inside = ((grid >= 0) & (grid <= size - 1)).all(-1)
        locations = ((grid[is_inside == inside] + 0.5) / size).view(1, -1, 1, 1, 1, 2)
        value, _, weights = random_inputs(
            generator, [(size, size)], batch=1, queries=locations.shape[1], heads=1, channels=4, points=1
        )
        yield make_problem((value, locations, weights), [(size, size)], generator, dtype, label=f"{size} x {size}")


def pixel_centers(generator: torch.Generator, dtype: torch.dtype) -> Iterator[Problem]:
    """Sample exactly at and between pixel centers, where the derivative is the one from the right."""
    return _at_half_pixels(generator, dtype, inside=True)


def edges(generator: torch.Generator, dtype: torch.dtype) -> Iterator[Problem]:
    """Sample every half pixel around the image, where outside counts as zero."""
    return _at_half_pixels(generator, dtype, inside=False)


def _misplaced(generator: torch.Generator, dtype: torch.dtype, places: tuple[float, ...]) -> Iterator[Problem]:
    """Move the x coordinates, or both, of some points of some queries to places outside."""
    for (label, shapes), place in itertools.product(PYRAMIDS.items(), places):
        problem = _draw(generator, dtype, shapes, f"{label}, {place}", channels=8)
        problem.sampling_locations[:, 2:5, :, :, 1:, 0] = place
        problem.sampling_locations[:, 5:, :, :, 1:] = place
        yield problem


def far_outside(generator: torch.Generator, dtype: torch.dtype) -> Iterator[Problem]:
    """Sample so far outside that the pixel's number is no integer of 32 bits, or infinite."""
    return _misplaced(generator, dtype, (300.0, -1e9, 3e38))


def nan_and_infinite_locations(generator: torch.Generator, dtype: torch.dtype) -> Iterator[Problem]:
    """Sample at NaN and infinity, which counts as zero and gets zero gradients."""
    return _misplaced(generator, dtype, (torch.nan, torch.inf, -torch.inf))


def _unsampled(generator: torch.Generator, dtype: torch.dtype, poison: float) -> Iterator[Problem]:
    """Put all samples into the first four pixels of the first level or outside, and the number into all others."""
    shapes = [(4, 4), (2, 2)]
    value, locations, weights = random_inputs(generator, shapes, queries=40, channels=8)
    locations[:, :, :, 0] = torch.where(locations[:, :, :, 0] > 0.5, 7.0, locations[:, :, :, 0].clamp(max=0.37))
    locations[:, :, :, 1] = -1e3
    problem = make_problem((value, away_from_pixel_borders(locations, shapes), weights), shapes, generator, dtype)
    poisoned = problem.value.clone()
    poisoned[:, [2, 3, 6, 7, *range(8, 20)]] = poison
    yield replace(problem, value=poisoned, exact_value=problem.value)


def unsampled_nan(generator: torch.Generator, dtype: torch.dtype) -> Iterator[Problem]:
    """Set pixels that no sample touches to NaN, which changes nothing."""
    return _unsampled(generator, dtype, torch.nan)


def unsampled_infinity(generator: torch.Generator, dtype: torch.dtype) -> Iterator[Problem]:
    """Set pixels that no sample touches to infinity, which changes nothing."""
    return _unsampled(generator, dtype, torch.inf)


def sampled_nan(generator: torch.Generator, dtype: torch.dtype) -> Iterator[Problem]:
    """Sample a NaN, which reaches the queries that sample it and no others."""
    problem = _draw(generator, dtype, PYRAMIDS["four_levels"], queries=40)
    problem.value[0, 3 * 11 + 7, 1, 2] = torch.nan
    # A quarter of a pixel to the right of that pixel and below, on the level of 9 rows and 11 columns.
    problem.sampling_locations[0, 5, 1, 0, 0] = torch.tensor([7.75 / 11, 3.75 / 9])
    yield problem


def points_per_level(generator: torch.Generator, dtype: torch.dtype) -> Iterator[Problem]:
    """Use levels with different numbers of points."""
    for counts in ((3, 6, 3), (1, 2, 4), (2, 2, 2), (16, 1, 1)):
        problem = _draw(generator, dtype, [(5, 4), (3, 3), (1, 2)], counts, channels=4, points=max(counts))
        used = torch.tensor([[point < count for point in range(max(counts))] for count in counts])
        locations, weights = problem.sampling_locations[:, :, :, used], problem.attention_weights[:, :, :, used]
        yield replace(problem, sampling_locations=locations, attention_weights=weights, points_per_level=counts)


def hot_pixel(generator: torch.Generator, dtype: torch.dtype) -> Iterator[Problem]:
    """Sample one pixel by 600 queries: the sum that is its gradient stops growing in half precision."""
    problem = _draw(generator, dtype, [(1, 1)], batch=1, queries=600, heads=1, channels=8, points=1)
    ones, weights = torch.ones_like(problem.grad_output), torch.ones_like(problem.attention_weights)
    center = torch.full_like(problem.sampling_locations, 0.5)
    yield replace(problem, grad_output=ones, attention_weights=weights, sampling_locations=center)


def long_sums(generator: torch.Generator, dtype: torch.dtype) -> Iterator[Problem]:
    """Add 256 numbers to 1, each so small that 1 plus the number is 1 in half precision."""
    problem = _draw(generator, dtype, [(1, 1)], batch=1, queries=1, heads=1, channels=1, points=257)
    weights = torch.full_like(problem.attention_weights, 2.0**-9 if dtype == torch.bfloat16 else 2.0**-12)
    weights[..., 0] = 1
    one, center = torch.ones_like(problem.value), torch.full_like(problem.sampling_locations, 0.5)
    grad = torch.ones_like(problem.grad_output)
    yield replace(problem, value=one, attention_weights=weights, sampling_locations=center, grad_output=grad)


def large_values(generator: torch.Generator, dtype: torch.dtype) -> Iterator[Problem]:
    """Use numbers near the largest of float16, which a running sum exceeds although the result does not."""
    problem = _draw(generator, dtype, [(2, 2)], batch=1, queries=1, heads=1, channels=8, points=4)
    weights = torch.tensor([1.0, 1.0, 1.0, -2.25], dtype=torch.float64).view(1, 1, 1, 1, 4)
    halved = torch.randint(2, problem.value.shape, generator=generator, dtype=torch.float64)
    value = 59_904.0 * (1 - halved / 2)
    center, grad = torch.full_like(problem.sampling_locations, 0.5), (problem.grad_output / 128).to(dtype).double()
    yield replace(problem, value=value, attention_weights=weights, sampling_locations=center, grad_output=grad)


def _stripes(generator: torch.Generator, dtype: torch.dtype) -> Iterator[Problem]:
    """Stripes one pixel wide on a map of 512 columns, where bfloat16 locations are off by up to two stripes."""
    problem = _draw(generator, dtype, [(2, 512)], queries=40, points=2)
    stripes = (torch.arange(1024, dtype=torch.float64) % 2)[None, :, None, None].expand_as(problem.value)
    locations = away_from_pixel_borders(problem.sampling_locations.clamp(0.3, 0.7), problem.spatial_shapes)
    weights = problem.attention_weights.flatten(3).softmax(-1).view_as(problem.attention_weights)
    yield make_problem((stripes, locations, weights), problem.spatial_shapes, generator, dtype)


def precise_locations(generator: torch.Generator, dtype: torch.dtype) -> Iterator[Problem]:
    """Use float32 locations, which keep their precision beside values in half precision."""
    return _stripes(generator, dtype)


def half_precision_locations(generator: torch.Generator, dtype: torch.dtype) -> Iterator[Problem]:
    """Use locations in half precision, which are multiplied by the size of the level in float32."""
    for kind in _HALF:
        inputs = random_inputs(generator, [(5, 7)], channels=8)
        yield make_problem(inputs, [(5, 7)], generator, dtype, locations_dtype=kind, label=str(kind))


def mixed_dtypes(generator: torch.Generator, dtype: torch.dtype) -> Iterator[Problem]:
    """Use weights in other dtypes than the value's; gradients have the dtypes of their inputs."""
    for kind in (torch.float32, *_HALF):
        value, locations, weights = random_inputs(generator, [(5, 7)], channels=8)
        inputs = (value, away_from_pixel_borders(locations, [(5, 7)]), weights)
        yield make_problem(inputs, [(5, 7)], generator, dtype, weights_dtype=kind, label=f"weights {kind}")


def non_contiguous(generator: torch.Generator, dtype: torch.dtype) -> Iterator[Problem]:
    """Use inputs of any strides and alignment, and a gradient that repeats one number."""
    for layout in LAYOUTS:
        for shapes in (PYRAMIDS["one_level"], PYRAMIDS["four_levels"]):
            yield with_layout(_draw(generator, dtype, shapes, channels=8), layout)
    problem = _draw(generator, dtype, PYRAMIDS["four_levels"], "expanded gradient", channels=8)
    yield replace(problem, grad_output=torch.ones((), dtype=torch.float64).expand_as(problem.grad_output))


def partial_gradients(generator: torch.Generator, dtype: torch.dtype) -> Iterator[Problem]:
    """Differentiate with respect to some of the inputs alone."""
    for count in (1, 2):
        for needed in itertools.combinations(("value", "locations", "weights"), count):
            needs = ("value" in needed, "locations" in needed, "weights" in needed)
            problem = _draw(generator, dtype, PYRAMIDS["one_level"], f"gradients of {needed}", channels=8)
            yield replace(problem, needs=needs)


def random_calls(generator: torch.Generator, dtype: torch.dtype) -> Iterator[Problem]:
    """Draw sizes, memory layouts and numbers at random; sizes may be 0, and locations NaN."""
    for seed in torch.randint(2**62, (20,), generator=generator).tolist():
        yield random_problem(seed, dtype)


def determinism(generator: torch.Generator, dtype: torch.dtype) -> Iterator[Problem]:
    """Repeat a call with deterministic algorithms, which gives the same bit by bit."""
    # Many samples per pixel, so that another order of the sums would show.
    yield _draw(generator, dtype, PYRAMIDS["pixel_row_column"], queries=40, channels=8)


def uninitialized_memory(generator: torch.Generator, dtype: torch.dtype) -> Iterator[Problem]:
    """Fill new memory with NaN; what no sample touches is zero nevertheless."""
    problem = _draw(generator, dtype, PYRAMIDS["four_levels"], heads=1, channels=8)
    problem.sampling_locations[:, ::2] = -3.0
    yield problem


def compiled(generator: torch.Generator, dtype: torch.dtype) -> Iterator[Problem]:
    """Trace forward and backward by `torch.compile(fullgraph=True)`, which changes nothing."""
    yield _draw(generator, dtype, PYRAMIDS["four_levels"], channels=8)


def exported(generator: torch.Generator, dtype: torch.dtype) -> Iterator[Problem]:
    """Export a program by `torch.export`, which has the same output."""
    yield replace(_draw(generator, dtype, PYRAMIDS["four_levels"], channels=8), needs=(False, False, False))


def autocast(generator: torch.Generator, dtype: torch.dtype) -> Iterator[Problem]:
    """Use automatic mixed precision, under which locations keep their precision."""
    return _stripes(generator, dtype)


_PLAIN = (
    pyramids, thin_levels, channels, levels_points_heads, images_and_queries, queries_are_pixels, large_batch,
    huge_batch, empty, pixel_centers, edges, far_outside, nan_and_infinite_locations, unsampled_nan, unsampled_infinity,
    sampled_nan, points_per_level, hot_pixel, long_sums, large_values, precise_locations, half_precision_locations,
    mixed_dtypes, non_contiguous, partial_gradients, random_calls,
)  # fmt: skip

_MODES: Mapping[Draw, Mode] = {
    determinism: "deterministic",
    uninitialized_memory: "deterministic",
    compiled: "compile",
    exported: "export",
    autocast: "autocast",
}

CASES: Mapping[str, Case] = {
    draw.__name__: Case(draw.__name__, draw, _MODES.get(draw, "plain")) for draw in (*_PLAIN, *_MODES)
}
"""All cases, by name."""
