"""The tables of `docs/benchmarks.md` and of the README, from stored results."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from benchmarks.cases import KINDS, OPERATOR_CASES, Device, Direction, Dtype
from benchmarks.floors import BANDWIDTH, floor_bytes
from benchmarks.pages import RESULTS, ROOT, digits, markdown
from benchmarks.pictures import charts
from benchmarks.results import Results, Row, Run, load_all

PAGE = ROOT / "docs" / "benchmarks.md"
README = ROOT / "README.md"
IMAGES = ROOT / "docs" / "images"

_NOT_MEASURED = "Not measured."
_DIRECTIONS: dict[Direction, str] = {
    "forward": "forward",
    "backward": "backward",
    "forward_backward": "forward and backward",
    "training_step": "training step",
}
_PRODUCTS: tuple[Dtype, ...] = ("float32", "bfloat16")
# The cases, dtypes and directions that the README shows.
_HIGHLIGHTS = {
    (case, dtype, direction)
    for cases, dtype, directions in (
        ("encoder_480x640_b1 decoder300_800x1216_b2 decoder300_640x640_b4", "float32", "forward forward_backward"),
        ("encoder_800x1333_b2 decoder300_800x1333_b4", "bfloat16", "forward backward"),
        ("multi_scale_640x800_b1", "float32", "forward training_step"),
        ("few_b16", "float32", "forward forward_backward"),
    )
    for case in cases.split()
    for direction in directions.split()
}


def parts(directory: Path = RESULTS) -> dict[Path, dict[str, str]]:
    """Return every generated part of the pages, by page and name."""
    of_kind = {kind: load_all(directory, kind) for kind in KINDS}
    operator = of_kind.pop("operator")
    page = {
        "operator cpu": _sections(_on_device(operator, "cpu")),
        "operator cuda": _sections(_on_device(operator, "cuda")),
        "floors": floor_table(),
    }
    page |= {kind: _sections(results) for kind, results in of_kind.items()}
    summary = (
        f"{summary_table([*operator, *(each for results in of_kind.values() for each in results)])}\n\n"
        "Medians of alternating runs in one process. `docs/benchmarks.md` has commands, versions, spread and all other "
        "comparisons, from the files in `benchmarks/results/`."
    )
    return {PAGE: page, README: {"benchmarks": summary}}


def long_table(results: Results) -> str:
    """Return times with quartiles, ratios and memory of all rows, and why some providers were not measured."""
    scale, unit = (1e6, "µs") if results.kind == "overhead" else (1e3, "ms")
    device = results.environment.device_name
    columns: dict[str, Callable[[Row], str]] = {
        "provider": lambda row: row.provider,
        f"time (quartiles), {unit}": lambda row: _time(row, scale),
        "times as fast (quartiles)": _speedup,
        "peak memory, MB": lambda row: "" if row.peak_bytes is None else f"{row.peak_bytes / 1e6:.1f}",
        "error": lambda row: "" if row.error is None else f"{row.error:.1e}",
    }
    # Left out where no row has a number.
    optional: dict[str, Callable[[Row], str]] = {
        f"per call from Python, {unit}": lambda row: digits(row.wall_time.median * scale) if row.wall_time else "",
        "share of the floor": lambda row: _percent(share_of_floor(row, device)),
        **{
            f"share of {dtype} products": lambda row, dtype=dtype: _percent(row.share_of_products(dtype))
            for dtype in _PRODUCTS
        },
    }
    rows = [row for row in results.rows if row.status != "unavailable"]
    tasks = [f"{row.case}, {row.dtype}, {_DIRECTIONS[row.direction]}" for row in rows]
    cells = {"case": ["" if index and tasks[index - 1] == task else task for index, task in enumerate(tasks)]}
    cells |= {head: [cell(row) for row in rows] for head, cell in columns.items()}
    found = {head: [cell(row) for row in rows] for head, cell in optional.items()}
    cells |= {head: column for head, column in found.items() if any(column)}
    absent = _absent(results.rows)
    notes = "; ".join(dict.fromkeys(f"`{row.provider}`: {row.note}" for row in results.rows if row.note))
    below = [f"Not measured: {absent}" if absent else "", _operations(rows), notes]
    table = markdown(list(cells), zip(*cells.values(), strict=True), left=2)
    return "\n\n".join([table, *(f"{text}." for text in below if text)])


def share_of_floor(row: Row, device_name: str) -> float | None:
    """Return the lower bound of the operator's time as a share of the time, for devices of known bandwidth."""
    case = next((case for case in OPERATOR_CASES if case.name == row.case), None)
    if row.kind != "operator" or row.time is None or case is None or device_name not in BANDWIDTH:
        return None
    floor = floor_bytes(case, row.dtype, row.direction, fused=row.provider.startswith("ours_fused"))
    return floor / BANDWIDTH[device_name] / row.time.median


