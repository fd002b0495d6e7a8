"""The gradient of the value, summed in half precision."""

import itertools
import os
from types import SimpleNamespace

import pytest
import torch

from deformdetr.kernels import fused_ms_deform_attn, ms_deform_attn, ms_deform_attn_backward
from deformdetr.nn import MSDeformAttn
from deformdetr.testing import TOLERANCES, output_and_gradients, random_inputs
from sampling import assert_close

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
HALVES = (torch.float16, torch.bfloat16)
DEVICES = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
SHAPES = [(3, 4), (1, 2)]


# The interpreter adds float16, and is slow.
@pytest.mark.parametrize(
    ("device", "dtype", "channels"),
    [
        *(pytest.param("cpu", torch.float16, channels, marks=pytest.mark.interpreter) for channels in (5, 24)),
        *(
            pytest.param("cuda", dtype, channels, marks=pytest.mark.gpu)
            for dtype, channels in itertools.product(HALVES, (2, 5, 16, 24, 32, 80))
        ),
    ],
)
def test_gradients_are_right_where_a_pixel_gets_few_additions(
    device: str, dtype: torch.dtype, channels: int, rng: torch.Generator
):
    value, locations, weights = random_inputs(rng, SHAPES, batch=1, queries=3, heads=2, channels=channels, points=1)
    value, weights = (tensor.to(dtype).double() for tensor in (value, weights))
    locations = locations.float().double()
    grad = torch.randn(1, 3, 2 * channels, generator=rng).to(dtype).double()
    given = [value, locations, weights]
    expected = output_and_gradients(lambda *given: ms_deform_attn(given[0], SHAPES, *given[1:]), given, grad)
    low = [value.to(device, dtype), locations.to(device, torch.float32), weights.to(device, dtype)]
    grad = grad.to(device, dtype)
    options = {"grad_value_dtype": dtype}
    actual = output_and_gradients(lambda *given: ms_deform_attn(given[0], SHAPES, *given[1:], **options), low, grad)
    by_itself = ms_deform_attn_backward(grad, low[0], SHAPES, *low[1:], **options)
    for got, again, wanted in zip(actual[1:], by_itself, expected[1:], strict=True):
        assert got.dtype == again.dtype
        assert_close(got, wanted, TOLERANCES[got.dtype])
        assert_close(again, wanted, TOLERANCES[got.dtype])


@DEVICES
def test_a_sum_of_ones_stops_where_the_next_number_is_two_away(device: str):
    # Four samples of 600 queries at the center of the only pixel.
    value = torch.ones(1, 1, 1, 8, dtype=torch.float16, device=device, requires_grad=True)
    locations = torch.full((1, 600, 1, 1, 4, 2), 0.5, device=device)
    weights = torch.ones(1, 600, 1, 1, 4, dtype=torch.float16, device=device)
    ms_deform_attn(value, [(1, 1)], locations, weights, grad_value_dtype=torch.float16).sum().backward()
    if INTERPRETED or device == "cuda":
        # A GPU may add some of them before it rounds.
        assert (value.grad < 2400).all() if device == "cuda" else (value.grad == 2048).all()
    else:
        assert (value.grad == 2400).all()


def add_one_by_one(numbers: torch.Tensor) -> torch.Tensor:
    """Sum the rows of a tensor, rounded after every addition as an atomic addition is."""
    total = torch.zeros_like(numbers[0])
    for row in numbers:
        total += row
    return total


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_a_hot_pixel_of_100_000_additions_is_lost(dtype: torch.dtype):
    ones = torch.ones(100_000, 1)
    # Numbers from there on are two apart.
    assert add_one_by_one(ones.to(dtype)) == 2 / torch.finfo(dtype).eps
    assert add_one_by_one(ones) == 100_000


# As in docs/gpu.md: the error of a sum by its number of additions, relative to the norm of all sums.
ERRORS = {
    torch.bfloat16: {1: 0.0017, 2: 0.0025, 4: 0.0032, 16: 0.0053, 256: 0.019, 4096: 0.074},
    torch.float16: {1: 0.00021, 2: 0.0003, 4: 0.00039, 16: 0.00066, 256: 0.0024, 4096: 0.0092},
}


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_errors_of_sums_are_those_of_the_documentation(dtype: torch.dtype, rng: torch.Generator):
    for additions, documented in ERRORS[dtype].items():
        numbers = torch.randn(additions, 2000, generator=rng)
        error = add_one_by_one(numbers.to(dtype)).double() - numbers.double().sum(0)
        assert error.norm() / numbers.double().sum(0).norm() == pytest.approx(documented, rel=0.15), additions


@pytest.mark.parametrize(
    ("major", "hip", "dtypes"), [(8, None, ()), (9, None, HALVES), (12, None, HALVES), (9, "6.4", ())]
)
def test_only_gpus_that_add_vectors_sum_in_half_precision(
    major: int, hip: str | None, dtypes: tuple[torch.dtype, ...], monkeypatch: pytest.MonkeyPatch
):
    from deformdetr.kernels._triton._launch_table import architecture_of

    properties = SimpleNamespace(major=major, minor=0, warp_size=32, gcnArchName="gfx942:sramecc+")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.version, "hip", hip)
    assert set(architecture_of.__wrapped__(torch.device("cuda")).vector_sums) == set(dtypes)


@pytest.mark.interpreter
def test_a_layer_sums_in_the_dtype_of_its_attribute(rng: torch.Generator):
    layer = MSDeformAttn(8, 1, 1, 4).half()
    query, features = (torch.randn(1, rows, 8, generator=rng).half() for rows in (30, 2))
    references = torch.rand(1, 30, 1, 2, generator=rng)
    found = []
    for dtype in (torch.float32, torch.float16):
        layer.grad_value_dtype = dtype
        layer.zero_grad()
        layer(query, references, features, [(1, 2)]).sum().backward()
        found.append(layer.value_proj.weight.grad)
    assert not torch.equal(*found)
    torch.testing.assert_close(*found, rtol=0.02, atol=0.02 * found[0].abs().max().item())


@pytest.mark.parametrize("dtype", [torch.float64, torch.int32], ids=str)
def test_other_dtypes_of_sums_are_refused(dtype: torch.dtype, rng: torch.Generator):
    value, locations, weights = (tensor.float() for tensor in random_inputs(rng, [(5, 7)]))
    with pytest.raises(ValueError, match=f"grad_value_dtype must be torch.float32, float16 or bfloat16, got {dtype}"):
        ms_deform_attn(value, [(5, 7)], locations, weights, grad_value_dtype=dtype)
    with pytest.raises(ValueError, match="grad_value_dtype must be"):
        fused_ms_deform_attn(value, [(5, 7)], torch.rand(2, 7, 1, 2), locations, weights, grad_value_dtype=dtype)
