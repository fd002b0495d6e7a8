"""The tables of `docs/benchmarks.md` and of the README, and all generated parts of all pages."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import bccd, compat, convergence, flops, machine_code, transformers_speed
from benchmarks.cases import DIRECTIONS, KINDS, Direction, Dtype, OperatorSizes, select
from benchmarks.pages import DOCS, README, RESULTS, Parts, digits, markdown
from benchmarks.pictures import chart
from benchmarks.results import Results, Row, load_all

PAGE = DOCS / "benchmarks.md"

_NOT_MEASURED = "Not measured."
_PRODUCTS = ("float32", "bfloat16")
# The tasks that the README shows.
_HIGHLIGHTS = {
    "encoder_480x640_b1": ("forward", "forward_backward"),
    "decoder300_800x1216_b2": ("forward", "forward_backward"),
    "decoder300_640x640_b4": ("forward", "forward_backward"),
    "multi_scale_640x800_b1": ("forward", "training_step"),
    "few_b16": ("forward", "forward_backward"),
}
_ITEM_SIZE = {"float32": 4, "bfloat16": 2}
# Bytes per second, reads and writes, of a large copy on an H200.
_BANDWIDTH = 4.3e12


def all_parts(directory: Path = RESULTS) -> Parts:
    """Return every generated part of every page."""
    of_kind = {kind: load_all(directory, kind) for kind in KINDS}
    parts = {(PAGE, kind): _sections(results) for kind, results in of_kind.items() if kind != "operator"}
    for device in ("cpu", "cuda"):
        on_device = [each for each in of_kind["operator"] if each.runs[-1]["environment"]["device"] == device]
        parts[PAGE, f"operator {device}"] = _sections(on_device)
    parts[PAGE, "floors"] = floor_table()
    parts[README, "benchmarks"] = (
        f"{summary_table([each for results in of_kind.values() for each in results])}\n\n"
        "Medians of alternating runs in one process. `docs/benchmarks.md` has commands, versions, spread and all other "
        "comparisons, from the files in `benchmarks/results/`."
    )
    for module in (bccd, compat, convergence, flops, machine_code, transformers_speed):
        parts |= module.parts()
    return parts


def long_table(results: Results) -> str:
    """Return times with quartiles, ratios and memory of all rows, and why some providers were not measured."""
    scale, unit = (1e6, "µs") if results.kind == "overhead" else (1e3, "ms")
    columns: dict[str, Callable[[Row], str]] = {
        "provider": lambda row: row.provider,
        f"time (quartiles), {unit}": lambda row: _time(row, scale),
        "times as fast (quartiles)": _speedup,
        "peak memory, MB": lambda row: "" if row.peak_bytes is None else f"{row.peak_bytes / 1e6:.1f}",
        "error": lambda row: "" if row.error is None else f"{row.error:.1e}",
    }
    rows = [row for row in results.rows if row.status != "unavailable"]
    tasks = [f"{row.case}, {row.dtype}, {DIRECTIONS[row.direction]}" for row in rows]
    cells = {"case": ["" if index and tasks[index - 1] == task else task for index, task in enumerate(tasks)]}
    cells |= {head: [cell(row) for row in rows] for head, cell in columns.items()}
    for dtype in _PRODUCTS:
        shares = [_share_of_products(row, dtype) for row in rows]
        cells |= {f"share of {dtype} products": shares} if any(shares) else {}
    absent = _absent(results.rows)
    notes = "; ".join(dict.fromkeys(f"`{row.provider}`: {row.note}" for row in results.rows if row.note))
    below = [f"Not measured: {absent}" if absent else "", _operations(rows), notes]
    table = markdown(list(cells), zip(*cells.values(), strict=True), left=2)
    return "\n\n".join([table, *(f"{text}." for text in below if text)])


def summary_table(all_results: Sequence[Results]) -> str:
    """Return our times beside the baselines', for the tasks that the README shows."""
    rows = []
    for results in all_results:
        times = {row.key: row.time for row in results.rows}
        for row in results.rows:
            baseline = times.get((*row.key[:3], row.baseline))
            is_shown = row.provider == "ours" and row.direction in _HIGHLIGHTS.get(row.case, ())
            if is_shown and row.time and row.speedup and baseline:
                what = f"{results.kind} {row.case}, {row.dtype}, {DIRECTIONS[row.direction]}"
                before = f"{digits(baseline.median * 1e3)} ({row.baseline})"
                rows.append([what, results.place, before, digits(row.time.median * 1e3), f"{row.speedup.median:.2f}"])
    return markdown(["what", "where", "baseline, ms", "ours, ms", "times as fast"], rows, left=2)


