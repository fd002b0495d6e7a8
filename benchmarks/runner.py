"""Run a task: check every candidate, then time in turns those whose results are right."""

import gc
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from fnmatch import fnmatch
from operator import truediv
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.accelerated import prepare_accelerated
from benchmarks.cases import Device, Task
from benchmarks.environment import describe_environment, today
from benchmarks.matching import prepare_criterion, prepare_matcher
from benchmarks.measure import PRODUCT_DTYPES, Clock, DeviceClock, WallClock, interleave, matrix_products, peak_bytes
from benchmarks.model import prepare_layers, prepare_model
from benchmarks.operator import prepare_operator, prepare_overhead
from benchmarks.pages import digits
from benchmarks.problem import Contender, Problem, UnavailableError, largest_error
from benchmarks.rates import prepare_rates
from benchmarks.results import Results, Row, Spread, file_name, load

# Even of a contender that is slower than the settings allow.
_FEWEST_ROUNDS = 3


class Settings(NamedTuple):
    """Settings of a run.

    Attributes:
        rounds: Number of turns of every contender.
        seconds: Time limit of one contender in a task; slow ones take fewer turns, but at least three.
        providers: Patterns of names; without any, all providers. The baseline always takes part.
    """

    device: Device = "cpu"
    rounds: int = 20
    seconds: float = 10.0
    seed: int = 0
    providers: Sequence[str] = ()


def prepare(task: Task, device: Device, seed: int) -> Problem:
    """Draw the inputs of a task and name the candidates, without building any."""
    sizes: Any = task.case.sizes
    match task.case.kind:
        case "operator":
            return prepare_operator(sizes, task.dtype, task.direction, device, seed)
        case "overhead":
            return prepare_overhead(sizes, task.direction, device, seed)
        case "model":
            return prepare_model(sizes, task.direction, device, seed)
        case "matcher":
            return prepare_matcher(sizes, device, seed)
        case "criterion":
            return prepare_criterion(sizes, device, seed)
        case "accelerated":
            return prepare_accelerated(sizes, task.direction, device, seed)
        case "layers":
            return prepare_layers(sizes, task.direction, device, seed)
        case "rates":
            return prepare_rates(sizes, device, seed)


def run_tasks(
    chosen: Sequence[Task],
    settings: Settings,
    command: str,
    folder: Path | None,
    *,
    keep: bool = False,
    commit: str | None = None,
) -> list[Row]:
    """Run tasks, and after each one store what has been measured, in a file per kind.

    Args:
        chosen: The tasks.
        settings: Settings of the run.
        command: The command to store with the results.
        folder: Where to write the files; nothing is stored without.
        keep: Whether to keep the results of other tasks in existing files.
        commit: Commit of the code, where there is no git.
    """
    run: dict[str, Any] = {"environment": describe_environment(settings.device, commit)}
    run |= {"command": command, "date": today(), "seed": settings.seed}
    rows: list[Row] = []
    for kind in dict.fromkeys(task.case.kind for task in chosen):
        path = folder / f"{file_name(kind, run['environment'])}.json" if folder else None
        earlier = load(path) if path and keep and path.exists() else Results(kind=kind)
        of_kind = [task for task in chosen if task.case.kind == kind]
        own: list[Row] = []
        for index, task in enumerate(of_kind, 1):
            print(f"{task} ({index} of {len(of_kind)})", flush=True)
            measured = run_task(task, settings)
            print(*map(_describe, measured), sep="\n", flush=True)
            own += measured
            if path:
                earlier.followed_by(run | {"complete": index == len(of_kind)}, own).save(path)
        rows += own
    return rows


def _describe(row: Row) -> str:
    if row.time is None:
        return f"  {row.provider:<26} {row.status}: {row.reason}"
    times = [digits(each * 1e3) for each in (row.time.median, row.time.lower_quartile, row.time.upper_quartile)]
    factor = f", {row.speedup.median:.2f} times as fast" if row.speedup and row.provider != row.baseline else ""
    return f"  {row.provider:<26} {times[0]} ms ({times[1]} to {times[2]}){factor}"


