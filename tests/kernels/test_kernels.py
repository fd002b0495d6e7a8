"""Tests of the kernels of every device against the reference in float64.

Run as they are, these tests see the CPU kernel, and what replaces it without Numba; with `TRITON_INTERPRET=1`, Triton's
in its interpreter; and with a GPU (`-m gpu`), the compiled ones.
"""

import itertools

import pytest
import torch
from torch import Tensor

from deformdetr.kernels import fused_ms_deform_attn, ms_deform_attn, ms_deform_attn_backward, sampling_locations
from sampling import PYRAMIDS, TOLERANCE, assert_close, away_from_pixel_borders, gradients, random_inputs

# The interpreter computes with NumPy, which warns of what is meant to overflow.
pytestmark = pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def check(
    inputs: list[Tensor],
    shapes: list[tuple[int, int]],
    rng: torch.Generator,
    device: str,
    dtype: torch.dtype = torch.float32,
    **options,
) -> list[Tensor]:
    """Compare output and gradients with those in float64, and return the former."""
    value, locations, weights = inputs
    value, weights = value.to(dtype).double(), weights.to(dtype).double()
    locations = locations.float().double()
    grad = torch.randn(*weights.shape[:2], value.shape[2] * value.shape[3], generator=rng).to(dtype).double()
    expected = gradients(
        lambda v, x, w: ms_deform_attn(v, shapes, x, w, "reference", **options), [value, locations, weights], grad
    )
    low = [tensor.to(device, kind) for tensor, kind in ((value, dtype), (locations, torch.float32), (weights, dtype))]
    actual = gradients(lambda v, x, w: ms_deform_attn(v, shapes, x, w, **options), low, grad.to(device, dtype))
    for got, wanted, kind in zip(actual, expected, (dtype, dtype, torch.float32, dtype), strict=True):
        assert got.dtype == kind
        assert_close(got, wanted, TOLERANCE[kind])
    return actual


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 8, 16, 20, 24, 30, 32, 48, 64, 71, 80, 96, 128, 256])
def test_any_number_of_channels(channels: int, dtype: torch.dtype, rng: torch.Generator, device: str):
    shapes = [(3, 4), (2, 2)]
    inputs = random_inputs(rng, shapes, batch=1, queries=5, heads=2, channels=channels, points=2)
    inputs[1] = away_from_pixel_borders(inputs[1], shapes)
    check(inputs, shapes, rng, device, dtype)


@pytest.mark.parametrize(("levels", "points"), [(1, 1), (1, 16), (8, 1), (3, 5), (4, 17), (2, 3)])
@pytest.mark.parametrize("heads", [1, 5])
def test_any_number_of_levels_points_and_heads(levels: int, points: int, heads: int, rng: torch.Generator, device: str):
    shapes = [(7 - level, 1 + level) if level < 7 else (1, 1) for level in range(levels)]
    inputs = random_inputs(rng, shapes, batch=1, queries=3, heads=heads, channels=8, points=points)
    inputs[1] = away_from_pixel_borders(inputs[1], shapes)
    check(inputs, shapes, rng, device)


