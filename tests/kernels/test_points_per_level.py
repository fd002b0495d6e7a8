"""Levels with different numbers of points, from offsets and logits, on every device."""

import inspect
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from deformdetr.kernels import fused_ms_deform_attn, ms_deform_attn, sampling_locations
from deformdetr.testing import TOLERANCES, output_and_gradients
from sampling import assert_close

# The interpreter computes with NumPy, which warns of what is meant to overflow.
pytestmark = pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")

SHAPES = [(6, 7), (3, 4), (1, 2)]
PIXELS = 56


def random_inputs(
    rng: torch.Generator, counts: Sequence[int], coordinates: int = 4, *, images: int = 2, levels: int = 3
) -> list[Tensor]:
    """Draw value, reference points, offsets and logits in float64."""
    shapes = [(2, PIXELS, 2, 8), (images, 3, levels, coordinates), (2, 3, 2, sum(counts), 2), (2, 3, 2, sum(counts))]
    value, references, offsets, logits = (torch.randn(shape, generator=rng, dtype=torch.float64) for shape in shapes)
    return [value, references.sigmoid(), offsets * 2, logits * 3]


def attend_as_published(
    value: Tensor, references: Tensor, offsets: Tensor, logits: Tensor, counts: Sequence[int]
) -> Tensor:
    """Compute it as RT-DETRv2 and D-FINE write it, with the reference in place of `grid_sample`."""
    level = torch.tensor([level for level, count in enumerate(counts) for _ in range(count)])
    around = references.expand(-1, -1, len(counts), -1)[:, :, None, level]
    if references.shape[-1] == 2:
        locations = around + offsets / torch.tensor(SHAPES).flip(-1)[level]
    else:
        scale = 1 / torch.tensor(counts, dtype=offsets.dtype)[level]
        locations = around[..., :2] + offsets * scale[:, None] * around[..., 2:] * 0.5
    return ms_deform_attn(value, SHAPES, locations, logits.softmax(-1), "reference", points_per_level=counts)


@pytest.mark.parametrize(
    ("counts", "coordinates", "images", "levels"),
    [
        ((3, 6, 3), 4, 2, 1),
        ((3, 6, 3), 2, 1, 3),
        ((1, 2, 4), 4, 1, 3),
        ((1, 2, 4), 2, 2, 1),
        ((2, 2, 2), 4, 2, 3),
    ],
)
def test_output_and_gradients_are_those_of_the_published_formula(
    counts: tuple[int, ...],
    coordinates: int,
    images: int,
    levels: int,
    rng: torch.Generator,
    device: str,
):
    inputs = random_inputs(rng, counts, coordinates, images=images, levels=levels)
    inputs = [tensor.float().double() for tensor in inputs]
    grad = torch.randn(2, 3, 16, generator=rng)
    mask = torch.rand(2, PIXELS, generator=rng) < 0.3

    def attend(value: Tensor, references: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
        where = mask.to(device)
        return fused_ms_deform_attn(value, SHAPES, references, offsets, logits, where, points_per_level=counts)

    expected = output_and_gradients(
        lambda value, *rest: attend_as_published(value * ~mask[..., None, None], *rest, counts), inputs, grad
    )
    actual = output_and_gradients(attend, [tensor.to(device, torch.float32) for tensor in inputs], grad)
    for got, wanted in zip(actual, expected, strict=True):
        assert_close(got, wanted, 4 * TOLERANCES[torch.float32])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_computed_in_float32(dtype: torch.dtype, rng: torch.Generator, device: str):
    counts = (3, 6, 3)
    kinds = (dtype, torch.float32, dtype, dtype)
    low = [tensor.to(kind) for tensor, kind in zip(random_inputs(rng, counts), kinds, strict=True)]
    grad = torch.randn(2, 3, 16, generator=rng).to(dtype)
    expected = output_and_gradients(
        lambda *tensors: attend_as_published(*tensors, counts), [t.double() for t in low], grad
    )
    actual = output_and_gradients(
        lambda value, *rest: fused_ms_deform_attn(value, SHAPES, *rest, points_per_level=counts),
        [tensor.to(device) for tensor in low],
        grad,
    )
    for got, wanted, kind in zip(actual, expected, (dtype, *kinds), strict=True):
        assert got.dtype == kind
        assert_close(got, wanted, TOLERANCES[dtype])


def test_second_derivatives_are_those_of_the_published_formula(rng: torch.Generator, device: str):
    counts = (1, 2, 4)
    inputs = random_inputs(rng, counts)
    grad = torch.randn(2, 3, 16, generator=rng)

    def penalty(attend, tensors: list[Tensor]) -> tuple[Tensor, ...]:
        leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors]
        out = attend(*leaves)
        first = torch.autograd.grad(out, leaves, grad.to(out), create_graph=True)
        return torch.autograd.grad(sum(by.pow(2).sum() for by in first), leaves)

    expected = penalty(lambda *tensors: attend_as_published(*tensors, counts), inputs)
    actual = penalty(
        lambda value, *rest: fused_ms_deform_attn(value, SHAPES, *rest, points_per_level=counts),
        [tensor.to(device, torch.float32) for tensor in inputs],
    )
    for got, wanted in zip(actual, expected, strict=True):
        assert_close(got, wanted, 1e-4)