def run_task(task: Task, settings: Settings) -> list[Row]:
    """Measure all providers of a task."""
    # A CUDA graph can be captured in no default stream, nor with the backward of another stream's forward.
    with nullcontext() if settings.device == "cpu" else torch.cuda.stream(torch.cuda.Stream()):
        rows = run_problem(task, prepare(task, settings.device, settings.seed), settings)
    gc.collect()
    if settings.device == "cuda":
        torch.cuda.empty_cache()
    return rows


def run_problem(task: Task, problem: Problem, settings: Settings) -> list[Row]:
    """Build the candidates and check their results, then time those that are right."""
    patterns = [*settings.providers, problem.baseline] if settings.providers else ["*"]
    entries: dict[str, dict[str, Any]] = {}
    clocks: dict[str, Clock] = {}
    for name, build in problem.candidates.items():
        if any(fnmatch(name, pattern) for pattern in patterns):
            entries[name], clock = _check(build, problem, settings)
            if clock is not None:
                clocks[name] = clock
    for name, times in _race(clocks, problem, settings).items():
        entries[name] |= times
    shared = {"kind": task.case.kind, "case": task.case.name, "dtype": task.dtype, "direction": task.direction}
    shared |= {"tolerance": problem.tolerance, "baseline": problem.baseline}
    return [Row(provider=name, **shared | own) for name, own in entries.items()]


def _check(build: Callable[[], Contender], problem: Problem, settings: Settings) -> tuple[dict[str, Any], Clock | None]:
    """Build a candidate, compare its results and measure its memory; return entries of its row, and its clock."""
    entries: dict[str, Any] = {}
    try:
        contender = build()
        error = largest_error(contender.outputs(), contender.expected())
        tolerance = problem.tolerance if contender.tolerance is None else contender.tolerance
        entries = {"error": error, "note": contender.note, "tolerance": tolerance}
        if error > tolerance:
            reason = f"error {error:.2g} exceeds {tolerance:.2g}"
            return entries | {"status": "disagrees", "reason": reason}, None
        # The first call may compile, and allocate memory that is kept for good.
        contender.call()
        start = time.perf_counter()
        entries["peak_bytes"] = peak_bytes(contender.call, settings.device)
        estimate = time.perf_counter() - start
        if settings.device == "cuda" and problem.clock == "device":
            return entries | {"status": "measured"}, DeviceClock(contender.call)
        name = "processor" if problem.clock == "processor" else "wall"
        return entries | {"status": "measured"}, WallClock(contender.call, estimate=estimate, name=name)
    except UnavailableError as error:
        return entries | {"status": "unavailable", "reason": str(error)}, None
    except Exception as error:  # noqa: BLE001 - Any error of other projects' code belongs in the results.
        message = (str(error).strip().splitlines() or [""])[0]
        return entries | {"status": "failed", "reason": f"{type(error).__name__}: {message}"[:300]}, None


def _race(clocks: dict[str, Clock], problem: Problem, settings: Settings) -> dict[str, dict[str, Any]]:
    """Time the contenders in turns, and return the entries of their rows."""
    if not clocks:
        return {}
    fewest = min(_FEWEST_ROUNDS, settings.rounds)
    rounds = {
        name: min(settings.rounds, max(fewest, int(settings.seconds / clock.seconds))) for name, clock in clocks.items()
    }
    products = matrix_products(settings.device) if problem.count_flops else {}
    taken = interleave({name: clock.sample for name, clock in clocks.items()} | products, rounds)
    baseline = taken.get(problem.baseline, [])
    shared: dict[str, Any] = {}
    if problem.count_flops:
        best = {dtype: max(max(taken[name]) for name in products if name.startswith(dtype)) for dtype in PRODUCT_DTYPES}
        shared = {"flops": problem.count_flops(), "product_flops": best}
    return {
        name: {
            "clock": clock.name,
            "rounds": rounds[name],
            "calls_per_round": clock.calls,
            "time": Spread.of(taken[name]),
            "speedup": Spread.of(list(map(truediv, baseline, taken[name]))) if baseline else None,
            **shared,
        }
        for name, clock in clocks.items()
    }
