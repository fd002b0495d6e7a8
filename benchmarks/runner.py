"""Run a task: check every candidate, then time in turns those whose results are right."""

import gc
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

import torch

from benchmarks.cases import Device, Dtype, Task
from benchmarks.measure import DeviceSampler, WallSampler, first_line, interleave, matrix_products
from benchmarks.memory import peak_bytes
from benchmarks.problems import Contender, Problem, UnavailableError, prepare
from benchmarks.problems.problem import largest_error
from benchmarks.results import Row, Spread

# Even of a contender that is slower than the settings allow.
_FEWEST_ROUNDS = 3


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of a run.

    Attributes:
        rounds: Number of turns of every contender.
        seconds: Time limit of one contender in a task; slow ones take fewer turns, but at least three.
        providers: Patterns of names; without any, all providers. The baseline always takes part.
    """

    device: Device
    rounds: int = 20
    seconds: float = 10.0
    seed: int = 0
    cold: bool = False
    providers: Sequence[str] = ()


class _Racer:
    """The clocks of a contender: the one that counts and, for work of a GPU alone, the caller's."""

    def __init__(self, contender: Contender, problem: Problem, settings: Settings, *, estimate: float) -> None:
        self.main: WallSampler | DeviceSampler
        self.wall: WallSampler | None = None
        if settings.device == "cuda" and problem.clock == "device":
            self.wall = WallSampler(contender.call, settings.device)
            self.main = DeviceSampler(contender.call, cold=settings.cold)
        else:
            self.main = WallSampler(contender.call, settings.device, estimate=estimate)
        affordable = int(settings.seconds / (self.main.seconds + (self.wall.seconds if self.wall else 0)))
        self.rounds = max(min(_FEWEST_ROUNDS, settings.rounds), min(affordable, settings.rounds))


def run_task(task: Task, settings: Settings) -> list[Row]:
    """Measure all providers of a task."""
    with _own_stream(settings.device):
        rows = run_problem(task, prepare(task, settings.device, settings.seed), settings)
    gc.collect()
    if settings.device == "cuda":
        torch.cuda.empty_cache()
    return rows


def run_problem(task: Task, problem: Problem, settings: Settings) -> list[Row]:
    """Build the candidates and check their results, then time those that are right."""
    rows: dict[str, Row] = {}
    racers: dict[str, _Racer] = {}
    for name, build in problem.candidates.items():
        if not (name == problem.baseline or _matches(name, settings.providers)):
            continue
        updates, racer = _check(build, problem, settings)
        rows[name] = Row(
            kind=task.case.kind,
            case=task.case.name,
            dtype=task.dtype,
            direction=task.direction,
            provider=name,
            tolerance=problem.tolerance,
            baseline=problem.baseline,
            **updates,
        )
        if racer is not None:
            racers[name] = racer
    if racers:
        for name, updates in _race(racers, problem, settings).items():
            note = "; ".join(part for part in (rows[name].note, racers[name].main.note) if part)
            rows[name] = rows[name].model_copy(update={**updates, "note": note})
    return list(rows.values())


def _check(
    build: Callable[[], Contender], problem: Problem, settings: Settings
) -> tuple[dict[str, Any], _Racer | None]:
    """Build a candidate, compare its results and measure its memory; return entries of its row, and its clocks."""
    entries: dict[str, Any] = {}
    try:
        contender = build()
        error = largest_error(contender.outputs(), contender.expected())
        entries |= {"error": error, "note": contender.note}
        if error > problem.tolerance:
            return entries | {
                "status": "disagrees",
                "reason": f"error {error:.2g} exceeds {problem.tolerance:.2g}",
            }, None
        # The first call may compile, and allocate memory that is kept for good.
        contender.call()
        start = time.perf_counter()
        entries["peak_bytes"] = peak_bytes(contender.call, settings.device)
        racer = _Racer(contender, problem, settings, estimate=time.perf_counter() - start)
        return entries | {"status": "measured"}, racer
    except UnavailableError as error:
        return entries | {"status": "unavailable", "reason": str(error)}, None
    except Exception as error:  # noqa: BLE001 - Any error of other projects' code belongs in the results.
        return entries | {"status": "failed", "reason": first_line(error)}, None


def _race(racers: dict[str, _Racer], problem: Problem, settings: Settings) -> dict[str, dict[str, Any]]:
    """Time the contenders in turns, and return the entries of their rows."""
    rounds = {name: racer.rounds for name, racer in racers.items()}
    samples = {name: racer.main.sample for name, racer in racers.items()}
    flops: dict[str, tuple[Dtype, int]] = {}
    if problem.count_flops is not None:
        for index, (dtype, number, product) in enumerate(matrix_products(settings.device)):
            product()
            samples[f"product {index}"] = WallSampler(product, settings.device).sample
            flops[f"product {index}"] = dtype, number
    rounds |= dict.fromkeys(flops, max(rounds.values()))
    times = interleave(samples, rounds)
    walls = {name: racer.wall.sample for name, racer in racers.items() if racer.wall}
    wall_times = interleave(walls, {name: rounds[name] for name in walls}) if walls else {}

    product_flops: dict[Dtype, float] = {}
    for name, (dtype, number) in flops.items():
        product_flops[dtype] = max(product_flops.get(dtype, 0), number / min(times[name]))
    shared = {
        "flops": None if problem.count_flops is None else problem.count_flops(),
        "product_flops": product_flops,
    }
    return {
        name: {
            "clock": racer.main.clock,
            "rounds": racer.rounds,
            "calls_per_round": racer.main.calls,
            "time": Spread.of(times[name]),
            "wall_time": Spread.of(wall_times[name]) if name in wall_times else None,
            "speedup": _speedup(times.get(problem.baseline, []), times[name]),
            **shared,
        }
        for name, racer in racers.items()
    }


def _speedup(baseline: Sequence[float], own: Sequence[float]) -> Spread | None:
    return Spread.of([slow / fast for slow, fast in zip(baseline, own, strict=False)]) if baseline else None


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return not patterns or any(fnmatch(name, pattern) for pattern in patterns)


def _own_stream(device: Device) -> AbstractContextManager[object]:
    # A CUDA graph can be captured in no default stream, nor with the backward of another stream's forward.
    return nullcontext() if device == "cpu" else torch.cuda.stream(torch.cuda.Stream())