def test_shapes_in_a_tensor_give_the_same(rng: torch.Generator, device: str):
    counts = (3, 6, 3)
    value, *rest = (tensor.to(device, torch.float32) for tensor in random_inputs(rng, counts, coordinates=2))
    listed, stored = (
        fused_ms_deform_attn(value, shapes, *rest, points_per_level=counts)
        for shapes in (SHAPES, torch.tensor(SHAPES, device=device))
    )
    torch.testing.assert_close(listed, stored)


def test_locations_have_one_axis_of_all_points(rng: torch.Generator):
    _, references, offsets, _ = random_inputs(rng, (1, 2, 4))
    together = sampling_locations(references, offsets, SHAPES, points_per_level=(1, 2, 4))
    parts = [
        sampling_locations(references[:, :, [level]], part[:, :, :, None], SHAPES[level : level + 1])[:, :, :, 0]
        for level, part in enumerate(offsets.split((1, 2, 4), dim=3))
    ]
    torch.testing.assert_close(together, torch.cat(parts, dim=3))


@pytest.mark.interpreter
def test_triton_kernels_take_offsets_and_logits(rng: torch.Generator, monkeypatch: pytest.MonkeyPatch):
    # Imported here, because it imports triton, which compiles or interprets as it is told before.
    from deformdetr.kernels import _triton

    run, given = _triton.forward, []

    def forward(value: Tensor, pyramid: Any, sampling: Any) -> Tensor:
        given.append((pyramid.repeats, sampling.weights.shape[3:], sampling.references is not None))
        return run(value, pyramid, sampling)

    monkeypatch.setattr(_triton, "forward", forward)
    value, *rest = (tensor.float() for tensor in random_inputs(rng, (3, 6, 3)))
    fused_ms_deform_attn(value, SHAPES, *rest, points_per_level=(3, 6, 3))
    assert given == [([1, 2, 1], (4, 3), True)]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"points_per_level": ()}, ValueError, r"positive numbers, one per level, got \[\]"),
        ({"points_per_level": 3}, TypeError, "points_per_level must be whole numbers, one per level, got 3"),
        ({"points_per_level": (3, 6, 3.0)}, TypeError, r"whole numbers, one per level, got \(3, 6, 3.0\)"),
        ({"points_per_level": "363"}, TypeError, "whole numbers, one per level, got '363'"),
        ({"points_per_level": (3, 0, 9)}, ValueError, r"positive numbers, one per level, got \[3, 0, 9\]"),
        (
            {"points_per_level": (3, 6, 4)},
            ValueError,
            r"points_per_level \[3, 6, 4\], sampling_offsets must have shape \(.*, 13, 2\), got \(2, 3, 2, 12, 2\)",
        ),
        (
            {"attention_logits": torch.zeros(2, 3, 2, 3, 4)},
            ValueError,
            r"attention_logits must have shape \(batch, queries, heads, 12\), got \(2, 3, 2, 3, 4\)",
        ),
        ({"points_per_level": (6, 6)}, ValueError, "must be 2 pairs"),
        ({"points_per_level": (3, 9)}, ValueError, r"reference_points \(2, 3, 3, 4\) must be for .* and 2 levels"),
        ({"reference_points": torch.zeros(2, 3, 2, 4)}, ValueError, "and 3 levels"),
        ({"reference_points": [0.5, 0.5]}, TypeError, "reference_points must be a tensor, got list"),
        ({"spatial_shapes": SHAPES[:2]}, ValueError, "must be 3 pairs"),
        ({"sampling_offsets": None}, TypeError, "sampling_offsets must be a tensor, got NoneType"),
    ],
    ids=lambda value: None,
)
def test_wrong_arguments_are_refused_with_their_values(change, error, message, rng: torch.Generator):
    names = ("value", "reference_points", "sampling_offsets", "attention_logits")
    arguments = dict(zip(names, random_inputs(rng, (3, 6, 3)), strict=True))
    arguments |= {"spatial_shapes": SHAPES, "points_per_level": (3, 6, 3)}
    with pytest.raises(error, match=message):
        inspect.unwrap(fused_ms_deform_attn)(**arguments | change)
