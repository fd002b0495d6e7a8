"""The operator: each provider on the same inputs."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from benchmarks.agreement import TOLERANCES
from benchmarks.cases import Direction, Dtype, OperatorCase
from benchmarks.problems.contender import Candidate, Contender, Outputs, Problem, UnavailableError
from benchmarks.problems.operator_inputs import Form, Inputs, comparable, draw_inputs, expected
from benchmarks.problems.operator_providers import BASELINE, PROVIDERS, Provider


def prepare_operator(
    case: OperatorCase,
    dtype: Dtype,
    direction: Direction,
    device: str,
    seed: int,
    providers: Sequence[Provider] = PROVIDERS,
) -> Problem:
    """Draw inputs; the right results are computed when the first contender needs them."""
    # What was compiled for other cases counts against what compilers keep of one function.
    torch.compiler.reset()
    inputs = draw_inputs(case, getattr(torch, dtype), device, seed)
    shape = (case.batch, case.n_queries, case.heads * case.channels)
    rng = torch.Generator(device).manual_seed(seed + 1)
    grad_output = torch.randn(shape, generator=rng, device=device).to(inputs.value.dtype)
    given = None if direction == "forward" else grad_output
    right: dict[tuple[Form, bool], Outputs] = {}

    def expect(inputs: Inputs, form: Form, one_dtype: bool) -> Outputs:  # noqa: FBT001 - Part of a key.
        key = form, one_dtype
        if key not in right:
            right[key] = comparable(expected(inputs, form, given), inputs, form)
        return right[key]

    def build(provider: Provider) -> Contender:
        function = _load(provider, dtype, device)
        own = inputs
        if provider.one_dtype:
            own = replace(inputs, sampling_locations=inputs.sampling_locations.to(inputs.value.dtype))
        tracked = own.tracking(provider.form)
        return Contender(
            call=_timed(function, tracked, provider.form, direction, grad_output),
            outputs=lambda: comparable(_results(function, tracked, provider.form, given), own, provider.form),
            expected=lambda: expect(own, provider.form, provider.one_dtype),
            note=provider.note,
        )

    return Problem(
        candidates=tuple(Candidate(each.name, partial(build, each)) for each in providers),
        baseline=BASELINE,
        tolerance=TOLERANCES[dtype],
        clock="device",
    )


def _load(provider: Provider, dtype: Dtype, device: str) -> Callable[[Inputs], Tensor]:
    if device not in provider.devices:
        raise UnavailableError(f"does not run on {device}")
    if dtype not in provider.dtypes:
        raise UnavailableError(f"does not take {dtype}")
    try:
        return provider.load()
    except ImportError as error:
        raise UnavailableError(f"cannot be imported: {error}") from error


def _timed(
    function: Callable[[Inputs], Tensor], inputs: Inputs, form: Form, direction: Direction, grad_output: Tensor
) -> Callable[[], object]:
    leaves = inputs.leaves(form)

    def forward() -> Tensor:
        with torch.no_grad():
            return function(inputs)

    def forward_backward() -> tuple[Tensor, ...]:
        return torch.autograd.grad(function(inputs), leaves, grad_output)

    outputs: list[Tensor] = []

    def backward() -> tuple[Tensor, ...]:
        if not outputs:
            outputs.append(function(inputs))
        return torch.autograd.grad(outputs[0], leaves, grad_output, retain_graph=True)

    calls: dict[Direction, Callable[[], object]] = {
        "forward": forward,
        "backward": backward,
        "forward_backward": forward_backward,
    }
    return calls[direction]


def _results(
    function: Callable[[Inputs], Tensor], inputs: Inputs, form: Form, grad_output: Tensor | None
) -> dict[str, Tensor]:
    if grad_output is None:
        with torch.no_grad():
            return {"output": function(inputs)}
    output = function(inputs)
    gradients = torch.autograd.grad(output, inputs.leaves(form), grad_output)
    named = {f"grad_{name}": gradient for name, gradient in zip(form, gradients, strict=True)}
    return {"output": output.detach()} | named
