"""Print what the choices in the operator's CPU path are worth.

`python -m benchmarks.cpu_choices` prints a table of choices and cases, in milliseconds of a forward and of forward and
backward, and the same of the layer under `torch.compile`.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from statistics import median
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.cases import OperatorSizes, select
from benchmarks.measure import interleave
from benchmarks.operator import draw, track
from benchmarks.pages import markdown
from benchmarks.providers import SAMPLED
from deformdetr.kernels import ms_deform_attn
from deformdetr.kernels._numba import _large_pages, _launcher, _threads
from deformdetr.nn import MSDeformAttn


class Choice(NamedTuple):
    """A choice of the library, and what stands against it.

    Attributes:
        leaves: The tensors to compute gradients of.
        chosen: Computes the result by the choice.
        other: Computes it without the choice.
        without: Takes the choice back while it is entered; `other` and its backward run inside.
    """

    name: str
    instead_of: str
    leaves: Sequence[Tensor]
    chosen: Callable[[], Tensor]
    other: Callable[[], Tensor]
    without: Callable[[], AbstractContextManager[Any]] = nullcontext


def choices(sizes: OperatorSizes) -> Iterator[Choice]:
    """Draw inputs, and yield all choices."""

    def attend(leaves: Sequence[Tensor], *, as_float: bool = False) -> Tensor:
        value, locations, weights = leaves
        return ms_deform_attn(value.float() if as_float else value, sizes.levels, locations, weights)

    def leaves_in(dtype: torch.dtype) -> list[Tensor]:
        _, leaves = track(draw(sizes, dtype, "cpu", seed=torch.seed() % 2**31), SAMPLED)
        return list(leaves.values())

    leaves, half = leaves_in(torch.float32), leaves_in(torch.bfloat16)
    plain = (leaves, partial(attend, leaves), partial(attend, leaves))
    own_threads = partial(patch.object, _threads, "_openmp_parallel", lambda: None)
    yield Choice("PyTorch's threads", "threads started for every call", *plain, own_threads)
    yield Choice("large pages", "small ones", *plain, partial(patch.object, _large_pages, "LARGE", sys.maxsize))
    for samples in (2**9, 2**15):
        change = partial(patch.object, _launcher, "SAMPLES_PER_TASK", samples)
        yield Choice(f"{_launcher.SAMPLES_PER_TASK} samples at once", f"{samples}", *plain, change)
    converted = partial(attend, half, as_float=True)
    yield Choice("bfloat16 read as it is", "converted to float32 first", half, partial(attend, half), converted)
    yield _compiled_layer(sizes)


def _compiled_layer(sizes: OperatorSizes) -> Choice:
    torch.compiler.reset()
    d_model, n_levels = sizes.heads * sizes.channels, len(sizes.levels)
    layer = MSDeformAttn(d_model, n_levels, sizes.heads, sizes.points)
    query = torch.randn(sizes.batch, sizes.n_queries, d_model, requires_grad=True)
    features = torch.randn(sizes.batch, sizes.pixels, d_model, requires_grad=True)
    given = (query, torch.rand(sizes.batch, sizes.n_queries, n_levels, 2), features, sizes.levels)
    compiled = partial(torch.compile(layer, dynamic=False, fullgraph=True), *given)
    return Choice("compiled layer", "eager", [query, features, *layer.parameters()], compiled, partial(layer, *given))


def measure(choice: Choice, rounds: int) -> str:
    """Return medians of turns in milliseconds with and without the choice, of the forward and of both directions."""
    # Something for PyTorch's own threads, which calls follow in a model.
    before = torch.randn(512, 512)

    def sample(attend: Callable[[], Tensor], context: Callable[[], Any], *, is_trained: bool) -> float:
        before @ before
        with context(), torch.set_grad_enabled(is_trained):
            started = time.perf_counter()
            out = attend()
            if is_trained:
                torch.autograd.grad(out, choice.leaves, torch.ones_like(out))
            return 1e3 * (time.perf_counter() - started)

    cells = []
    for is_trained in (False, True):
        samples = {
            "chosen": partial(sample, choice.chosen, nullcontext, is_trained=is_trained),
            "other": partial(sample, choice.other, choice.without, is_trained=is_trained),
        }
        # The first turns compile, and fill caches.
        chosen, other = (median(taken[2:]) for taken in interleave(samples, rounds + 2).values())
        cells.append(f"{chosen:.3g} instead of {other:.3g}")
    return ", ".join(cells)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=25)
    rounds = parser.parse_args().rounds
    cases = [case for case in select(["operator"]) if case.cpu]
    measured = [
        [[choice.name, choice.instead_of, measure(choice, rounds)] for choice in choices(case.sizes)] for case in cases
    ]
    rows = [[*of_choice[0][:2], *(row[2] for row in of_choice)] for of_choice in zip(*measured, strict=True)]
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}\n")
    print(markdown(["choice", "instead of", *(case.name for case in cases)], rows, left=2 + len(cases)))
