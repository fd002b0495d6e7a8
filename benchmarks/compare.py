"""Compare two files of results."""

from typing import Literal, NamedTuple, TypeAlias

from benchmarks.results import Results, Row, Spread

Verdict: TypeAlias = Literal["same", "faster", "slower", "lost", "new", "unmeasured"]


class Change(NamedTuple):
    """How a row of one file differs from that of the other.

    Attributes:
        by: Whether speedups or times were compared.
        factor: How many times as slow the row has become.
        lower: The factor by the quartiles that make it smallest.
        upper: The factor by the quartiles that make it largest.
    """

    before: Row | None
    after: Row | None
    verdict: Verdict
    by: str = "time"
    factor: float | None = None
    lower: float | None = None
    upper: float | None = None

    def __str__(self) -> str:
        row = self.after or self.before
        name = f"{self.verdict:>10}  {row.case} {row.dtype} {row.direction}: {row.provider}" if row else self.verdict
        if self.factor is None or not (self.before and self.after and self.before.time and self.after.time):
            return f"{name} ({self.after.reason})" if self.after and self.after.reason else name
        times = " -> ".join(f"{row.time.median * 1e3:.3g} ms" for row in (self.before, self.after))
        return f"{name}: {times}, {self.factor:.2f} times the time by {self.by} ({self.lower:.2f} to {self.upper:.2f})"


def compare(before: Results, after: Results, *, tolerance: float, by: Literal["speedup", "time"]) -> list[Change]:
    """Compare two files row by row.

    By `speedup`, times are relative to each run's baseline, so that a machine that was busier in one of them does not
    matter. Baselines themselves, and rows without one, are compared by time. A row is slower or faster if the ratio of
    the medians exceeds 1 by more than `tolerance`, a fraction, and the quartiles of the two runs do not overlap.
    """
    rows_before, rows_after = ({row.key: row for row in results.rows} for results in (before, after))
    keys = dict.fromkeys([*rows_before, *rows_after])
    return [_compare(rows_before.get(key), rows_after.get(key), tolerance, by) for key in keys]


def regressions(changes: list[Change]) -> list[Change]:
    """Return the changes of our rows that got slower or are no longer measured."""
    return [each for each in changes if each.verdict in ("slower", "lost") and each.before and each.before.is_ours]


def _compare(before: Row | None, after: Row | None, tolerance: float, by: Literal["speedup", "time"]) -> Change:
    if before is None or before.time is None:
        return Change(before, after, "new" if after and after.time else "unmeasured")
    if after is None or after.time is None:
        return Change(before, after, "lost")
    by = (
        "speedup"
        if by == "speedup" and before.speedup and after.speedup and after.provider != before.baseline
        else "time"
    )
    small, large = (after.speedup, before.speedup) if by == "speedup" else (before.time, after.time)
    factor, lower, upper = _ratios(large, small)
    verdict: Verdict = "same"
    if factor > 1 + tolerance and lower > 1:
        verdict = "slower"
    elif factor < 1 / (1 + tolerance) and upper < 1:
        verdict = "faster"
    return Change(before, after, verdict, by, factor, lower, upper)


def _ratios(large: Spread, small: Spread) -> tuple[float, float, float]:
    return (
        large.median / small.median,
        large.lower_quartile / small.upper_quartile,
        large.upper_quartile / small.lower_quartile,
    )