def provenance(run: Mapping[str, Any]) -> str:
    """Return the machine, versions, commit, seed and command of a run."""
    environment = run["environment"]
    versions = ", ".join(f"{name} {number.split('+')[0]}" for name, number in environment["versions"].items())
    dirty = " with uncommitted changes" if environment["dirty"] else ""
    on_cpu = environment["device"] == "cpu"
    threads = f", {environment['threads']} of {environment['cores']} cores" if on_cpu else ""
    unfinished = "" if run["complete"] else " It was interrupted."
    return (
        f"{environment['device_name']}{threads}; {versions}; commit {environment['commit']}{dirty}; {run['date']}, "
        f"seed {run['seed']}: `{run['command']}`.{unfinished}"
    )


def floor_table() -> str:
    """Return lower bounds of the operator's time on a GPU for all cases, in microseconds."""
    directions: tuple[Direction, ...] = ("forward", "backward")
    heads = ["case", "dtype", *(f"{direction}{kind}, µs" for kind in ("", " from offsets") for direction in directions)]
    rows = []
    for case in select(["operator"]):
        for dtype in case.cuda:
            floors = [
                floor_bytes(case.sizes, dtype, each, fused=fused) for fused in (False, True) for each in directions
            ]
            rows.append([case.name, dtype, *(f"{floor / _BANDWIDTH * 1e6:.1f}" for floor in floors)])
    return markdown(heads, rows, left=2)


def floor_bytes(sizes: OperatorSizes, dtype: Dtype, direction: Direction, *, fused: bool = False) -> float:
    """Count the bytes that have to cross the memory bus: inputs and outputs once, locations in float32.

    Of the value, only those rows (the channels of one head at one pixel) count that are sampled, by their expected
    number if the corners are uniform in their level. The backward reads what the forward reads and the gradient of the
    output, and writes all gradients.

    Args:
        fused: Whether offsets and logits in `dtype`, and one reference point per query and level in float32, are read
            instead of locations and weights.
    """
    item = _ITEM_SIZE[dtype]
    levels = len(sizes.levels)
    queries = sizes.batch * sizes.n_queries
    samples = queries * sizes.heads * levels * sizes.points
    output = queries * sizes.heads * sizes.channels * item
    places = samples * 2 * (item if fused else 4) + samples * item
    references = queries * levels * 2 * 4 if fused else 0
    corners = 4 * queries * sizes.heads * sizes.points
    rows = [sizes.batch * sizes.heads * height * width for height, width in sizes.levels]
    # All corners miss a row with probability (1 - 1 / rows)^corners.
    sampled = sum(number * (1 - (1 - 1 / number) ** corners) for number in rows)
    forward = sampled * sizes.channels * item + places + references + output
    return forward if direction == "forward" else forward + sum(rows) * sizes.channels * item + places


def _sections(all_results: Sequence[Results]) -> str:
    """Return chart, provenance and table of every file of results."""
    sections = []
    for results in all_results:
        name = chart(results)
        sections += [f"![Times on {results.place}](images/{name})"] if name else []
        sections += [*map(provenance, results.runs), long_table(results)]
    return "\n\n".join(sections) or _NOT_MEASURED


def _operations(rows: Sequence[Row]) -> str:
    """Return the floating-point operations of every call, and those per second of the matrix products beside it."""
    counts = {f"{row.case} {DIRECTIONS[row.direction]} {row.flops / 1e9:,.0f}": None for row in rows if row.flops}
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
    lower, upper = digits(row.time.lower_quartile * scale), digits(row.time.upper_quartile * scale)
    return f"{digits(row.time.median * scale)} ({lower} to {upper})"


def _speedup(row: Row) -> str:
    if row.speedup is None:
        return ""
    if row.provider == row.baseline:
        return "1"
    return f"{row.speedup.median:.2f} ({row.speedup.lower_quartile:.2f} to {row.speedup.upper_quartile:.2f})"


def _share_of_products(row: Row, dtype: str) -> str:
    """Return the call's floating-point operations per second, divided by those of a large matrix product."""
    if row.time is None or row.flops is None or dtype not in row.product_flops:
        return ""
    return f"{row.flops / row.time.median / row.product_flops[dtype]:.0%}"
