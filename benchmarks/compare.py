"""Two files of results side by side."""

from typing import Literal, NamedTuple, TypeAlias

from benchmarks.results import Results, Row, Spread

Verdict: TypeAlias = Literal["same", "faster", "slower", "lost", "new", "unmeasured"]


class Change(NamedTuple):
    """What became of one provider's row.

    `factor` is how many times as slow it is now, by what is compared; `lower` and `upper` take the quartiles of both
    runs at their worst.
    """

    key: tuple[str, str, str, str]
    before: Row | None
    after: Row | None
    by: str
    factor: float | None
    lower: float | None
    upper: float | None
    verdict: Verdict


def compare(before: Results, after: Results, *, tolerance: float, by: Literal["speedup", "time"]) -> list[Change]:
    """Compare row by row.

    By `speedup` the baseline of each run stands for the machine, which may have been busier in one of them; rows
    without one, and the baselines themselves, are compared by their times. A row is slower or faster where the median
    and the middle halves of both runs say so: the first by more than the tolerance, a fraction, the others at all.
    """
    rows_before, rows_after = ({row.key: row for row in results.rows} for results in (before, after))
    keys = dict.fromkeys([*rows_before, *rows_after])
    return [_change(key, rows_before.get(key), rows_after.get(key), tolerance, by) for key in keys]


def regressions(changes: list[Change]) -> list[Change]:
    """Give the rows of ours that got slower, or are no longer measured."""
    return [
        change
        for change in changes
        if change.verdict in ("slower", "lost") and change.before is not None and change.before.is_ours
    ]


def describe(change: Change) -> str:
    """Say in one line what changed."""
    case, dtype, direction, provider = change.key
    name = f"{case} {dtype} {direction}: {provider}"
    if change.factor is None:
        reason = change.after.reason if change.after and change.after.reason else ""
        return f"{change.verdict:>10}  {name}{f' ({reason})' if reason else ''}"
    times = " -> ".join(_milliseconds(row) for row in (change.before, change.after))
    spread = f"{change.lower:.2f} to {change.upper:.2f}"
    return f"{change.verdict:>10}  {name}: {times}, {change.factor:.2f} times the time by {change.by} ({spread})"


def _change(
    key: tuple[str, str, str, str],
    before: Row | None,
    after: Row | None,
    tolerance: float,
    by: Literal["speedup", "time"],
) -> Change:
    if before is None or before.time is None:
        is_new = after is not None and after.time is not None
        return Change(key, before, after, by, None, None, None, "new" if is_new else "unmeasured")
    if after is None or after.time is None:
        return Change(key, before, after, by, None, None, None, "lost")
    if by == "speedup" and before.speedup and after.speedup and key[3] != before.baseline:
        factor, lower, upper = _factors(after.speedup, before.speedup)
    else:
        by = "time"
        factor, lower, upper = _factors(before.time, after.time)
    verdict: Verdict = "same"
    if factor > 1 + tolerance and lower > 1:
        verdict = "slower"
    elif factor < 1 / (1 + tolerance) and upper < 1:
        verdict = "faster"
    return Change(key, before, after, by, factor, lower, upper, verdict)


def _factors(small: Spread, large: Spread) -> tuple[float, float, float]:
    """Divide the second by the first: medians, and quartiles both ways."""
    return (
        large.median / small.median,
        large.lower_quartile / small.upper_quartile,
        large.upper_quartile / small.lower_quartile,
    )


def _milliseconds(row: Row | None) -> str:
    return f"{row.time.median * 1e3:.3g} ms" if row and row.time else "-"