@pytest.mark.parametrize("pyramid", PYRAMIDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_pyramid_in_every_dtype(pyramid: str, dtype: torch.dtype, rng: torch.Generator, device: str):
    shapes = PYRAMIDS[pyramid]
    inputs = random_inputs(rng, shapes, channels=8)
    inputs[1] = away_from_pixel_borders(inputs[1], shapes)
    check(inputs, shapes, rng, device, dtype)


@pytest.mark.parametrize(("batch", "queries"), [(0, 3), (2, 0), (1, 1), (2, 33), (17, 2)])
def test_any_number_of_images_and_queries(batch: int, queries: int, rng: torch.Generator, device: str):
    shapes = [(3, 4)]
    inputs = random_inputs(rng, shapes, batch=batch, queries=queries, heads=2, channels=4, points=2)
    inputs[1] = away_from_pixel_borders(inputs[1], shapes)
    check(inputs, shapes, rng, device)


def test_queries_that_are_the_pixels_themselves(rng: torch.Generator, device: str):
    # More rows than a GPU runs at once, so that queries are served in tiles; levels end within tiles.
    shapes = [(9, 17), (3, 2)]
    inputs = random_inputs(rng, shapes, batch=1, queries=159, heads=2, channels=4, points=1)
    inputs[1] = away_from_pixel_borders(inputs[1], shapes)
    check(inputs, shapes, rng, device)


@pytest.mark.parametrize("counts", [(3, 6, 3), (1, 2, 4), (2, 2, 2), (16, 1, 1)], ids=str)
@pytest.mark.parametrize("as_tensor", [False, True])
@pytest.mark.parametrize("deterministic", [False, True])
def test_levels_may_differ_in_their_points(
    counts: tuple[int, ...], as_tensor: bool, deterministic: bool, rng: torch.Generator, device: str
):
    shapes = [(5, 4), (3, 3), (1, 2)]
    value, locations, weights = random_inputs(rng, shapes, channels=4, points=max(counts))
    locations = away_from_pixel_borders(locations, shapes)
    used = torch.zeros(3, max(counts), dtype=torch.bool)
    for level, count in enumerate(counts):
        used[level, :count] = True
    grad = torch.randn(2, 7, 12, generator=rng, dtype=torch.float64)
    locations = locations.float().double()
    expected = gradients(
        lambda v, x, w: ms_deform_attn(v, shapes, x, w * used, "reference"), [value, locations, weights], grad
    )
    low = [value, locations[:, :, :, used], weights[:, :, :, used]]
    given = torch.tensor(shapes, device=device) if as_tensor else shapes
    actual = gradients(
        lambda v, x, w: ms_deform_attn(v, given, x, w, points_per_level=counts, deterministic=deterministic),
        [tensor.to(device, torch.float32) for tensor in low],
        grad.to(device),
    )
    wanted = [expected[0], expected[1], expected[2][:, :, :, used], expected[3][:, :, :, used]]
    for got, want in zip(actual, wanted, strict=True):
        assert_close(got, want, TOLERANCE[torch.float32])


@pytest.mark.parametrize("size", [1, 2, 8])
def test_positions_at_pixels_and_borders_have_the_derivative_from_the_right(
    size: int, rng: torch.Generator, device: str
):
    # Powers of two, so that positions are exact: every half pixel from one pixel outside to one on the other side.
    steps = torch.arange(2 * size + 5, dtype=torch.float64) / 2 - 1.5
    axis = (steps + 0.5) / size
    locations = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), dim=-1).view(1, -1, 1, 1, 1, 2)
    value = torch.randn(1, size * size, 1, 4, generator=rng, dtype=torch.float64)
    weights = torch.randn(locations.shape[:-1], generator=rng, dtype=torch.float64)
    check([value, locations, weights], [(size, size)], rng, device)


@pytest.mark.parametrize("where", [torch.nan, torch.inf, -torch.inf, 3e38, -1e9])
def test_samples_at_infinity_or_nan_count_as_zero(where: float, rng: torch.Generator, device: str):
    shapes = PYRAMIDS["four_levels"]
    value, locations, weights = (tensor.float() for tensor in random_inputs(rng, shapes, channels=8))
    kept = weights.clone()
    locations[:, 2:, :, :, 1:, 0] = where
    kept[:, 2:, :, :, 1:] = 0
    grad = torch.randn(2, 7, 24, generator=rng)
    expected = gradients(
        lambda v, x, w: ms_deform_attn(v.double(), shapes, x.double(), w.double(), "reference"),
        [value, locations.nan_to_num(0, 0, 0), kept],
        grad,
    )
    inputs = [tensor.to(device) for tensor in (value, locations, weights)]
    actual = gradients(lambda v, x, w: ms_deform_attn(v, shapes, x, w), inputs, grad.to(device))
    assert_close(actual[0], expected[0], TOLERANCE[torch.float32])
    assert_close(actual[1], expected[1], TOLERANCE[torch.float32])
    assert not actual[2][:, 2:, :, :, 1:].any()
    assert not actual[3][:, 2:, :, :, 1:].any()


