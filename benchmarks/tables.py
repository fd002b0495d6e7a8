"""Tables of the pages, written from stored results."""

from collections.abc import Iterable, Sequence

from benchmarks.cases import OPERATOR_CASES, Direction, Dtype, OperatorCase
from benchmarks.floors import BANDWIDTH, floor_seconds
from benchmarks.results import Results, Row, Run

NOT_MEASURED = "not measured"
_H200 = BANDWIDTH["NVIDIA H200"]
_DIRECTIONS = {
    "forward": "forward",
    "backward": "backward",
    "forward_backward": "forward and backward",
    "training_step": "training step",
}
# What the README shows of each kind: case, dtype and direction.
_HIGHLIGHTS = {
    ("encoder_480x640_b1", "float32", "forward"),
    ("encoder_480x640_b1", "float32", "forward_backward"),
    ("decoder300_800x1216_b2", "float32", "forward"),
    ("decoder300_800x1216_b2", "float32", "forward_backward"),
    ("decoder300_640x640_b4", "float32", "forward"),
    ("decoder300_640x640_b4", "float32", "forward_backward"),
    ("encoder_800x1333_b2", "bfloat16", "forward"),
    ("encoder_800x1333_b2", "bfloat16", "backward"),
    ("decoder300_800x1333_b4", "bfloat16", "forward"),
    ("decoder300_800x1333_b4", "bfloat16", "backward"),
    ("multi_scale_640x800_b1", "float32", "forward"),
    ("multi_scale_640x800_b1", "float32", "training_step"),
    ("few_b16", "float32", "forward"),
    ("few_b16", "float32", "forward_backward"),
}


def provenance(results: Results) -> str:
    """Say where numbers come from, a paragraph per run."""
    return "\n\n".join(_describe(run) for run in results.runs)


def long_table(results: Results) -> str:
    """Give times with quartiles, what they are to the baseline and memory; and why some were not measured."""
    has_wall = any(row.wall_time for row in results.rows)
    heads = [
        "case",
        "provider",
        "time (quartiles), ms",
        *(["per call from Python, ms"] if has_wall else []),
        "times as fast (quartiles)",
        "peak memory, MB",
        "error",
    ]
    body = []
    last = ""
    for row in results.rows:
        if row.status == "unavailable":
            continue
        wall = "" if row.wall_time is None else milliseconds(row.wall_time.median)
        task = f"{row.case}, {row.dtype}, {_DIRECTIONS[row.direction]}"
        body.append(
            [
                "" if task == last else task,
                row.provider,
                _time(row),
                *([wall] if has_wall else []),
                _speedup(row),
                "" if row.peak_bytes is None else f"{row.peak_bytes / 1e6:.1f}",
                "" if row.error is None else f"{row.error:.1e}",
            ]
        )
        last = task
    notes = "; ".join(dict.fromkeys(f"`{row.provider}`: {row.note}" for row in results.rows if row.note))
    absent = _absent(results.rows)
    below = [f"{text}." for text in (f"Not measured: {absent}" if absent else "", notes) if text]
    return "\n\n".join([markdown(heads, body), *below])


def floor_table(measured: Results | None) -> str:
    """Give every case of GPUs with its floors and, where one was measured, our times and their shares of the floors."""
    heads = ["case", "direction", "floor, µs", "ours, µs", "share", "floor of the fused, µs", "ours_fused, µs", "share"]
    body = [
        [
            f"{case.name}, {dtype}",
            _DIRECTIONS[direction],
            *(
                cell
                for provider in ("ours", "ours_fused")
                for cell in (
                    _microseconds(floor_seconds(case, dtype, direction, _H200, fused=provider == "ours_fused")),
                    *_reached(case, dtype, direction, provider, measured),
                )
            ),
        ]
        for case in OPERATOR_CASES
        if "cuda" in case.devices
        for dtype in case.cuda_dtypes
        for direction in case.directions
        if direction != "forward_backward"
    ]
    return markdown(heads, body)


