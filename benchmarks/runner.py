"""One task after the other: check every candidate, then time those that are right."""

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from fnmatch import fnmatch

import torch

from benchmarks.agreement import largest_error
from benchmarks.cases import Device, Task
from benchmarks.measure import DeviceSampler, Sampler, WallSampler, first_line, interleave
from benchmarks.memory import peak_bytes
from benchmarks.problems import Candidate, Contender, Problem, UnavailableError, prepare
from benchmarks.results import Row, Spread

# However slow one is, and whatever its share of the time is.
_FEWEST_ROUNDS = 3


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a run goes.

    Attributes:
        rounds: How often every contender takes its turn.
        seconds: What one contender may take of a task; slow ones take fewer turns, but three at least.
        providers: Patterns of names; all where there are none. The baseline is always among them.
    """

    device: Device
    rounds: int = 20
    seconds: float = 10.0
    seed: int = 0
    cold: bool = False
    providers: Sequence[str] = ()


Report = Callable[[str], object]


class _Racer:
    """A contender's clocks: the one that counts, and on a GPU that of the caller."""

    def __init__(self, contender: Contender, problem: Problem, settings: Settings, *, estimate: float) -> None:
        self.main: Sampler
        self.wall: WallSampler | None = None
        if settings.device == "cuda" and problem.clock == "device":
            self.wall = WallSampler(contender.call, settings.device)
            self.main = DeviceSampler(contender.call, cold=settings.cold)
        else:
            self.main = WallSampler(contender.call, settings.device, estimate=estimate)
        seconds = self.main.seconds + (self.wall.seconds if self.wall else 0)
        affordable = int(settings.seconds / seconds)
        self.rounds = max(min(_FEWEST_ROUNDS, settings.rounds), min(affordable, settings.rounds))


def run_task(task: Task, settings: Settings, report: Report) -> list[Row]:
    """Measure all providers of a task; `report` is told what is going on."""
    with _own_stream(settings.device):
        problem = prepare(task, settings.device, settings.seed)
        rows = run_problem(task, problem, settings, report)
    del problem
    gc.collect()
    if settings.device == "cuda":
        torch.cuda.empty_cache()
    return rows


def run_problem(task: Task, problem: Problem, settings: Settings, report: Report) -> list[Row]:
    """Build and compare the candidates, then time those that are right."""
    rows: dict[str, Row] = {}
    racers: dict[str, _Racer] = {}
    for candidate in _chosen(problem, settings.providers):
        report(f"checking {candidate.name}")
        rows[candidate.name], racer = _qualify(task, problem, candidate, settings)
        if racer is not None:
            racers[candidate.name] = racer
    _race(rows, racers, problem.baseline, settings, report)
    return list(rows.values())


def _qualify(task: Task, problem: Problem, candidate: Candidate, settings: Settings) -> tuple[Row, _Racer | None]:
    """Find out whether a candidate runs, is right, and what memory it needs."""
    row = Row(
        kind=task.case.kind,
        case=task.case.name,
        dtype=task.dtype,
        direction=task.direction,
        provider=candidate.name,
        status="measured",
        tolerance=problem.tolerance,
        baseline=problem.baseline,
    )
    try:
        contender = candidate.build()
        error = largest_error(contender.outputs(), contender.expected())
        row = row.model_copy(update={"error": error, "note": contender.note})
        # Not a number is not within the tolerance, either.
        if not error <= problem.tolerance:
            reason = f"error {error:.2g} exceeds {problem.tolerance:.2g}"
            return row.model_copy(update={"status": "disagrees", "reason": reason}), None
        # What is compiled or kept for good at the first call is not the peak of a call.
        contender.call()
        start = time.perf_counter()
        row = row.model_copy(update={"peak_bytes": peak_bytes(contender.call, settings.device)})
        return row, _Racer(contender, problem, settings, estimate=time.perf_counter() - start)
    except UnavailableError as error:
        return row.model_copy(update={"status": "unavailable", "reason": str(error)}), None
    except Exception as error:  # noqa: BLE001 - Whatever another project's code raises belongs into the results.
        return row.model_copy(update={"status": "failed", "reason": first_line(error)}), None


def _race(rows: dict[str, Row], racers: dict[str, _Racer], baseline: str, settings: Settings, report: Report) -> None:
    if not racers:
        return
    done = 0

    def after_round() -> None:
        nonlocal done
        done += 1
        report(f"round {done} of {max(rounds.values())}")

    rounds = {name: racer.rounds for name, racer in racers.items()}
    times = interleave({name: racer.main.sample for name, racer in racers.items()}, rounds, after_round)
    walls = {name: racer.wall.sample for name, racer in racers.items() if racer.wall}
    wall_times = interleave(walls, {name: rounds[name] for name in walls}, lambda: None) if walls else {}
    for name, racer in racers.items():
        pairs = zip(times.get(baseline, ()), times[name], strict=False)
        speedups = [of_baseline / own for of_baseline, own in pairs]
        note = "; ".join(part for part in (rows[name].note, racer.main.note) if part)
        rows[name] = rows[name].model_copy(
            update={
                "clock": racer.main.clock,
                "rounds": racer.rounds,
                "calls_per_round": racer.main.calls,
                "time": Spread.of(times[name]),
                "wall_time": Spread.of(wall_times[name]) if name in wall_times else None,
                "speedup": Spread.of(speedups) if speedups else None,
                "note": note,
            }
        )


def _chosen(problem: Problem, patterns: Sequence[str]) -> Iterator[Candidate]:
    for candidate in problem.candidates:
        is_wanted = not patterns or any(fnmatch(candidate.name, pattern) for pattern in patterns)
        if is_wanted or candidate.name == problem.baseline:
            yield candidate


def _own_stream(device: Device) -> AbstractContextManager[object]:
    if device == "cpu":
        return nullcontext()
    # CUDA graphs cannot be captured in the default stream, nor can the backward of what another stream computed.
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # PyTorch's has no annotations.
    return torch.cuda.stream(stream)
