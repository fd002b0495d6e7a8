"""One problem, computed by the reference and by an implementation in one of the modes."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from deformdetr.kernels import ms_deform_attn
from deformdetr.testing._cases import Mode
from deformdetr.testing._conventions import Adapter
from deformdetr.testing._inputs import Problem
from deformdetr.testing._tolerances import relative_error, tolerance

DIRECTIONS = ("output", "grad_value", "grad_locations", "grad_weights")


class Outcome(NamedTuple):
    """Error of one direction of a problem, why there is none, or what else is wrong."""

    error: float
    tolerance: float
    refusal: str = ""
    fault: str = ""


class _Refused(NamedTuple):
    """An exception in place of a tensor."""

    reason: str


def run(adapter: Adapter, problem: Problem, mode: Mode, device: torch.device) -> dict[str, Outcome]:
    """Return the outcome of every direction that the problem asks for."""
    given: tuple[Any, ...] = (adapter, problem, device)
    repeated: list[Tensor | _Refused | None] | None = None
    if mode == "deterministic":
        with _deterministic_algorithms():
            actual, repeated = _compute(*given), _compute(*given)
    else:
        actual = {"compile": _compile, "export": _export, "autocast": _autocast}.get(mode, _compute)(*given)
    exact, scales = compute_exactly(problem), _least_scales(problem)
    dtypes = (problem.dtypes[0], *problem.dtypes)
    outcomes = {}
    for index, name in enumerate(DIRECTIONS):
        if index and not problem.needs[index - 1]:
            continue
        got, dtype = actual[index], dtypes[index]
        allowed = tolerance(dtype, problem.dtypes[0])
        if mode == "autocast":
            allowed = max(allowed, tolerance(_autocast_dtype(problem)))
        outcome = _compare(got, exact[index], dtype if mode != "autocast" else None, allowed, scales[index])
        if repeated is not None and not outcome.refusal and not _are_identical(got, repeated[index]):
            outcome = outcome._replace(fault="two calls differ")
        outcomes[name] = outcome
    return outcomes


def _least_scales(problem: Problem) -> list[float]:
    """Return what errors are relative to where the terms of a sum cancel: a tenth of the size of one term."""
    value, _, weights = problem.exact_inputs
    v, w, g = (each.nan_to_num(0).square().mean().sqrt().item() for each in (value, weights, problem.grad_output))
    side = max((size for shape in problem.spatial_shapes for size in shape), default=1)
    return [max(0.1 * size, 1e-30) if size == size else 1e-30 for size in (v * w, g * w, g * v * w * side, g * v)]


def compute_exactly(problem: Problem) -> list[Tensor]:
    """Return output and gradients of a problem by the reference, in float64.

    Examples:
        >>> from deformdetr.testing import random_problem
        >>> [tensor.dtype for tensor in compute_exactly(random_problem(1))]
        [torch.float64, torch.float64, torch.float64, torch.float64]
    """
    leaves = [tensor.detach().clone().requires_grad_() for tensor in problem.exact_inputs]
    value, locations, weights = leaves
    points = problem.points_per_level
    out = ms_deform_attn(value, problem.spatial_shapes, locations, weights, "reference", points_per_level=points)
    grads = torch.autograd.grad(out, leaves, problem.grad_output)
    return [out.detach(), *grads]


def _compare(
    got: Tensor | _Refused | None, wanted: Tensor, dtype: torch.dtype | None, allowed: float, scale: float
) -> Outcome:
    """Compare a result with the exact one, and its dtype with the expected one if given."""
    if got is None:
        return Outcome(torch.inf, allowed, fault="there is no gradient")
    if isinstance(got, _Refused):
        return Outcome(torch.inf, allowed, refusal=got.reason)
    if got.shape != wanted.shape:
        return Outcome(torch.inf, allowed, fault=f"the shape is {tuple(got.shape)}, not {tuple(wanted.shape)}")
    wrong = "" if dtype in (None, got.dtype) else f"the dtype is {got.dtype}, not {dtype}"
    return Outcome(relative_error(got, wanted, least_scale=scale), allowed, fault=wrong)


def _compute(
    adapter: Adapter, problem: Problem, device: torch.device, function: Callable[..., Any] | None = None
) -> list[Tensor | _Refused | None]:
    """Return output and gradients by a function, which is the adapter's own unless given."""
    leaves = problem.inputs(device)
    out = _call(lambda: _forward(adapter, problem, leaves, function or adapter.function))
    return [out, *_differentiate(out, leaves, problem)]