@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
def test_pixels_that_are_not_sampled_may_hold_anything(poison: float, rng: torch.Generator, device: str):
    # All samples lie in one cell or at the rim of it, many outside of the image; the other pixels are poisoned.
    shapes = [(4, 4), (2, 2)]
    value, locations, weights = random_inputs(rng, shapes, queries=40, channels=8)
    locations[:, :, :, 0] = torch.where(locations[:, :, :, 0] > 0.5, 7.0, locations[:, :, :, 0].clamp(max=0.37))
    locations[:, :, :, 1] = -1e3
    poisoned = value.clone()
    poisoned.view(2, -1, 24)[:, [2, 3, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19]] = poison
    grad = torch.randn(2, 40, 24, generator=rng, dtype=torch.float64)
    locations = locations.float().double()
    expected = gradients(
        lambda v, x, w: ms_deform_attn(v, shapes, x, w, "reference"), [value, locations, weights], grad
    )
    inputs = [tensor.to(device, torch.float32) for tensor in (poisoned, locations, weights)]
    actual = gradients(lambda v, x, w: ms_deform_attn(v, shapes, x, w), inputs, grad.to(device))
    for got, wanted in zip(actual, expected, strict=True):
        assert_close(got, wanted, TOLERANCE[torch.float32])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strided_and_unaligned_inputs_and_expanded_gradients(dtype: torch.dtype, rng: torch.Generator, device: str):
    shapes = PYRAMIDS["one_level"]
    value, locations, weights = random_inputs(rng, shapes, channels=8)
    inputs = [value.to(device, dtype), locations.to(device, torch.float32), weights.to(device, dtype)]
    expected = gradients(lambda v, x, w: ms_deform_attn(v, shapes, x, w), inputs, torch.ones(2, 7, 24, device=device))

    def crooked(tensor: Tensor) -> Tensor:
        storage = torch.empty(2 * tensor.numel() + 1, dtype=tensor.dtype, device=tensor.device)
        return storage[1::2].view(tensor.shape).copy_(tensor).requires_grad_()

    leaves = [crooked(tensor) for tensor in inputs]
    out = ms_deform_attn(leaves[0], shapes, leaves[1], leaves[2])
    grads = torch.autograd.grad(out, leaves, torch.ones((), device=device, dtype=dtype).expand(2, 7, 24))
    for got, wanted in zip((out, *grads), expected, strict=True):
        # Gradients of the value are sums, whose order is undefined on a GPU.
        torch.testing.assert_close(got, wanted, rtol=1e-2, atol=1e-5 if dtype == torch.float32 else 1e-2)


@pytest.mark.parametrize("needed", [s for n in (1, 2) for s in itertools.combinations(range(3), n)], ids=str)
def test_only_what_needs_gradients_gets_them(needed: tuple[int, ...], rng: torch.Generator, device: str):
    shapes = PYRAMIDS["one_level"]
    inputs = [tensor.to(device, torch.float32) for tensor in random_inputs(rng, shapes, channels=8)]
    grad = torch.randn(2, 7, 24, generator=rng).to(device)
    expected = gradients(lambda v, x, w: ms_deform_attn(v, shapes, x, w), inputs, grad)[1:]
    leaves = [tensor.clone().requires_grad_(index in needed) for index, tensor in enumerate(inputs)]
    ms_deform_attn(leaves[0], shapes, leaves[1], leaves[2]).backward(grad)
    for index, (leaf, wanted) in enumerate(zip(leaves, expected, strict=True)):
        if index in needed:
            torch.testing.assert_close(leaf.grad, wanted, rtol=1e-4, atol=1e-5)
        else:
            assert leaf.grad is None


def test_backward_by_itself_gives_the_same_gradients(rng: torch.Generator, device: str):
    shapes = PYRAMIDS["one_level"]
    inputs = [tensor.to(device, torch.float32) for tensor in random_inputs(rng, shapes, channels=8)]
    grad = torch.randn(2, 7, 24, generator=rng).to(device)
    expected = gradients(lambda v, x, w: ms_deform_attn(v, shapes, x, w), inputs, grad)[1:]
    actual = ms_deform_attn_backward(grad, inputs[0], shapes, inputs[1], inputs[2])
    for got, wanted in zip(actual, expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"grad_output \(2, 7, 23\) must be \(2, 7, 24\)"):
        ms_deform_attn_backward(grad[..., 1:], inputs[0], shapes, inputs[1], inputs[2])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("by_flag", [False, True])
