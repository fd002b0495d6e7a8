"""The check of an implementation by all cases."""

import importlib
import platform
import random
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch

from deformdetr.testing._cases import CASES, Case
from deformdetr.testing._conventions import Adapter
from deformdetr.testing._inputs import Problem
from deformdetr.testing._report import Report, Row, Status
from deformdetr.testing._run import DIRECTIONS, Outcome, run
from deformdetr.testing._tolerances import TOLERANCES, tolerance


def check_ms_deform_attn(
    function: Callable[..., Any],
    *,
    device: torch.device | str = "cpu",
    dtypes: Iterable[torch.dtype] = (torch.float32, torch.bfloat16, torch.float16),
    cases: Iterable[str] | None = None,
    convention: Sequence[str] | None = None,
    locations_dtype: torch.dtype | None = None,
    seed: int | None = None,
) -> Report:
    """Compare an implementation of multi-scale deformable attention with the exact result, forward and backward.

    Every case draws new random inputs, rounds them to the dtypes of the call, and compares the output and the gradients
    of value, locations and weights with those of the reference in float64. Errors are relative to the largest exact
    number and may be as large as `TOLERANCES` says. An exception is reported as a refusal.

    Args:
        function: The implementation. It gets tensors as `ms_deform_attn` does and returns (batch, queries, heads *
            channels).
        device: Where to run it.
        dtypes: Dtypes of the value and the weights.
        cases: Names from `CASES`; without them, all.
        convention: Names of the positional parameters in order, if those of the signature do not tell what they get,
            such as `["value", "spatial_shapes", "level_start_index", "sampling_locations", "attention_weights",
            "im2col_step"]`. `spatial_shapes` is a tensor, and `spatial_shapes_list` holds pairs of ints.
        locations_dtype: Dtype of locations beside values in half precision, for implementations that take one dtype
            alone; without it float32.
        seed: Number that all inputs follow from; without it, a new one, which the report has.

    Raises:
        TypeError: If a parameter's name does not tell what it gets.
        ValueError: If there is no such case, or no tolerance for a dtype, or no case or dtype is given.

    Examples:
        >>> from deformdetr import ms_deform_attn
        >>> report = check_ms_deform_attn(ms_deform_attn, dtypes=[torch.float32], cases=["edges"])
        >>> [row.direction for row in report.rows if row.passed]
        ['output', 'grad_value', 'grad_locations', 'grad_weights']
        >>> report.raise_for_failures()
    """
    adapter = Adapter(function, convention)
    chosen, kinds = _choose(cases), _choose_dtypes(dtypes)
    seed = random.SystemRandom().randrange(2**32) if seed is None else seed
    rows: list[Row] = []
    for case in chosen:
        for dtype in kinds:
            generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {case.name} {dtype}".encode()))
            rows += _check_case(adapter, case, dtype, device, generator, locations_dtype)
    return _report(adapter, device, seed, rows)


def check_problem(
    function: Callable[..., Any],
    problem: Problem,
    *,
    device: torch.device | str = "cpu",
    convention: Sequence[str] | None = None,
) -> Report:
    """Compare an implementation with the exact result of one problem, as a fuzzer does.

    Args:
        function: As in `check_ms_deform_attn`.
        problem: What to compute, such as a `random_problem`.
        device: Where to run it.
        convention: As in `check_ms_deform_attn`.

    Raises:
        TypeError: If a parameter's name does not tell what it gets.

    Examples:
        >>> from deformdetr import ms_deform_attn
        >>> from deformdetr.testing import random_problem
        >>> check_problem(ms_deform_attn, random_problem(7)).raise_for_failures()
    """
    adapter = Adapter(function, convention)
    case = Case(problem.label or "problem", lambda *_: iter([problem]))
    return _report(adapter, device, None, _check_case(adapter, case, problem.dtypes[0], device, torch.Generator()))


