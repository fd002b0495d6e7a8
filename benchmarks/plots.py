"""Charts of stored results."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.results import Results, Row, file_name
from benchmarks.tables import milliseconds, place

# Ours in colour, the rest in greys: what a reader looks for.
_OURS = ("#3f51b5", "#7986cb", "#9fa8da", "#c5cae9")
_OTHERS = ("#616161", "#8d8d8d", "#ababab", "#c4c4c4", "#d6d6d6", "#e3e3e3")
_LINE, _GAP = 0.17, 0.2
_MOST_TASKS = 12
_TITLES = {
    "operator": "Multi-scale deformable attention",
    "model": "Whole model",
    "matcher": "Hungarian matching",
    "criterion": "Matching and losses",
}
_DIRECTIONS = {"forward_backward": "forward + backward", "training_step": "training step"}


def charts(results: Results) -> dict[str, list[Row]]:
    """Give the rows of every chart by its file's name: one, or where tasks are many one per dtype and direction."""
    rows = [row for row in results.rows if row.time is not None]
    name = f"benchmark_{Path(file_name(results.kind, results.environment)).stem}"
    if len({row.key[:3] for row in rows}) <= _MOST_TASKS:
        return {f"{name}.svg": rows} if rows else {}
    parted: dict[str, list[Row]] = {}
    for row in rows:
        parted.setdefault(f"{name}_{row.dtype}_{row.direction}.svg", []).append(row)
    return parted


def write_charts(results: Results, directory: Path) -> list[Path]:
    """Draw the charts of a file of results."""
    paths = []
    for name, rows in charts(results).items():
        paths.append(directory / name)
        plot(rows, f"{_TITLES[results.kind]} on {place(results)}", paths[-1])
    return paths


def plot(rows: Sequence[Row], title: str, path: Path) -> None:
    """Draw median times as points, a group per task, and quartiles as whiskers; the suffix gives the format."""
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(_label(row), []).append(row)
    colours = _colours(rows)
    height = sum(len(group) * _LINE + _GAP for group in groups.values())
    figure = Figure(figsize=(9, 1.4 + 1.2 * height), layout="constrained")
    axes = figure.subplots()
    ticks = []
    top = 0.0
    for group in groups.values():
        for index, row in enumerate(group):
            _point(axes, top + index * _LINE, row, colours[row.provider])
        ticks.append(top + (len(group) - 1) * _LINE / 2)
        top += len(group) * _LINE + _GAP
    axes.set_yticks(ticks, groups.keys())
    axes.set_ylim(top - _GAP, -_LINE)
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    # Room for the numbers beside the slowest.
    axes.set_xlim(low, high * (high / low) ** 0.25)
    axes.xaxis.set_major_formatter(lambda number, _: f"{number:g}")
    axes.grid(axis="x", alpha=0.3)
    axes.set(xlabel=f"milliseconds, with quartiles (×: times as fast as {rows[0].baseline})")
    axes.set_title(title, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    handles = [Line2D([], [], color=colour, marker="o", label=name) for name, colour in colours.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The same numbers give the same file, to the byte.
    with mpl.rc_context({"svg.hashsalt": "deformdetr", "svg.fonttype": "none"}):
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def _point(axes: Any, position: float, row: Row, colour: str) -> None:
    if row.time is None:
        raise ValueError(f"{row.provider} has no time in {row.case}")
    median, lower, upper = (each * 1e3 for each in (row.time.median, row.time.lower_quartile, row.time.upper_quartile))
    whiskers = [[median - lower], [upper - median]]
    axes.errorbar(median, position, xerr=whiskers, color=colour, marker="o", markersize=6, linewidth=1.5, capsize=3)
    factor = f" ({row.speedup.median:.2g} ×)" if row.speedup and row.provider != row.baseline else ""
    axes.annotate(
        f"{milliseconds(row.time.median)}{factor}",
        (max(median, upper), position),
        xytext=(5, 0),
        textcoords="offset points",
        va="center",
        fontsize=8,
    )


def _label(row: Row) -> str:
    dtype = "" if row.dtype == "float32" else f", {row.dtype}"
    return f"{row.case}{dtype}\n{_DIRECTIONS.get(row.direction, row.direction)}"


def _colours(rows: Sequence[Row]) -> dict[str, str]:
    """Give every provider a shade; where they are more than there are shades, the last ones share one."""
    names = list(dict.fromkeys(row.provider for row in rows))
    shades: dict[str, str] = {}
    for kin, scale in (
        ([name for name in names if name.startswith("ours")], _OURS),
        ([name for name in names if not name.startswith("ours")], _OTHERS),
    ):
        shades |= {name: scale[min(index, len(scale) - 1)] for index, name in enumerate(kin)}
    return shades