def test_deterministic_gradients_are_right_and_bit_identical(
    dtype: torch.dtype, by_flag: bool, rng: torch.Generator, device: str
):
    shapes = PYRAMIDS["pixel_row_column"]
    # Many samples per pixel, so that another order would show.
    inputs = random_inputs(rng, shapes, queries=40, channels=8)
    inputs[1] = away_from_pixel_borders(inputs[1], shapes)
    seed = rng.get_state()
    results = []
    torch.use_deterministic_algorithms(by_flag)
    try:
        for _ in range(2):
            rng.set_state(seed)
            options = {} if by_flag else {"deterministic": True}
            results.append(check(inputs, shapes, rng, device, dtype, **options))
    finally:
        torch.use_deterministic_algorithms(mode=False)
    for first, second in zip(*results, strict=True):
        assert torch.equal(first, second)


def test_sums_of_many_contributions_are_formed_in_float32(rng: torch.Generator, device: str):
    # All samples at one pixel: in bfloat16 a sum of 600 ones stops at 256.
    queries = 600
    value = torch.ones(1, 1, 1, 8, dtype=torch.bfloat16, device=device, requires_grad=True)
    locations = torch.full((1, queries, 1, 1, 1, 2), 0.5, device=device)
    weights = torch.ones(1, queries, 1, 1, 1, dtype=torch.bfloat16, device=device)
    ms_deform_attn(value, [(1, 1)], locations, weights).sum().backward()
    assert (value.grad - queries).abs().max() <= 2


def test_values_near_the_end_of_float16_do_not_overflow_on_the_way(device: str):
    value = torch.full((1, 4, 1, 8), 6e4, dtype=torch.float16, device=device)
    locations = torch.full((1, 1, 1, 1, 4, 2), 0.5, device=device)
    weights = torch.tensor([1, 1, 1, -2.2], device=device).half().view(1, 1, 1, 1, 4)
    out = ms_deform_attn(value, [(2, 2)], locations, weights)
    torch.testing.assert_close(out.float(), torch.full_like(out, 4.8e4).float(), rtol=2e-3, atol=0)


@pytest.mark.parametrize("locations_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("weights_dtype", DTYPES, ids=str)
def test_dtypes_may_be_mixed(
    locations_dtype: torch.dtype, weights_dtype: torch.dtype, rng: torch.Generator, device: str
):
    shapes = PYRAMIDS["one_level"]
    value, locations, weights = random_inputs(rng, shapes, channels=8)
    # Halves of a pixel of this level's 5 rows and 7 columns lie away from borders in any dtype.
    locations = away_from_pixel_borders(locations, shapes).to(locations_dtype)
    inputs = [value.to(device, torch.bfloat16), locations.to(device), weights.to(device, weights_dtype)]
    grad = torch.randn(2, 7, 24, generator=rng).bfloat16()
    expected = gradients(
        lambda v, x, w: ms_deform_attn(v, shapes, x, w, "reference"), [t.cpu().double() for t in inputs], grad
    )
    actual = gradients(lambda v, x, w: ms_deform_attn(v, shapes, x, w), inputs, grad)
    for got, wanted, like in zip(actual, expected, (inputs[0], *inputs), strict=True):
        assert got.dtype == like.dtype
        assert_close(got, wanted, TOLERANCE[like.dtype])


def test_second_derivatives_are_those_of_the_reference(rng: torch.Generator, device: str):
    shapes = PYRAMIDS["one_level"]
    inputs = random_inputs(rng, shapes, channels=4)
    inputs[1] = away_from_pixel_borders(inputs[1], shapes)
    grad = torch.randn(2, 7, 12, generator=rng)

    def penalty(backend: str, tensors: list[Tensor]) -> list[Tensor]:
        leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors]
        out = ms_deform_attn(leaves[0], shapes, leaves[1], leaves[2], backend)
        first = torch.autograd.grad(out, leaves, grad.to(out), create_graph=True)
        return torch.autograd.grad(sum(by.pow(2).sum() for by in first), leaves)

    expected = penalty("reference", inputs)
    for got, wanted in zip(penalty("auto", [t.to(device, torch.float32) for t in inputs]), expected, strict=True):
        assert_close(got, wanted, 2e-5)