def _forward(adapter: Adapter, problem: Problem, tensors: Sequence[Tensor], function: Callable[..., Any]) -> Tensor:
    points = problem.points_per_level
    named = {} if points is None else {"points_per_level": points}
    out = function(*adapter.arguments(tensors, problem.spatial_shapes), **named)
    if not isinstance(out, Tensor):
        raise TypeError(f"the result is no tensor, but {type(out).__name__}")
    return out


def _differentiate(
    out: Tensor | _Refused, leaves: Sequence[Tensor], problem: Problem
) -> list[Tensor | _Refused | None]:
    """Return the gradients of all leaves; None for those that are not needed or that have none."""
    if isinstance(out, _Refused):
        return [out] * 3
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    if not wanted or out.shape != problem.grad_output.shape:
        return [None] * 3
    grad_output = _gradient(problem, out)
    grads = _call(lambda: torch.autograd.grad(out, wanted, grad_output, allow_unused=True))
    if isinstance(grads, _Refused):
        return [grads] * 3
    found = iter(grads)
    return [next(found) if leaf.requires_grad else None for leaf in leaves]


def _gradient(problem: Problem, out: Tensor) -> Tensor:
    """Return the gradient of the output on its device; one that repeats a number still does."""
    grad = problem.grad_output
    if grad.numel() and not any(grad.stride()):
        return grad.flatten()[0].to(out).expand_as(out)
    return grad.to(out)


def _call(function: Callable[[], Any]) -> Any:
    """Return the result of a call, or the exception that it raised, which the report shows."""
    try:
        return function()
    # Implementations of others may raise anything, and the report says what.
    except Exception as error:  # noqa: BLE001
        lines = str(error).strip().splitlines() or [""]
        return _Refused(f"{type(error).__name__}: {lines[0][:200]}")


def _compile(adapter: Adapter, problem: Problem, device: torch.device) -> list[Tensor | _Refused | None]:
    torch.compiler.reset()

    def call(*arguments: Any) -> Any:
        return adapter.function(*arguments)

    # Tracing is what depends on the implementation; the code that a compiler makes of its graph is not tested.
    return _compute(adapter, problem, device, torch.compile(call, fullgraph=True, backend="aot_eager"))


class _Calling(nn.Module):
    """A module that `torch.export` takes."""

    def __init__(self, adapter: Adapter, problem: Problem) -> None:
        super().__init__()
        self.adapter, self.problem = adapter, problem

    def forward(self, value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        return _forward(self.adapter, self.problem, (value, locations, weights), self.adapter.function)


def _export(adapter: Adapter, problem: Problem, device: torch.device) -> list[Tensor | _Refused | None]:
    inputs = tuple(problem.inputs(device))
    program = _call(lambda: torch.export.export(_Calling(adapter, problem), inputs))
    out = program if isinstance(program, _Refused) else _call(lambda: program.module()(*inputs))
    return [out, None, None, None]


def _autocast(adapter: Adapter, problem: Problem, device: torch.device) -> list[Tensor | _Refused | None]:
    leaves = problem.inputs(device)
    with torch.autocast(device.type, _autocast_dtype(problem)):
        out = _call(lambda: _forward(adapter, problem, leaves, adapter.function))
    return [out, *_differentiate(out, leaves, problem)]


def _autocast_dtype(problem: Problem) -> torch.dtype:
    return torch.float16 if problem.dtypes[0] == torch.float16 else torch.bfloat16


def _are_identical(one: Tensor | _Refused | None, other: Tensor | _Refused | None) -> bool:
    """Return whether two results are the same bit by bit, NaN included."""
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return one is other is None
    return torch.equal(one.nan_to_num(nan=3), other.nan_to_num(nan=3)) and torch.equal(one.isnan(), other.isnan())


@contextmanager
def _deterministic_algorithms() -> Iterator[None]:
    """Use deterministic algorithms, with which PyTorch fills new memory with NaN."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(mode=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
