"""Tests of the kernels of every device against the reference in float64.

Run as they are, these tests see the CPU kernel, and what replaces it without Numba; with `TRITON_INTERPRET=1`, Triton's
in its interpreter; and with a GPU (`-m gpu`), the compiled ones.
"""

import functools
import os

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode

from deformdetr.kernels import fused_ms_deform_attn, ms_deform_attn, ms_deform_attn_backward, sampling_locations
from deformdetr.testing import (
    CASES,
    PYRAMIDS,
    TOLERANCES,
    away_from_pixel_borders,
    check_ms_deform_attn,
    output_and_gradients,
    random_inputs,
)
from sampling import WITH_INTS, assert_close

# The interpreter computes with NumPy, which warns of what is meant to overflow.
pytestmark = pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
# `test_compile.py` has those that compile. Without Numba, and in the interpreter, 65,537 images take minutes.
PLAIN = [name for name, case in CASES.items() if case.mode not in ("compile", "export") and name != "huge_batch"]
# Those in which kernels do something else in half precision; the interpreter runs the others in float32 alone, and
# `test_fuzz.py` makes random calls there.
IN_HALF = (
    "channels", "hot_pixel", "long_sums", "large_values", "precise_locations", "half_precision_locations",
    "mixed_dtypes",
)  # fmt: skip
CHECKS = [
    (case, dtype)
    for case in PLAIN
    for dtype in DTYPES
    if not IS_INTERPRETED or (case != "random_calls" and (dtype == torch.float32 or case in IN_HALF))
]

# How the fused form computes, and what it gets: whether there is padding, and whose the reference points are. The
# interpreter runs each of one with one of the other.
FORMS = [*((dtype, False) for dtype in DTYPES), (torch.float32, True)]
GIVEN = [(False, 2, 3), (True, 1, 1), (True, 2, 1), (False, 1, 3)]
FUSED = [
    (*form, *given) for form in FORMS for given in GIVEN if not IS_INTERPRETED or form == FORMS[0] or given == GIVEN[1]
]


@pytest.mark.parametrize(("case", "dtype"), CHECKS, ids=str)
def test_kernels_conform(case: str, dtype: torch.dtype, seed: int, device: str):
    report = check_ms_deform_attn(ms_deform_attn, device=device, dtypes=[dtype], cases=[case], seed=seed)
    assert report.rows
    report.raise_for_failures()


@pytest.mark.parametrize("case", ["pyramids", "points_per_level", "empty"])
def test_sizes_may_be_ints(case: str, seed: int, device: str):
    dtypes = DTYPES[:1] if IS_INTERPRETED else DTYPES
    check_ms_deform_attn(
        ms_deform_attn, device=device, dtypes=dtypes, cases=[case], convention=WITH_INTS, seed=seed
    ).raise_for_failures()


@pytest.mark.skipif(IS_INTERPRETED, reason="test_interpreter.py sums in order, with one and with several points")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_deterministic_gradients_are_right(dtype: torch.dtype, seed: int, device: str):
    attend = functools.partial(ms_deform_attn, deterministic=True)
    check_ms_deform_attn(
        attend, device=device, dtypes=[dtype], cases=["points_per_level"], seed=seed
    ).raise_for_failures()


@pytest.mark.skipif(IS_INTERPRETED, reason="the interpreter adds one number after another in any case")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_deterministic_gradients_are_bit_identical(dtype: torch.dtype, rng: torch.Generator, device: str):
    # Many samples per pixel, so that another order would show.
    shapes = PYRAMIDS["pixel_row_column"]
    inputs = [tensor.to(device, dtype) for tensor in random_inputs(rng, shapes, queries=40, channels=8)]
    grad = torch.randn(2, 40, 24, generator=rng).to(device)
    results = [
        output_and_gradients(lambda v, x, w: ms_deform_attn(v, shapes, x, w, deterministic=True), inputs, grad)
        for _ in range(2)
    ]
    for first, second in zip(*results, strict=True):
        assert torch.equal(first, second)


def test_backward_by_itself_gives_the_same_gradients(rng: torch.Generator, device: str):
    shapes = PYRAMIDS["one_level"]
    inputs = [tensor.to(device, torch.float32) for tensor in random_inputs(rng, shapes, channels=8)]
    grad = torch.randn(2, 7, 24, generator=rng).to(device)
    expected = output_and_gradients(lambda v, x, w: ms_deform_attn(v, shapes, x, w), inputs, grad)[1:]
    actual = ms_deform_attn_backward(grad, inputs[0], shapes, inputs[1], inputs[2])
    for got, wanted in zip(actual, expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"grad_output \(2, 7, 23\) must be \(2, 7, 24\)"):
        ms_deform_attn_backward(grad[..., 1:], inputs[0], shapes, inputs[1], inputs[2])


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


