"""The overhead of a call: the operator as a function and as a layer, on inputs too small to take time themselves."""

import copy
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.cases import Direction, OverheadCase
from benchmarks.problems.operator import prepare_operator, timed
from benchmarks.problems.operator_inputs import with_gradients
from benchmarks.problems.operator_providers import PROVIDERS
from benchmarks.problems.problem import Contender, Problem
from deformdetr.nn import MSDeformAttn

FUNCTIONS = ("ours", "ours_fused", "grid_sample", "deformops", "torch_ms_deform_attn")


def prepare_overhead(case: OverheadCase, direction: Direction, device: str, seed: int) -> Problem:
    """Draw inputs of the functions, and build a layer of the same sizes."""
    functions = [provider for provider in PROVIDERS if provider.name in FUNCTIONS]
    problem = prepare_operator(case, "float32", direction, device, seed, functions)
    layer = partial(_build_layer, case, direction, device, seed)
    return Problem({**problem.candidates, "ours_layer": layer}, problem.baseline, problem.tolerance, clock="wall")


def _build_layer(case: OverheadCase, direction: Direction, device: str, seed: int) -> Contender:
    d_model, queries, n_levels = case.heads * case.channels, case.n_queries, len(case.levels)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layer = MSDeformAttn(d_model, n_levels, case.heads, case.points).to(device)
        given = torch.rand(case.batch, queries, n_levels, 2, device=device)
        query, features, grad_output = (
            torch.randn(case.batch, rows, d_model, device=device) for rows in (queries, case.pixels, queries)
        )

    def prepare(dtype: torch.dtype) -> tuple[Callable[[], Tensor], dict[str, Tensor]]:
        own = copy.deepcopy(layer).to(dtype)
        reference_points = given.to(dtype)
        leaves = {
            name: t.to(dtype, copy=True).requires_grad_() for name, t in (("query", query), ("features", features))
        }
        call = partial(own, leaves["query"], reference_points, leaves["features"], case.levels)
        return call, leaves | dict(own.named_parameters())

    def results(dtype: torch.dtype) -> dict[str, Tensor]:
        call, leaves = prepare(dtype)
        with torch.set_grad_enabled(direction != "forward"):
            return with_gradients(call(), leaves, None if direction == "forward" else grad_output)

    call, leaves = prepare(torch.float32)
    return Contender(
        call=timed(call, list(leaves.values()), direction, grad_output),
        outputs=partial(results, torch.float32),
        expected=partial(results, torch.float64),
        note="with its four projections",
    )