def _report(adapter: Adapter, device: torch.device | str, seed: int | None, rows: Sequence[Row]) -> Report:
    # Not imported by name, because this package lies below those that `deformdetr` lists.
    own = importlib.import_module("deformdetr").__version__
    versions = {"python": platform.python_version(), "torch": torch.__version__, "deformdetr": own}
    return Report(adapter.name, str(device), seed, versions, rows)


def _choose(names: Iterable[str] | None) -> list[Case]:
    if isinstance(names, str):
        raise ValueError(f"cases must be a list of names, got the string {names!r}")
    if names is None:
        return list(CASES.values())
    names = list(names)
    unknown = [name for name in names if name not in CASES]
    if unknown or not names:
        raise ValueError(f"cases must be among {', '.join(CASES)}, got {', '.join(map(repr, unknown)) or 'none'}")
    return [CASES[name] for name in names]


def _choose_dtypes(dtypes: Iterable[torch.dtype]) -> list[torch.dtype]:
    chosen = list(dtypes)
    unknown = [dtype for dtype in chosen if dtype not in TOLERANCES]
    if unknown or not chosen:
        known = ", ".join(map(str, TOLERANCES))
        raise ValueError(f"dtypes must be among {known}, got {', '.join(map(str, unknown)) or 'none'}")
    return chosen


def _check_case(
    adapter: Adapter,
    case: Case,
    dtype: torch.dtype,
    device: torch.device | str,
    generator: torch.Generator,
    locations_dtype: torch.dtype | None = None,
) -> list[Row]:
    """Return the rows of a case: the worst outcome of all its problems in every direction."""
    found: dict[str, list[tuple[Problem, Outcome]]] = {}
    for problem in case.draw(generator, dtype):
        if problem.points_per_level and not adapter.takes_points_per_level:
            reason = "it has no argument points_per_level"
            return [_row(case, dtype, name, "inapplicable", None, tolerance(dtype), reason) for name in DIRECTIONS]
        given = problem if locations_dtype is None else _round_locations(problem, locations_dtype)
        for direction, outcome in run(adapter, given, case.mode, torch.device(device)).items():
            found.setdefault(direction, []).append((problem, outcome))
    return [_judge(case, dtype, direction, found[direction]) for direction in DIRECTIONS if direction in found]


def _round_locations(problem: Problem, dtype: torch.dtype) -> Problem:
    """Return a problem with float32 locations beside half precision rounded to another dtype."""
    value, locations, weights = problem.dtypes
    if locations != torch.float32 or value not in (torch.float16, torch.bfloat16):
        return problem
    rounded = problem.sampling_locations.to(dtype).double()
    return replace(problem, sampling_locations=rounded, dtypes=(value, dtype, weights))


def _judge(case: Case, dtype: torch.dtype, direction: str, found: Sequence[tuple[Problem, Outcome]]) -> Row:
    """Return the row of a direction: failed if one of its problems is wrong, else refused if one was."""
    refused = [(problem, outcome) for problem, outcome in found if outcome.refusal]
    computed = [(problem, outcome) for problem, outcome in found if not outcome.refusal]
    # Faults first, then the largest error relative to its tolerance.
    worst, outcome = max(computed or refused, key=lambda pair: (bool(pair[1].fault), pair[1].error / pair[1].tolerance))
    error = None if outcome.refusal or outcome.error == torch.inf else outcome.error
    if computed and (outcome.fault or outcome.error > outcome.tolerance):
        what = outcome.fault or ("it is not finite" if error is None else f"the error is {error:.1e}")
        return _row(case, dtype, direction, "failed", error, outcome.tolerance, _explain(worst, what))
    if refused:
        problem, refusal = refused[0]
        return _row(case, dtype, direction, "refused", error, outcome.tolerance, _explain(problem, refusal.refusal))
    return _row(case, dtype, direction, "passed", error, outcome.tolerance, "")


def _explain(problem: Problem, what: str) -> str:
    return f"{what} ({problem.label})" if problem.label else what


def _row(
    case: Case, dtype: torch.dtype, direction: str, status: Status, error: float | None, allowed: float, reason: str
) -> Row:
    return Row(case.name, str(dtype).removeprefix("torch."), direction, status, error, allowed, reason)
