"""The operator: each provider on the same inputs, and the overhead of small calls."""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial

import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.cases import Direction, Dtype, Levels, OperatorSizes
from benchmarks.problem import TOLERANCES, Contender, Outputs, Problem, UnavailableError
from benchmarks.providers import BASELINE, OFFSETS, PROVIDERS, Function, Provider
from deformdetr.kernels import ms_deform_attn
from deformdetr.nn import MSDeformAttn

_OFFSET_NOISE = 2.0
_NEAR_PIXEL_CENTER = 1e-3
# Of a gradient that is summed in half precision, which is rounded after each of thousands of additions.
_HALF_SUMS_TOLERANCE = 0.2
# The implementations that are called from Python as users would: with compilers, the overhead is another one.
_OVERHEAD_OF = ("ours", "ours_fused", "grid_sample", "deformops", "torch_ms_deform_attn")


def draw(sizes: OperatorSizes, dtype: torch.dtype, device: str, seed: int) -> dict[str, Tensor]:
    """Draw inputs like those of a layer in training, for implementations of all forms.

    Reference points are the pixels' centers in encoders and uniform in decoders. Head `m` of `M` looks in the direction
    `2 pi m / M`: its point `p` lies `p + 1` pixels away, plus normal noise with a deviation of two pixels. No location
    is close to a pixel's center, where gradients of locations jump. Locations and reference points are (x, y) as
    fractions of a level, in float32; all other tensors have `dtype`.
    """
    rng = torch.Generator(device).manual_seed(seed)
    shape = (sizes.batch, sizes.n_queries, sizes.heads, len(sizes.levels), sizes.points)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=rng, device=device)

    if sizes.queries is None:
        axes = [[(torch.arange(size, device=device) + 0.5) / size for size in level] for level in sizes.levels]
        centers = torch.cat([torch.cartesian_prod(y, x).flip(-1) for y, x in axes])
        reference = centers.expand(sizes.batch, -1, -1)
    else:
        reference = torch.rand(sizes.batch, sizes.queries, 2, generator=rng, device=device)
    reference = reference.unsqueeze(2).expand(-1, -1, len(sizes.levels), -1).contiguous()
    angle = torch.arange(sizes.heads, device=device) * (2 * math.pi / sizes.heads)
    direction = torch.stack([angle.cos(), angle.sin()], dim=-1)[:, None, None]
    distance = torch.arange(1, sizes.points + 1, device=device)[:, None]
    offsets = (direction * distance + _OFFSET_NOISE * normal(*shape, 2)).to(dtype)
    position = _locate(reference, offsets.float(), sizes.levels) * _level_sizes(sizes.levels, reference) - 0.5
    # A quarter is a multiple of the spacing of bfloat16 numbers up to 64.
    offsets = torch.where((position - position.round()).abs() < _NEAR_PIXEL_CENTER, offsets + 0.25, offsets)
    logits = normal(*shape).to(dtype)
    return {
        "value": normal(sizes.batch, sizes.pixels, sizes.heads, sizes.channels).to(dtype),
        "reference_points": reference,
        "sampling_offsets": offsets,
        "attention_logits": logits,
        "sampling_locations": _locate(reference, offsets.float(), sizes.levels),
        "attention_weights": _weigh(logits.float()).to(dtype),
    }


