"""Charts of times and of curves, as reproducible SVG files."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from benchmarks.cases import DIRECTIONS, Kind
from benchmarks.pages import DOCS, digits
from benchmarks.results import Results, file_name

IMAGES = DOCS / "images"

_OURS, _OTHERS = "#3f51b5", "#8d8d8d"
# Inches, of a row and between tasks.
_LINE, _GAP = 0.2, 0.12
_TITLES: Mapping[Kind, str] = {
    "operator": "Multi-scale deformable attention",
    "model": "Whole model",
    "matcher": "Hungarian matching",
    "criterion": "Matching and losses",
}


def chart(results: Results) -> str | None:
    """Return the name of the chart of a file of results, if it has one."""
    has_times = any(row.time for row in results.rows) and results.kind in _TITLES
    return f"benchmark_{file_name(results.kind, results.runs[-1]['environment'])}.svg" if has_times else None


def draw_times(results: Results, path: Path) -> None:
    """Draw median times as points, with quartiles as whiskers; the first provider of a task is labeled with it, too."""
    measured = [(row, row.time) for row in results.rows if row.time]
    starts = [index for index, (row, _) in enumerate(measured) if not index or row.task != measured[index - 1][0].task]
    height = len(measured) * _LINE + len(starts) * _GAP
    figure, (axes,) = _figure(9, height + 0.8)
    position = 0.0
    ticks: dict[float, str] = {}
    for index, (row, time) in enumerate(measured):
        position += _LINE + (_GAP if index in starts else 0)
        task = f"{row.case}, {row.dtype}, {DIRECTIONS[row.direction]}:  " if index in starts else ""
        ticks[position] = f"{task}{row.provider}"
        low, median, high = (1e3 * each for each in (time.lower_quartile, time.median, time.upper_quartile))
        color = _OURS if row.provider.startswith("ours") else _OTHERS
        whiskers = [[median - low], [high - median]]
        axes.errorbar(median, position, xerr=whiskers, color=color, marker="o", markersize=4, capsize=2)
        factor = f" ({row.speedup.median:.2g} ×)" if row.speedup and row.provider != row.baseline else ""
        place = {"xytext": (6, 0), "textcoords": "offset points", "va": "center", "fontsize": 8}
        axes.annotate(f"{digits(median)}{factor}", (high, position), **place)
    axes.set_yticks(list(ticks), ticks.values(), fontsize=8)
    axes.set_ylim(position + _LINE, 0)
    # Leaves space for the annotations of the slowest.
    axes.margins(x=0.15)
    axes.set(xlabel=f"milliseconds, with quartiles (×: times as fast as {results.rows[0].baseline})")
    _save(figure, f"{_TITLES[results.kind]} on {results.place}", path)


def draw_curves(
    curves: Mapping[str, Mapping[int, Mapping[str, float]]],
    panels: Mapping[str, tuple[str, float]],
    title: str,
    path: Path,
) -> None:
    """Draw metrics over the epochs.

    Args:
        curves: For every name, metrics by epoch; "A, b" is drawn in the color of "A".
        panels: For every metric, the title of its panel and the value that a dotted line marks.
        title: Title of the chart.
        path: SVG file to write.
    """
    figure, all_axes = _figure(10, 5.2, len(panels))
    kinds = list(dict.fromkeys(name.partition(", ")[0] for name in curves))
    for axes, (metric, (label, mark)) in zip(all_axes, panels.items(), strict=True):
        dashes = {kind: cycle(("-", "--", ":")) for kind in kinds}
        for name, curve in curves.items():
            kind = name.partition(", ")[0]
            style = {"color": f"C{kinds.index(kind)}", "linestyle": next(dashes[kind])}
            epochs = sorted(curve)
            axes.plot(epochs, [curve[epoch][metric] for epoch in epochs], label=name, **style)
        axes.axhline(mark, color="#757575", linewidth=1, linestyle=":")
        axes.set_ylim(bottom=0)
        axes.grid(axis="y", alpha=0.3)
        axes.set(xlabel="epochs", title=label)
    labels = all_axes[0].get_legend_handles_labels()
    figure.legend(*labels, loc="outside lower center", ncols=4, frameon=False)
    _save(figure, title, path)


def _figure(width: float, height: float, panels: int = 1) -> tuple[Any, Sequence[Any]]:
    """Return a figure, and its panels side by side, with logarithmic horizontal axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    all_axes = figure.subplots(1, panels, squeeze=False)[0]
    for axes in all_axes:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda number, _: f"{number:g}")
        axes.grid(axis="x", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, all_axes


def _save(figure: Any, title: str, path: Path) -> None:
    """Add a title, and write the file."""
    import matplotlib as mpl

    figure.suptitle(title, x=0.01, ha="left")
    path.parent.mkdir(parents=True, exist_ok=True)
    # The same numbers give the same file, to the byte.
    with mpl.rc_context({"svg.hashsalt": "deformdetr", "svg.fonttype": "none"}):
        figure.savefig(path, metadata={"Date": None})