@pytest.mark.parametrize("in_dims", [(None, 0, 0), (1, 2, None)], ids=str)
def test_vmap_maps_over_any_of_the_inputs(in_dims: tuple, rng: torch.Generator, device: str):
    shapes = PYRAMIDS["one_level"]
    several = [random_inputs(rng, shapes, queries=3, heads=2, channels=4) for _ in range(2)]
    inputs = [
        (several[0][i] if axis is None else torch.stack([tensors[i] for tensors in several], dim=axis)).to(
            device, torch.float32
        )
        for i, axis in enumerate(in_dims)
    ]

    def attend(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        return ms_deform_attn(value, shapes, locations, weights)

    def slope(value: Tensor, locations: Tensor, weights: Tensor) -> tuple[Tensor, ...]:
        return torch.func.grad(lambda *leaves: attend(*leaves).square().sum(), argnums=(0, 1, 2))(
            value, locations, weights
        )

    for function in (attend, slope):
        mapped = torch.func.vmap(function, in_dims=in_dims)(*inputs)
        for index in range(2):
            own = [t if axis is None else t.select(axis, index) for t, axis in zip(inputs, in_dims, strict=True)]
            expected = function(*own)
            got = mapped[index] if isinstance(mapped, Tensor) else tuple(by[index] for by in mapped)
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


class TestFused:
    """The fused form against its parts in float64."""

    SHAPES = ((6, 7), (3, 4), (1, 2))

    def inputs(
        self, rng: torch.Generator, *, coordinates: int = 2, batch: int = 2, images: int = 2, levels: int = 3
    ) -> list[Tensor]:
        pixels = sum(h * w for h, w in self.SHAPES)
        value = torch.randn(batch, pixels, 2, 8, generator=rng, dtype=torch.float64)
        references = torch.rand(images, 9, levels, coordinates, generator=rng, dtype=torch.float64)
        offsets = torch.randn(batch, 9, 2, 3, 4, 2, generator=rng, dtype=torch.float64) * 2
        logits = torch.randn(batch, 9, 2, 3, 4, generator=rng, dtype=torch.float64) * 3
        return [value, references, offsets, logits]

    @pytest.mark.parametrize(
        ("dtype", "deterministic"), [*((dtype, False) for dtype in DTYPES), (torch.float32, True)], ids=str
    )
    @pytest.mark.parametrize("coordinates", [2, 4])
    @pytest.mark.parametrize(("padded", "images", "levels"), [(False, 2, 3), (True, 1, 1), (True, 2, 1), (False, 1, 3)])
    def test_output_and_gradients_equal_those_of_the_parts(
        self,
        dtype: torch.dtype,
        coordinates: int,
        padded: bool,
        images: int,
        levels: int,
        deterministic: bool,
        rng: torch.Generator,
        device: str,
    ):
        inputs = self.inputs(rng, coordinates=coordinates, images=images, levels=levels)
        kinds = (dtype, torch.float32, dtype, dtype)
        low = [tensor.to(kind) for tensor, kind in zip(inputs, kinds, strict=True)]
        mask = torch.rand(inputs[0].shape[:2], generator=rng) < 0.3 if padded else None
        grad = torch.randn(2, 9, 16, generator=rng).to(dtype)

        def parts(value: Tensor, references: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
            if mask is not None:
                value = value * ~mask[..., None, None]
            weights = logits.flatten(3).softmax(-1).view_as(logits)
            shapes = list(self.SHAPES)
            return ms_deform_attn(value, shapes, sampling_locations(references, offsets, shapes), weights, "reference")

        def fused(*tensors: Tensor) -> Tensor:
            where = None if mask is None else mask.to(device)
            return fused_ms_deform_attn(tensors[0], list(self.SHAPES), *tensors[1:], where, deterministic=deterministic)

        expected = gradients(parts, [tensor.double() for tensor in low], grad)
        actual = gradients(fused, [tensor.to(device) for tensor in low], grad)
        for got, wanted, kind in zip(actual, expected, (dtype, *kinds), strict=True):
            assert got.dtype == kind
            # Gradients of the reference points are sums of those of the offsets in the value's precision.
            tolerance = TOLERANCE[kind] if kind != torch.float32 else max(2e-5, TOLERANCE[dtype] / 4)
            assert_close(got, wanted, tolerance)

    @pytest.mark.parametrize("needed", [(0,), (1,), (2,), (3,), (0, 3), (1, 2)], ids=str)
    def test_only_what_needs_gradients_gets_them(self, needed: tuple[int, ...], rng: torch.Generator, device: str):
        inputs = [tensor.to(device, torch.float32) for tensor in self.inputs(rng, coordinates=4)]
        grad = torch.randn(2, 9, 16, generator=rng).to(device)
        expected = gradients(lambda v, *rest: fused_ms_deform_attn(v, list(self.SHAPES), *rest), inputs, grad)[1:]
        leaves = [tensor.clone().requires_grad_(index in needed) for index, tensor in enumerate(inputs)]
        fused_ms_deform_attn(leaves[0], list(self.SHAPES), *leaves[1:]).backward(grad)
        for index, (leaf, wanted) in enumerate(zip(leaves, expected, strict=True)):
            if index in needed:
                torch.testing.assert_close(leaf.grad, wanted, rtol=1e-4, atol=1e-5)
            else:
                assert leaf.grad is None

    def test_shapes_in_a_tensor_give_the_same(self, rng: torch.Generator, device: str):
        value, *rest = (tensor.to(device, torch.float32) for tensor in self.inputs(rng))
        expected = fused_ms_deform_attn(value, list(self.SHAPES), *rest)
        for kind in (torch.int64, torch.int32):
            shapes = torch.tensor(self.SHAPES, dtype=kind, device=device)
            torch.testing.assert_close(fused_ms_deform_attn(value, shapes, *rest), expected)

    def test_second_derivatives_are_those_of_the_reference(self, rng: torch.Generator, device: str):
        inputs = self.inputs(rng, coordinates=4)
        grad = torch.randn(2, 9, 16, generator=rng)

        def penalty(backend: str, tensors: list[Tensor]) -> list[Tensor]:
            leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors]
            out = fused_ms_deform_attn(leaves[0], list(self.SHAPES), *leaves[1:], backend=backend)
            first = torch.autograd.grad(out, leaves, grad.to(out), create_graph=True)
            return torch.autograd.grad(sum(by.pow(2).sum() for by in first), leaves)

        expected = penalty("reference", inputs)
        for got, wanted in zip(penalty("auto", [t.to(device, torch.float32) for t in inputs]), expected, strict=True):
            assert_close(got, wanted, 1e-4)

    def test_vmap_maps_over_it(self, rng: torch.Generator, device: str):
        several = [[t.to(device, torch.float32) for t in self.inputs(rng)] for _ in range(2)]

        def attend(value: Tensor, *rest: Tensor) -> Tensor:
            return fused_ms_deform_attn(value, list(self.SHAPES), *rest)

        mapped = torch.func.vmap(attend)(*(torch.stack(tensors) for tensors in zip(*several, strict=True)))
        for got, inputs in zip(mapped, several, strict=True):
            torch.testing.assert_close(got, attend(*inputs), rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({"reference_points": torch.zeros(2, 9, 3, 3)}, ValueError, r"\(cx, cy, w, h\), got \(2, 9, 3, 3\)"),
            (
                {"reference_points": torch.zeros(2, 8, 3, 2)},
                ValueError,
                r"\(2, 8, 3, 2\) must be for 2 images.* 9 quer",
            ),
            ({"reference_points": torch.zeros(2, 9, 2, 2)}, ValueError, r"and 3 levels \(or one"),
            ({"reference_points": torch.zeros(2, 9, 3, 2).long()}, TypeError, r"reference_points .* torch.int64"),
            ({"attention_logits": torch.zeros(2, 9, 2, 3, 5)}, ValueError, r"attention_logits \(2, 9, 2, 3, 5\)"),
            ({"padding_mask": torch.zeros(2, 56)}, TypeError, r"bool, True at padded pixels, got torch.float32"),
            ({"padding_mask": torch.zeros(2, 55).bool()}, ValueError, r"\(2, 55\) must be \(2, 56\)"),
            ({"backend": "cuda"}, ValueError, r"'cuda'"),
        ],
        ids=lambda value: None,
    )
    def test_wrong_arguments_are_refused_with_their_values(self, change, error, message, rng: torch.Generator):
        import inspect

        names = ("value", "reference_points", "sampling_offsets", "attention_logits")
        arguments = dict(zip(names, self.inputs(rng), strict=True)) | {"spatial_shapes": list(self.SHAPES)}
        with pytest.raises(error, match=message):
            inspect.unwrap(fused_ms_deform_attn)(**arguments | change)
