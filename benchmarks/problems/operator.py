"""The operator: each provider on the same inputs."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial

import torch
from torch import Tensor

from benchmarks.cases import Direction, Dtype, OperatorCase
from benchmarks.problems.operator_inputs import Form, Inputs, comparable, draw_inputs, expected, with_gradients
from benchmarks.problems.operator_providers import BASELINE, PROVIDERS, Function, Provider
from benchmarks.problems.problem import TOLERANCES, Contender, Outputs, Problem, UnavailableError


def prepare_operator(
    case: OperatorCase,
    dtype: Dtype,
    direction: Direction,
    device: str,
    seed: int,
    providers: Sequence[Provider] = PROVIDERS,
) -> Problem:
    """Draw inputs; the expected results are computed when the first contender needs them."""
    # Compilers limit the number of variants of a function that they keep, those of earlier cases included.
    torch.compiler.reset()
    inputs = draw_inputs(case, getattr(torch, dtype), device, seed)
    rng = torch.Generator(device).manual_seed(seed + 1)
    shape = (case.batch, case.n_queries, case.heads * case.channels)
    grad_output = torch.randn(shape, generator=rng, device=device).to(inputs.value.dtype)
    given = None if direction == "forward" else grad_output

    @cache
    def inputs_of(one_dtype: bool) -> Inputs:  # noqa: FBT001 - A key of the cache.
        if not one_dtype:
            return inputs
        return replace(inputs, sampling_locations=inputs.sampling_locations.to(inputs.value.dtype))

    @cache
    def right(form: Form, one_dtype: bool) -> Outputs:  # noqa: FBT001 - A key of the cache.
        own = inputs_of(one_dtype)
        return comparable(expected(own, form, given), own, form)

    def build(provider: Provider) -> Contender:
        function = _load(provider, dtype, direction, device)
        own = inputs_of(provider.one_dtype)
        tracked = own.tracking(provider.form)
        leaves = dict(zip(provider.form, tracked.leaves(provider.form), strict=True))

        def outputs() -> Outputs:
            with torch.set_grad_enabled(given is not None):
                return comparable(with_gradients(function(tracked), leaves, given), own, provider.form)

        return Contender(
            call=timed(partial(function, tracked), list(leaves.values()), direction, grad_output),
            outputs=outputs,
            expected=partial(right, provider.form, provider.one_dtype),
            note=provider.note,
        )

    return Problem(
        candidates={provider.name: partial(build, provider) for provider in providers},
        baseline=BASELINE,
        tolerance=TOLERANCES[dtype],
        clock="device",
    )


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

    calls = {"forward": forward, "backward": backward, "forward_backward": forward_backward}
    return calls[direction]


def _load(provider: Provider, dtype: Dtype, direction: Direction, device: str) -> Function:
    if device not in provider.devices:
        raise UnavailableError(f"does not run on {device}")
    if dtype not in provider.dtypes:
        raise UnavailableError(f"does not take {dtype}")
    if direction == "backward" and not provider.keeps_graph:
        raise UnavailableError("compiled for one backward per forward")
    try:
        return provider.load()
    except ImportError as error:
        raise UnavailableError(f"cannot be imported: {error}") from error
