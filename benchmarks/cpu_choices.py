"""What the choices in the operator's CPU path are worth: `python -m benchmarks.cpu_choices`."""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from statistics import median
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.cases import OPERATOR_CASES, OperatorCase
from benchmarks.measure import interleave
from benchmarks.problems.operator_inputs import SAMPLED, draw_inputs
from deformdetr.kernels import ms_deform_attn
from deformdetr.kernels._numba import _large_pages, _launcher, _threads
from deformdetr.nn import MSDeformAttn

CASES = tuple(case for case in OPERATOR_CASES if "cpu" in case.devices)


class Choice(NamedTuple):
    """A choice of the library, and what stands against it.

    Attributes:
        without: Takes the choice back while it is entered.
        dtype: Of the operator's value.
        convert: Whether to make the value float32 before calls without the choice.
    """

    name: str
    instead_of: str
    without: Callable[[], AbstractContextManager[Any]] = nullcontext
    dtype: torch.dtype = torch.float32
    convert: bool = False


CHOICES = (
    Choice(
        "PyTorch's threads",
        "threads started for every call",
        lambda: patch.object(_threads, "_openmp_parallel", lambda: None),
    ),
    Choice("large pages", "small ones", lambda: patch.object(_large_pages, "LARGE", sys.maxsize)),
    *(
        Choice(
            f"{_launcher.SAMPLES_PER_TASK} samples at once",
            f"{samples}",
            partial(patch.object, _launcher, "SAMPLES_PER_TASK", samples),
        )
        for samples in (2**9, 2**15)
    ),
    Choice("bfloat16 read as it is", "converted to float32 first", dtype=torch.bfloat16, convert=True),
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table of choices and cases, and one of layers under `torch.compile`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--quick", action="store_true", help="tiny shapes, to see that it works")
    given = parser.parse_args(arguments)
    cases = [case.quick() for case in CASES] if given.quick else CASES
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}; milliseconds, forward and both directions\n")
    print("| choice | instead of | " + " | ".join(case.name for case in cases) + " |")
    print("| --- | --- |" + " --- |" * len(cases))
    for choice in CHOICES:
        cells = [_write(measure_choice(choice, case, given.rounds)) for case in cases]
        print(f"| {choice.name} | {choice.instead_of} | " + " | ".join(cells) + " |", flush=True)
    cells = [_write(measure_compiled_layer(case, given.rounds)) for case in cases]
    print("| compiled layer | eager | " + " | ".join(cells) + " |")


def measure_choice(choice: Choice, case: OperatorCase, rounds: int) -> dict[str, tuple[float, float]]:
    """Return milliseconds with and without the choice, of the forward and of both directions."""
    inputs = draw_inputs(case, choice.dtype, "cpu", seed=torch.seed() % 2**31)
    leaves = inputs.tracking(SAMPLED).leaves(SAMPLED)

    def attend(*, is_chosen: bool) -> Tensor:
        value, locations, weights = leaves
        value = value.float() if choice.convert and not is_chosen else value
        return ms_deform_attn(value, inputs.spatial_shapes, locations, weights)

    return _measure(attend, leaves, rounds, choice.without)


def measure_compiled_layer(case: OperatorCase, rounds: int) -> dict[str, tuple[float, float]]:
    """Return milliseconds of the layer around the operator, compiled and not."""
    torch.compiler.reset()
    d_model = case.heads * case.channels
    layer = MSDeformAttn(d_model, len(case.levels), case.heads, case.points)
    reference = torch.rand(case.batch, case.n_queries, len(case.levels), 2)
    query = torch.randn(case.batch, case.n_queries, d_model, requires_grad=True)
    features = torch.randn(case.batch, case.pixels, d_model, requires_grad=True)
    leaves = [query, features, *layer.parameters()]
    functions = {False: layer, True: torch.compile(layer, dynamic=False, fullgraph=True)}

    def attend(*, is_chosen: bool) -> Tensor:
        out: Tensor = functions[is_chosen](query, reference, features, case.levels)
        return out

    return _measure(attend, leaves, rounds)


def _measure(
    attend: Callable[..., Tensor],
    leaves: Sequence[Tensor],
    rounds: int,
    without: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> dict[str, tuple[float, float]]:
    """Return the medians of turns taken by what was chosen and what was not."""
    # Something for PyTorch's own threads, which calls follow in a model.
    before = torch.randn(512, 512)

    def sample(*, is_chosen: bool, is_trained: bool) -> float:
        before @ before
        with nullcontext() if is_chosen else without(), torch.set_grad_enabled(is_trained):
            started = time.perf_counter()
            out = attend(is_chosen=is_chosen)
            if is_trained:
                torch.autograd.grad(out, leaves, torch.ones_like(out))
            return 1e3 * (time.perf_counter() - started)

    medians = {}
    for direction, is_trained in (("forward", False), ("both", True)):
        samples = {
            "chosen": partial(sample, is_chosen=True, is_trained=is_trained),
            "other": partial(sample, is_chosen=False, is_trained=is_trained),
        }
        times = interleave(samples, dict.fromkeys(samples, rounds + 2))
        # The first turns compile, and fill caches.
        medians[direction] = median(times["chosen"][2:]), median(times["other"][2:])
    return medians


def _write(medians: dict[str, tuple[float, float]]) -> str:
    return ", ".join(f"{chosen:.3g} instead of {other:.3g}" for chosen, other in medians.values())


if __name__ == "__main__":
    main()