def track(tensors: Mapping[str, Tensor], form: Sequence[str]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the tensors, those of the form as leaves that require gradients, and these leaves alone."""
    leaves = {name: tensors[name].detach().requires_grad_() for name in form}
    return {**tensors, **leaves}, leaves


def prepare_operator(
    sizes: OperatorSizes,
    dtype: Dtype,
    direction: Direction,
    device: str,
    seed: int,
    providers: Mapping[str, Provider] = PROVIDERS,
) -> Problem:
    """Draw inputs; the expected results are computed when the first contender needs them."""
    # Compilers limit the number of variants of a function that they keep, those of earlier cases included.
    torch.compiler.reset()
    tensors = draw(sizes, getattr(torch, dtype), device, seed)
    grad_output = _draw_gradient(sizes, device, seed).to(tensors["value"].dtype)

    rounded = tensors | {"sampling_locations": tensors["sampling_locations"].to(grad_output.dtype)}

    @cache
    def expected(form: tuple[str, ...], *, mixes_dtypes: bool) -> Outputs:
        given = tensors if mixes_dtypes else rounded
        double, leaves = track({name: tensor.double() for name, tensor in given.items()}, form)
        return _results(partial(_reference, double, sizes.levels, form), leaves, direction, grad_output)

    def build(provider: Provider) -> Contender:
        tracked, leaves = track(tensors if provider.mixes_dtypes else rounded, provider.form)
        call = partial(_load(provider, dtype, direction), tracked, sizes.levels)
        right = partial(expected, provider.form, mixes_dtypes=provider.mixes_dtypes)
        contender = _contend(call, leaves, direction, grad_output, right)
        if dtype == "float32" or direction == "forward" or not provider.half_sums:
            return contender
        return contender._replace(tolerance=_HALF_SUMS_TOLERANCE, note="sums the value's gradient in half precision")

    candidates = {name: partial(build, provider) for name, provider in providers.items()}
    return Problem(candidates, BASELINE, TOLERANCES[dtype], clock="device")


def prepare_overhead(sizes: OperatorSizes, direction: Direction, device: str, seed: int) -> Problem:
    """Draw inputs of the functions, and build a layer of the same sizes."""
    functions = {name: PROVIDERS[name] for name in _OVERHEAD_OF}
    problem = prepare_operator(sizes, "float32", direction, device, seed, functions)
    layer = partial(_build_layer, sizes, direction, device, seed)
    return problem._replace(candidates={**problem.candidates, "ours_layer": layer}, clock="wall")


def timed(
    function: Callable[[], Tensor], leaves: Sequence[Tensor], direction: Direction, grad_output: Tensor
) -> Callable[[], object]:
    """Return the call to time: a forward, a backward or both."""

    def forward() -> Tensor:
        with torch.no_grad():
            return function()

    def forward_backward() -> tuple[Tensor, ...]:
        return torch.autograd.grad(function(), leaves, grad_output)

    output = cache(function)

    def backward() -> tuple[Tensor, ...]:
        return torch.autograd.grad(output(), leaves, grad_output, retain_graph=True)

    return {"forward": forward, "backward": backward, "forward_backward": forward_backward}[direction]


def _contend(
    function: Callable[[], Tensor],
    leaves: Mapping[str, Tensor],
    direction: Direction,
    grad_output: Tensor,
    expected: Callable[[], Outputs],
) -> Contender:
    call = timed(function, list(leaves.values()), direction, grad_output)
    return Contender(call, partial(_results, function, leaves, direction, grad_output), expected)


def _load(provider: Provider, dtype: Dtype, direction: Direction) -> Function:
    if dtype not in provider.dtypes:
        raise UnavailableError(f"is not measured in {dtype}")
    if direction == "backward" and not provider.keeps_graph:
        raise UnavailableError("compiled for one backward per forward")
    try:
        return provider.load()
    except ImportError as error:
        raise UnavailableError(f"cannot be imported: {error}") from error


def _results(
    call: Callable[[], Tensor], leaves: Mapping[str, Tensor], direction: Direction, grad_output: Tensor
) -> Outputs:
    """Return the output and, unless only the forward is timed, the gradients of the leaves."""
    with torch.set_grad_enabled(direction != "forward"):
        output = call()
    if direction == "forward":
        return {"output": output}
    gradients = torch.autograd.grad(output, list(leaves.values()), grad_output.to(output.dtype))
    return {"output": output.detach(), **dict(zip(leaves, gradients, strict=True))}


def _reference(tensors: Mapping[str, Tensor], levels: Levels, form: tuple[str, ...]) -> Tensor:
    """Compute the operator from the tensors of a form."""
    locations, weights = tensors["sampling_locations"], tensors["attention_weights"]
    if form == OFFSETS:
        locations = _locate(tensors["reference_points"], tensors["sampling_offsets"], levels)
        weights = _weigh(tensors["attention_logits"])
    return ms_deform_attn(tensors["value"], levels, locations, weights, backend="reference")


def _locate(
    reference_points: Float[Tensor, "batch queries levels 2"],
    sampling_offsets: Float[Tensor, "batch queries heads levels points 2"],
    levels: Levels,
) -> Float[Tensor, "batch queries heads levels points 2"]:
    """Return the locations, as fractions of each level, of offsets in pixels."""
    return reference_points[:, :, None, :, None] + sampling_offsets / _level_sizes(levels, sampling_offsets)


def _weigh(logits: Float[Tensor, "*batch levels points"]) -> Float[Tensor, "*batch levels points"]:
    """Return the softmax over all levels and points."""
    return logits.flatten(-2).softmax(-1).view_as(logits)


def _level_sizes(levels: Levels, like: Tensor) -> Float[Tensor, "levels 1 2"]:
    return like.new_tensor([(width, height) for height, width in levels])[:, None]


def _draw_gradient(sizes: OperatorSizes, device: str, seed: int) -> Float[Tensor, "batch queries heads*channels"]:
    rng = torch.Generator(device).manual_seed(seed + 1)
    return torch.randn(sizes.batch, sizes.n_queries, sizes.heads * sizes.channels, generator=rng, device=device)


def _build_layer(sizes: OperatorSizes, direction: Direction, device: str, seed: int) -> Contender:
    """Build `MSDeformAttn`, and compare it with the same layer in float64."""
    d_model, n_levels = sizes.heads * sizes.channels, len(sizes.levels)
    grad_output = _draw_gradient(sizes, device, seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layer = MSDeformAttn(d_model, n_levels, sizes.heads, sizes.points).to(device)
        reference_points = torch.rand(sizes.batch, sizes.n_queries, n_levels, 2, device=device)
        query, features = (
            torch.randn(sizes.batch, rows, d_model, device=device) for rows in (sizes.n_queries, sizes.pixels)
        )

    def prepare(dtype: torch.dtype) -> tuple[Callable[[], Tensor], dict[str, Tensor]]:
        own = copy.deepcopy(layer).to(dtype)
        inputs = {"query": query, "features": features}
        leaves = {name: tensor.to(dtype, copy=True).requires_grad_() for name, tensor in inputs.items()}
        call = partial(own, leaves["query"], reference_points.to(dtype), leaves["features"], sizes.levels)
        return call, leaves | dict(own.named_parameters())

    contender = _contend(
        *prepare(torch.float32),
        direction,
        grad_output,
        expected=lambda: _results(*prepare(torch.float64), direction, grad_output),
    )
    return contender._replace(note="with its four projections")
