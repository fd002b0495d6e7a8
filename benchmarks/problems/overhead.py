"""The overhead of a call: the operator as a function and as a layer, on inputs too small to take time themselves."""

import copy
from functools import partial

import torch
from torch import Tensor

from benchmarks.cases import Direction, OverheadCase
from benchmarks.problems.operator import prepare_operator, timed
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
        reference_points = torch.rand(case.batch, queries, n_levels, 2, device=device)
        query, features, grad_output = (
            torch.randn(case.batch, rows, d_model, device=device) for rows in (queries, case.pixels, queries)
        )

    def leaves(layer: torch.nn.Module, query: Tensor, features: Tensor) -> dict[str, Tensor]:
        return {"query": query, "features": features, **dict(layer.named_parameters())}

    def results(dtype: torch.dtype) -> dict[str, Tensor]:
        own = copy.deepcopy(layer).to(dtype)
        tensors = [tensor.to(dtype).detach().requires_grad_() for tensor in (query, features)]
        output = own(tensors[0], reference_points.to(dtype), tensors[1], case.levels)
        if direction == "forward":
            return {"output": output.detach()}
        named = leaves(own, *tensors)
        gradients = torch.autograd.grad(output, list(named.values()), grad_output.to(dtype))
        return {"output": output.detach()} | dict(zip(named, gradients, strict=True))

    query.requires_grad_()
    features.requires_grad_()
    return Contender(
        call=timed(
            lambda: layer(query, reference_points, features, case.levels),
            list(leaves(layer, query, features).values()),
            direction,
            grad_output,
        ),
        outputs=partial(results, torch.float32),
        expected=partial(results, torch.float64),
        note="with its four projections",
    )
