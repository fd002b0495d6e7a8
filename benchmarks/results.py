"""Results of a run, as they are stored, and the comparison of two files of them."""

import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from benchmarks.cases import Direction, Kind
from deformdetr._files import write_text


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")


class Spread(_Record):
    """Median, quartiles and minimum over the rounds."""

    median: float
    lower_quartile: float
    upper_quartile: float
    minimum: float

    @classmethod
    def of(cls, numbers: Sequence[float]) -> "Spread":
        # Quantiles need two.
        lower, median, upper = statistics.quantiles([*numbers] * (1 + (len(numbers) == 1)), n=4, method="inclusive")
        return cls(median=median, lower_quartile=lower, upper_quartile=upper, minimum=min(numbers))


class Row(_Record):
    """The result of one provider in one task. Times are in seconds.

    Attributes:
        reason: Why it was not measured.
        error: The largest relative error of its results; see `benchmarks.problem.largest_error`.
        speedup: Times as fast as the baseline, from the rounds that both took part in.
        flops: Floating-point operations of a call.
        product_flops: Most floating-point operations per second of a large matrix product by dtype, in the same rounds.
        run: Index of the run in the file.
    """

    kind: Kind
    case: str
    dtype: str
    direction: Direction
    provider: str
    status: Literal["measured", "unavailable", "disagrees", "failed"]
    reason: str = ""
    note: str = ""
    error: float | None = None
    tolerance: float
    clock: str = ""
    rounds: int = 0
    calls_per_round: int = 0
    time: Spread | None = None
    baseline: str
    speedup: Spread | None = None
    peak_bytes: int | None = None
    flops: int | None = None
    product_flops: dict[str, float] = {}
    run: int = 0

    @property
    def task(self) -> tuple[str, str, str]:
        return self.case, self.dtype, self.direction

    @property
    def key(self) -> tuple[str, str, str, str]:
        return *self.task, self.provider


class Results(_Record):
    """Rows of one kind and device, and the runs that they come from: calls of the command, with their environment."""

    kind: Kind
    runs: list[dict[str, Any]] = []
    rows: list[Row] = []

    @property
    def place(self) -> str:
        """Return the device's name and, on CPUs, the number of threads, of the newest run."""
        environment = self.runs[-1]["environment"]
        threads = f", {environment['threads']} thread{'s' if environment['threads'] > 1 else ''}"
        return environment["device_name"] + (threads if environment["device"] == "cpu" else "")

    def followed_by(self, run: dict[str, Any], rows: Sequence[Row]) -> "Results":
        """Add a run. Its rows replace those of the same tasks, and runs that have no rows left are dropped."""
        measured = {row.task for row in rows}
        kept = [row for row in self.rows if row.task not in measured]
        numbers = sorted({row.run for row in kept})
        renumbered = [row.model_copy(update={"run": numbers.index(row.run)}) for row in kept]
        added = [row.model_copy(update={"run": len(numbers)}) for row in rows]
        runs = [*(self.runs[number] for number in numbers), run]
        return Results(kind=self.kind, runs=runs, rows=[*renumbered, *added])

    def save(self, path: Path) -> None:
        """Write results, replacing an existing file in one step."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, self.model_dump_json(indent=1, exclude_defaults=True) + "\n")


def load(path: Path) -> Results:
    """Read results.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds anything else.
    """
    try:
        return Results.model_validate_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} does not hold results of this version: {error}") from error


def load_all(directory: Path, kind: Kind) -> list[Results]:
    """Read the results of one kind on all devices, in the order of their files' names."""
    return [load(path) for path in sorted(directory.glob(f"{kind}_*.json"))]


def file_name(kind: Kind, environment: Mapping[str, Any]) -> str:
    """Return the name of the file for a kind and device, without the suffix."""
    slug = re.sub(r"[^a-z0-9]+", "-", environment["device_name"].lower()).strip("-")
    return f"{kind}_{'cpu_' if environment['device'] == 'cpu' else ''}{slug}"


def wrong_rows_of_ours(rows: Sequence[Row]) -> list[str]:
    """Return a sentence for each row of ours that failed or disagrees."""
    return [
        f"{row.provider} {row.status} in {row.kind}/{row.case} {row.dtype} {row.direction}: {row.reason}"
        for row in rows
        if row.provider.startswith("ours") and row.status in ("failed", "disagrees")
    ]


def compare(before: Results, after: Results, *, tolerance: float = 0.1) -> list[tuple[str, str]]:
    """Compare two files row by row, and return verdicts and what they are about.

    Times are relative to each run's baseline, so that a machine that was busier in one of them does not matter; those
    of baselines, and of rows without one, are absolute. A row is slower or faster if the ratio of the medians exceeds 1
    by more than `tolerance`, a fraction, and the quartiles of the two runs do not overlap. The verdict of a row of ours
    that is slower or no longer measured is in capitals.
    """
    rows_before, rows_after = ({row.key: row for row in results.rows} for results in (before, after))
    keys = dict.fromkeys([*rows_before, *rows_after])
    return [_compare(key, rows_before.get(key), rows_after.get(key), tolerance) for key in keys]


def _compare(key: Sequence[str], before: Row | None, after: Row | None, tolerance: float) -> tuple[str, str]:
    name = f"{' '.join(key[:3])}: {key[3]}"
    reason = f" ({after.reason})" if after and after.reason else ""
    is_ours = key[3].startswith("ours")
    if before is None or before.time is None:
        return ("new", name) if after and after.time else ("unmeasured", name + reason)
    if after is None or after.time is None:
        return "LOST" if is_ours else "lost", name + reason
    large, small = after.time, before.time
    if before.speedup and after.speedup and after.provider != before.baseline:
        large, small = before.speedup, after.speedup
    factor = large.median / small.median
    lower, upper = large.lower_quartile / small.upper_quartile, large.upper_quartile / small.lower_quartile
    text = (
        f"{name}: {before.time.median * 1e3:.3g} ms -> {after.time.median * 1e3:.3g} ms, {factor:.2f} times the time "
        f"by {'time' if large is after.time else 'speedup'} ({lower:.2f} to {upper:.2f})"
    )
    if factor > 1 + tolerance and lower > 1:
        return "SLOWER" if is_ours else "slower", text
    return "faster" if factor < 1 / (1 + tolerance) and upper < 1 else "same", text
