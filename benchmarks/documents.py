"""The tables of `docs/benchmarks.md` and of the README, and all generated parts of all pages."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import convergence, exported, flops, machine_code, trained
from benchmarks.cases import DIRECTIONS, KINDS
from benchmarks.measure import PRODUCT_DTYPES
from benchmarks.pages import DOCS, README, RESULTS, Parts, digits, markdown
from benchmarks.pictures import chart
from benchmarks.results import Results, Row, Spread, load_all

PAGE = DOCS / "benchmarks.md"

# The tasks that the README shows.
_HIGHLIGHTS = {
    "encoder_480x640_b1": ("forward", "forward_backward"),
    "decoder300_800x1216_b2": ("forward", "forward_backward"),
    "decoder300_640x640_b4": ("forward", "forward_backward"),
    "multi_scale_640x800_b1": ("forward", "training_step"),
    "few_b16": ("forward", "forward_backward"),
}


def all_parts(directory: Path = RESULTS) -> Parts:
    """Return every generated part of every page."""
    of_kind = {kind: load_all(directory, kind) for kind in KINDS}
    parts = {(PAGE, kind): _sections(of_kind[kind]) for kind in ("overhead", "model", "matcher", "criterion")}
    for device in ("cpu", "cuda"):
        on_device = [each for each in of_kind["operator"] if each.runs[-1]["environment"]["device"] == device]
        parts[PAGE, f"operator {device}"] = _sections(on_device)
    parts[README, "benchmarks"] = summary_table([each for results in of_kind.values() for each in results])
    for module in (convergence, exported, flops, machine_code, trained):
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
    for dtype in PRODUCT_DTYPES:
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


def _sections(all_results: Sequence[Results]) -> str:
    """Return chart, provenance and table of every file of results."""
    sections = []
    for results in all_results:
        name = chart(results)
        sections += [f"![Times on {results.place}](images/{name})"] if name else []
        sections += [*map(provenance, results.runs), long_table(results)]
    return "\n\n".join(sections) or "Not measured."


def _operations(rows: Sequence[Row]) -> str:
    """Return the floating-point operations of every call, and those per second of the matrix products beside it."""
    counted = [row for row in rows if row.flops]
    counts = dict.fromkeys(f"{row.case} {DIRECTIONS[row.direction]} {(row.flops or 0) / 1e9:,.0f}" for row in counted)
    reached = []
    for dtype in PRODUCT_DTYPES if counted else ():
        speeds = [row.product_flops[dtype] / 1e9 for row in counted]
        reached.append(f"{min(speeds):,.0f} to {max(speeds):,.0f} in {dtype}")
    products = " and ".join(reached)
    return f"GFLOP of a call: {', '.join(counts)}. GFLOP/s of the best matrix products: {products}" if counted else ""


def _absent(rows: Sequence[Row]) -> str:
    """Return the providers that could not run and why, with their cases unless they are all."""
    cases: dict[str, set[str]] = {}
    for row in rows:
        if row.status == "unavailable":
            cases.setdefault(f"`{row.provider}` ({row.reason})", set()).add(row.case)
    all_cases = {row.case for row in rows}
    return "; ".join(
        provider if where == all_cases else f"{provider} in {', '.join(sorted(where))}"
        for provider, where in cases.items()
    )


def _time(row: Row, scale: float) -> str:
    return _spread(row.time, lambda seconds: digits(seconds * scale)) if row.time else f"{row.status}: {row.reason}"


def _speedup(row: Row) -> str:
    if row.provider == row.baseline and row.speedup:
        return "1"
    return _spread(row.speedup, "{:.2f}".format) if row.speedup else ""


def _spread(spread: Spread, write: Callable[[float], str]) -> str:
    """Return the median and, in parentheses, the quartiles."""
    return f"{write(spread.median)} ({write(spread.lower_quartile)} to {write(spread.upper_quartile)})"


def _share_of_products(row: Row, dtype: str) -> str:
    """Return the call's floating-point operations per second, divided by those of a large matrix product."""
    if row.time is None or row.flops is None or dtype not in row.product_flops:
        return ""
    return f"{row.flops / row.time.median / row.product_flops[dtype]:.0%}"