def summary_table(all_results: Sequence[Results]) -> str:
    """Give our times beside the baselines', for the tasks that the README shows."""
    heads = ["what", "where", "baseline, ms", "ours, ms", "times as fast"]
    body = [
        [
            f"{results.kind} {row.case}, {row.dtype}, {_DIRECTIONS[row.direction]}",
            place(results),
            f"{milliseconds(baseline.time.median)} ({row.baseline})",
            milliseconds(row.time.median),
            f"{row.speedup.median:.2f}",
        ]
        for results in all_results
        for row in results.rows
        if row.provider == "ours" and row.key[:3] in _HIGHLIGHTS and row.time and row.speedup
        for baseline in [results.row(*row.key[:3], row.baseline)]
        if baseline and baseline.time
    ]
    return markdown(heads, body) if body else f"{NOT_MEASURED.capitalize()}."


def place(results: Results) -> str:
    """Name the device, and on CPUs the number of threads."""
    environment = results.environment
    threads = f", {environment.threads} thread{'s' if environment.threads > 1 else ''}"
    return environment.device_name + (threads if environment.device == "cpu" else "")


def markdown(heads: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """Write a table with numbers, which are in all but the first two columns, to the right."""
    rule = ["---" if index < 2 else "---:" for index in range(len(heads))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [list(heads), rule, *body])


def milliseconds(seconds: float) -> str:
    """Give three digits that count."""
    number = seconds * 1e3
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def _microseconds(seconds: float) -> str:
    return f"{seconds * 1e6:.1f}"


def _describe(run: Run) -> str:
    environment = run.environment
    versions = ", ".join(f"{name} {number.split('+')[0]}" for name, number in environment.versions.items())
    dirty = " with uncommitted changes" if environment.dirty else ""
    threads = f", {environment.threads} of {environment.cores} cores" if environment.device == "cpu" else ""
    unfinished = "" if run.complete else " It was interrupted."
    return (
        f"{environment.device_name}{threads}; {versions}; commit {environment.commit}{dirty}; {run.date}, seed "
        f"{run.seed}: `{run.command}`.{unfinished}"
    )


def _absent(rows: Sequence[Row]) -> str:
    """Name those that could not run and why, and the cases unless they are all."""
    all_cases = {row.case for row in rows}
    cases: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row.status == "unavailable":
            cases.setdefault((row.provider, row.reason), []).append(row.case)
    providers: dict[tuple[str, str], list[str]] = {}
    for (provider, reason), where in cases.items():
        only = "" if set(where) == all_cases else f" in {', '.join(dict.fromkeys(where))}"
        providers.setdefault((only, reason), []).append(f"`{provider}`")
    return "; ".join(f"{', '.join(names)}{only} ({reason})" for (only, reason), names in providers.items())


def _time(row: Row) -> str:
    if row.time is None:
        return f"{row.status}: {row.reason}"
    quartiles = " to ".join(milliseconds(each) for each in (row.time.lower_quartile, row.time.upper_quartile))
    return f"{milliseconds(row.time.median)} ({quartiles})"


def _speedup(row: Row) -> str:
    if row.speedup is None:
        return ""
    if row.provider == row.baseline:
        return "1"
    return f"{row.speedup.median:.2f} ({row.speedup.lower_quartile:.2f} to {row.speedup.upper_quartile:.2f})"


def _reached(
    case: OperatorCase, dtype: Dtype, direction: Direction, provider: str, measured: Results | None
) -> tuple[str, str]:
    """Give a provider's time and the floor's share of it, which needs the device's bandwidth to be known."""
    row = measured.row(case.name, dtype, direction, provider) if measured else None
    if row is None or measured is None:
        return NOT_MEASURED, ""
    if row.time is None:
        return f"{row.status}: {row.reason}", ""
    bandwidth = BANDWIDTH.get(measured.environment.device_name)
    if bandwidth is None:
        return _microseconds(row.time.median), ""
    floor = floor_seconds(case, dtype, direction, bandwidth, fused=provider == "ours_fused")
    return _microseconds(row.time.median), f"{floor / row.time.median:.0%}"