def _directional(attend, leaves: list[Tensor]) -> Tensor:
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(attend(*map(forward_ad.make_dual, leaves, leaves))).tangent


def _in_mode(attend, leaves: list[Tensor]) -> Tensor:
    # Modes see the op otherwise, and PyTorch's custom ops drop tangents without a word.
    with FlopCounterMode(display=False):
        return torch.func.jvp(attend, tuple(leaves), tuple(leaves))[1]


def _along_gradient(attend, leaves: list[Tensor]) -> Tensor:
    """Return the directional derivative of the gradient: forward mode over reverse mode."""
    grad = torch.func.grad(lambda *inputs: attend(*inputs).square().sum(), argnums=(0, 1, 2))
    return torch.cat([tangent.flatten() for tangent in torch.func.jvp(grad, tuple(leaves), tuple(leaves))[1]])


DERIVATIVES = {
    "dual numbers": _directional,
    "jvp": lambda attend, leaves: torch.func.jvp(attend, tuple(leaves), tuple(leaves))[1],
    "linearize": lambda attend, leaves: torch.func.linearize(attend, *leaves)[1](*leaves),
    "jvp in a dispatch mode": _in_mode,
    "jacfwd": lambda attend, leaves: torch.func.jacfwd(attend, argnums=1)(*leaves),
    "jvp of grad": _along_gradient,
    "jacrev of grad": lambda attend, leaves: torch.func.jacrev(
        torch.func.grad(lambda *inputs: attend(*inputs).square().sum(), argnums=2)
    )(*leaves),
}


# PyTorch itself compiles formulas of forward mode by `torch.jit.script`, and its `linearize` warns of its own graph.
@pytest.mark.filterwarnings("ignore:.torch.jit.script:FutureWarning", "ignore:.torch.jit.script:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node:UserWarning")
@pytest.mark.parametrize("fused", [False, True], ids=["sampled", "fused"])
@pytest.mark.parametrize("name", DERIVATIVES)
def test_forward_mode_and_second_transforms_give_the_derivatives_of_the_reference(
    name: str, fused: bool, rng: torch.Generator, device: str
):
    shapes = PYRAMIDS["one_level"]
    inputs = [
        each.detach().to(device, torch.float32) for each in random_inputs(rng, shapes, queries=2, heads=2, channels=3)
    ]
    references = torch.rand(1, 2, 1, 2, generator=rng).to(device)

    def attend(backend: str, *leaves: Tensor) -> Tensor:
        if not fused:
            return ms_deform_attn(leaves[0], shapes, *leaves[1:], backend)
        return fused_ms_deform_attn(leaves[0], shapes, references, *leaves[1:], backend=backend)

    expected, got = (DERIVATIVES[name](functools.partial(attend, each), inputs) for each in ("reference", "auto"))
    torch.testing.assert_close(got, expected)


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

    @pytest.mark.parametrize(("dtype", "deterministic", "padded", "images", "levels"), FUSED, ids=str)
    @pytest.mark.parametrize("coordinates", [2, 4])
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

        expected = output_and_gradients(parts, [tensor.double() for tensor in low], grad)
        actual = output_and_gradients(fused, [tensor.to(device) for tensor in low], grad)
        for got, wanted, kind in zip(actual, expected, (dtype, *kinds), strict=True):
            assert got.dtype == kind
            # Gradients of the reference points are sums of those of the offsets in the value's precision.
            tolerance = TOLERANCES[kind] if kind != torch.float32 else max(2e-5, TOLERANCES[dtype] / 4)
            assert_close(got, wanted, tolerance)

    @pytest.mark.parametrize("needed", [(0,), (1,), (2,), (3,), (0, 3), (1, 2)], ids=str)
    def test_only_what_needs_gradients_gets_them(self, needed: tuple[int, ...], rng: torch.Generator, device: str):
        inputs = [tensor.to(device, torch.float32) for tensor in self.inputs(rng, coordinates=4)]
        grad = torch.randn(2, 9, 16, generator=rng).to(device)
        expected = output_and_gradients(
            lambda v, *rest: fused_ms_deform_attn(v, list(self.SHAPES), *rest), inputs, grad
        )[1:]
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
