"""Discrete sampling, one pixel per sample."""

import inspect
import math

import pytest
import torch
from torch import Tensor
from transformers.models.rt_detr_v2.modeling_rt_detr_v2 import multi_scale_deformable_attention_v2

from deformdetr.kernels import fused_ms_deform_attn, ms_deform_attn, sampling_locations
from deformdetr.testing import TOLERANCES, output_and_gradients, random_inputs
from sampling import assert_close

SQUARES = [(5, 5), (3, 3), (1, 1)]
RECTANGLES = [(3, 7), (6, 2), (1, 4)]


def attend(value: Tensor, locations: Tensor, weights: Tensor, shapes=RECTANGLES, **options) -> Tensor:
    return ms_deform_attn(value, shapes, locations, weights, method="discrete", **options)


def differentiate(function, value: Tensor, locations: Tensor, weights: Tensor, grad: Tensor) -> list[Tensor]:
    """Return the output and the gradients of value and weights."""
    return output_and_gradients(lambda v, w: function(v, locations, w), [value, weights], grad)


@pytest.mark.parametrize("counts", [(3, 3, 3), (3, 6, 3), (1, 2, 4)], ids=str)
def test_square_levels_give_what_rt_detrv2_computes(counts: tuple[int, ...], rng: torch.Generator):
    value, locations, weights = random_inputs(rng, SQUARES, points=sum(counts))
    locations, weights = locations[:, :, :, 0], weights[:, :, :, 0]
    grad = torch.randn(2, 7, 15, generator=rng, dtype=torch.float64)

    def theirs(v: Tensor, x: Tensor, w: Tensor) -> Tensor:
        return multi_scale_deformable_attention_v2(v, SQUARES, x, w, list(counts), "discrete")

    expected = differentiate(theirs, value, locations, weights, grad)
    actual = differentiate(
        lambda *tensors: attend(*tensors, SQUARES, points_per_level=counts), value, locations, weights, grad
    )
    for got, wanted in zip(actual, expected, strict=True):
        assert_close(got, wanted, TOLERANCES[torch.float64])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("as_tensor", [False, True])
def test_every_sample_is_a_pixel_of_its_level(dtype: torch.dtype, as_tensor: bool, rng: torch.Generator):
    value, locations, weights = random_inputs(rng, RECTANGLES)
    value, locations, weights = value.to(dtype).double(), locations.float().double(), weights.to(dtype).double()
    grad = torch.randn(2, 7, 15, generator=rng).to(dtype).double()

    def pick(v: Tensor, x: Tensor, w: Tensor) -> Tensor:
        """Pick the pixels one by one."""
        maps = [part.unflatten(1, shape) for part, shape in zip(v.split([21, 12, 4], 1), RECTANGLES, strict=True)]
        out = torch.zeros(2, 7, 3, 5, dtype=torch.float64)
        for image, query, head, level, point in torch.ones_like(w).nonzero().tolist():
            (height, width), at = RECTANGLES[level], x[image, query, head, level, point].tolist()
            column, line = (math.floor(along * size + 0.5) for along, size in zip(at, (width, height), strict=True))
            column, line = min(max(column, 0), width - 1), min(max(line, 0), height - 1)
            share = w[image, query, head, level, point] * maps[level][image, line, column, head]
            out = out.index_put(tuple(map(torch.tensor, (image, query, head))), share, accumulate=True)
        return out.flatten(2)

    expected = differentiate(pick, value, locations, weights, grad)
    shapes = torch.tensor(RECTANGLES) if as_tensor else RECTANGLES
    low = [value.to(dtype), locations.to(torch.promote_types(dtype, torch.float32)), weights.to(dtype)]
    actual = differentiate(lambda *tensors: attend(*tensors, shapes), *low, grad.to(dtype))
    for got, wanted in zip(actual, expected, strict=True):
        assert got.dtype == dtype
        assert_close(got, wanted, TOLERANCES[dtype])


def test_locations_and_what_they_come_from_have_no_gradient(rng: torch.Generator):
    value, locations, weights = (tensor.requires_grad_() for tensor in random_inputs(rng, RECTANGLES))
    attend(value, locations, weights).sum().backward()
    assert value.grad is not None
    assert weights.grad is not None
    assert locations.grad is None


@pytest.mark.parametrize(
    ("location", "pixel"),
    [(0.0, 0), (0.124, 0), (0.126, 1), (0.875, 3), (1.0, 3), (7.0, 3), (-7.0, 0), (1e38, 3), (torch.inf, 3),
     (-torch.inf, 0), (torch.nan, 0)],
)  # fmt: skip
def test_a_location_is_rounded_and_moved_into_the_level(location: float, pixel: int):
    value = torch.arange(4.0).view(1, 4, 1, 1)
    at = torch.tensor([location, 0.5]).view(1, 1, 1, 1, 1, 2)
    assert attend(value, at, torch.ones(1, 1, 1, 1, 1), [(1, 4)]).item() == pixel


@pytest.mark.parametrize("as_tensor", [False, True])
def test_empty_levels_and_inputs_give_zero(as_tensor: bool, rng: torch.Generator):
    shapes = [(0, 3), (2, 2), (4, 0)]
    value, locations, weights = random_inputs(rng, shapes)
    given = torch.tensor(shapes) if as_tensor else shapes
    expected = attend(value, locations[:, :, :, 1:2], weights[:, :, :, 1:2], [(2, 2)])
    torch.testing.assert_close(attend(value, locations, weights, given), expected)
    assert not attend(value[:, :0], locations[:, :, :, :1], weights[:, :, :, :1], given[:1]).any()
    assert attend(value, locations[:, :0], weights[:, :0], given).shape == (2, 0, 15)


@pytest.mark.parametrize("counts", [None, (1, 2, 3)], ids=str)
def test_fused_form_is_that_of_its_parts(counts: tuple[int, ...] | None, rng: torch.Generator):
    value, offsets, logits = random_inputs(rng, RECTANGLES, points=2)
    if counts is not None:
        offsets, logits = offsets.flatten(3, 4), logits.flatten(3)
    references = torch.rand(2, 7, 1, 4, generator=rng, dtype=torch.float64)
    mask = torch.rand(2, 37, generator=rng) < 0.3
    locations = sampling_locations(references, offsets, RECTANGLES, points_per_level=counts)
    weights = logits.flatten(3).softmax(-1).view(logits.shape)
    expected = attend(value * ~mask[..., None, None], locations, weights, points_per_level=counts)
    actual = fused_ms_deform_attn(
        value, RECTANGLES, references, offsets, logits, mask, method="discrete", points_per_level=counts
    )
    torch.testing.assert_close(actual, expected)


def test_vmap_maps_over_it(rng: torch.Generator):
    value, locations, weights = random_inputs(rng, RECTANGLES, queries=3)
    several = torch.stack([value, value + 1])
    mapped = torch.func.vmap(lambda v: attend(v, locations, weights))(several)
    torch.testing.assert_close(mapped[1], attend(several[1], locations, weights))


def test_other_methods_are_refused(rng: torch.Generator):
    value, locations, weights = random_inputs(rng, RECTANGLES)
    with pytest.raises(ValueError, match="method must be 'bilinear' or 'discrete', got 'nearest'"):
        inspect.unwrap(ms_deform_attn)(value, RECTANGLES, locations, weights, method="nearest")