def floor_table() -> str:
    """Return the lower bounds of the operator's time for all cases of GPUs, in microseconds."""
    directions: tuple[Direction, ...] = ("forward", "backward")
    heads = ["case", "dtype", *(f"{direction}{kind}, µs" for kind in ("", " from offsets") for direction in directions)]
    return markdown(
        heads,
        (
            [case.name, dtype]
            + [
                f"{floor_bytes(case, dtype, direction, fused=fused) / BANDWIDTH['NVIDIA H200'] * 1e6:.1f}"
                for fused in (False, True)
                for direction in directions
            ]
            for case in OPERATOR_CASES
            for dtype in case.dtypes.cuda
        ),
        left=2,
    )


def summary_table(all_results: Iterable[Results]) -> str:
    """Return our times beside the baselines', for the tasks that the README shows."""
    rows = [
        [
            f"{results.kind} {row.case}, {row.dtype}, {_DIRECTIONS[row.direction]}",
            results.place,
            f"{digits(baseline.time.median * 1e3)} ({row.baseline})",
            digits(row.time.median * 1e3),
            f"{row.speedup.median:.2f}",
        ]
        for results in all_results
        for row in results.rows
        if row.provider == "ours" and row.key[:3] in _HIGHLIGHTS and row.time and row.speedup
        for baseline in [results.row(*row.key[:3], row.baseline)]
        if baseline and baseline.time
    ]
    return (
        markdown(["what", "where", "baseline, ms", "ours, ms", "times as fast"], rows, left=2)
        if rows
        else _NOT_MEASURED
    )


def provenance(run: Run) -> str:
    """Return the machine, versions, commit, seed and command of a run."""
    environment = run.environment
    versions = ", ".join(f"{name} {number.split('+')[0]}" for name, number in environment.versions.items())
    dirty = " with uncommitted changes" if environment.dirty else ""
    threads = f", {environment.threads} of {environment.cores} cores" if environment.device == "cpu" else ""
    unfinished = "" if run.complete else " It was interrupted."
    return (
        f"{environment.device_name}{threads}; {versions}; commit {environment.commit}{dirty}; {run.date}, seed "
        f"{run.seed}: `{run.command}`.{unfinished}"
    )


def _on_device(all_results: Sequence[Results], device: Device) -> list[Results]:
    return [results for results in all_results if results.environment.device == device]


def _sections(all_results: Sequence[Results]) -> str:
    """Return charts, provenance and table of every file of results."""
    sections = []
    for results in all_results:
        sections += [f"![Times on {results.place}](images/{name})" for name in charts(results)]
        sections += [*map(provenance, results.runs), long_table(results)]
    return "\n\n".join(sections) or _NOT_MEASURED


def _operations(rows: Sequence[Row]) -> str:
    """Return the floating-point operations of every call, and those per second of the matrix products beside it."""
    counts = {f"{row.case} {_DIRECTIONS[row.direction]} {row.flops / 1e9:,.0f}": None for row in rows if row.flops}
    speeds = {
        dtype: [row.product_flops[dtype] / 1e9 for row in rows if dtype in row.product_flops] for dtype in _PRODUCTS
    }
    reached = " and ".join(f"{min(all_):,.0f} to {max(all_):,.0f} in {dtype}" for dtype, all_ in speeds.items() if all_)
    return f"GFLOP of a call: {', '.join(counts)}. GFLOP/s of the best matrix products: {reached}" if counts else ""


def _absent(rows: Sequence[Row]) -> str:
    """Return the providers that could not run and why, with their cases unless they are all."""
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


def _time(row: Row, scale: float) -> str:
    if row.time is None:
        return f"{row.status}: {row.reason}"
    median, *quartiles = (
        digits(each * scale) for each in (row.time.median, row.time.lower_quartile, row.time.upper_quartile)
    )
    return f"{median} ({' to '.join(quartiles)})"


def _speedup(row: Row) -> str:
    if row.speedup is None:
        return ""
    if row.provider == row.baseline:
        return "1"
    return f"{row.speedup.median:.2f} ({row.speedup.lower_quartile:.2f} to {row.speedup.upper_quartile:.2f})"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"
