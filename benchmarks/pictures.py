"""Charts of times and of curves, as reproducible SVG files."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from benchmarks.cases import DIRECTIONS, Kind
from benchmarks.pages import DOCS, digits
from benchmarks.results import Results, Row, file_name

IMAGES = DOCS / "images"

# Of providers: ours in color, all others in gray.
_OURS = ("#3f51b5", "#7986cb", "#9fa8da", "#b3bce6", "#c5cae9")
_OTHERS = ("#616161", "#8d8d8d", "#ababab", "#c4c4c4")
_LINE, _GAP = 0.17, 0.2
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
    """Draw median times as points, grouped by task, with quartiles as whiskers."""
    groups: dict[str, list[Row]] = {}
    for row in results.rows:
        if row.time:
            dtype = "" if row.dtype == "float32" else f", {row.dtype}"
            groups.setdefault(f"{row.case}{dtype}\n{DIRECTIONS[row.direction]}", []).append(row)
    providers = dict.fromkeys(row.provider for group in groups.values() for row in group)
    ours, others = cycle(_OURS), cycle(_OTHERS)
    colors = {name: next(ours if name.startswith("ours") else others) for name in providers}
    height = sum(len(group) * _LINE + _GAP for group in groups.values())
    figure, (axes,) = _figure(9, 1.4 + 1.2 * height)
    ticks = []
    top = 0.0
    for group in groups.values():
        for index, row in enumerate(group):
            _draw_point(axes, top + index * _LINE, row, colors[row.provider])
        ticks.append(top + (len(group) - 1) * _LINE / 2)
        top += len(group) * _LINE + _GAP
    axes.set_yticks(ticks, groups.keys())
    axes.set_ylim(top - _GAP, -_LINE)
    low, high = axes.get_xlim()
    # Leaves space for the labels of the slowest.
    axes.set_xlim(low, high * (high / low) ** 0.25)
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
    _save(figure, title, path)


def _draw_point(axes: Any, position: float, row: Row, color: str) -> None:
    if row.time is None:
        raise ValueError(f"{row.provider} has no time in {row.case}")
    median, lower, upper = (each * 1e3 for each in (row.time.median, row.time.lower_quartile, row.time.upper_quartile))
    whiskers = [[median - lower], [upper - median]]
    axes.errorbar(median, position, xerr=whiskers, color=color, marker="o", capsize=3, label=row.provider)
    factor = f" ({row.speedup.median:.2g} ×)" if row.speedup and row.provider != row.baseline else ""
    text, place = f"{digits(median)}{factor}", (max(median, upper), position)
    axes.annotate(text, place, xytext=(5, 0), textcoords="offset points", va="center", fontsize=8)


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
    """Add a title and one legend for all panels, and write the file."""
    import matplotlib as mpl

    handles, names = figure.axes[0].get_legend_handles_labels()
    by_name = dict(zip(names, handles, strict=True))
    figure.legend(by_name.values(), by_name.keys(), loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle(title, x=0.01, ha="left")
    path.parent.mkdir(parents=True, exist_ok=True)
    # The same numbers give the same file, to the byte.
    with mpl.rc_context({"svg.hashsalt": "deformdetr", "svg.fonttype": "none"}):
        figure.savefig(path, metadata={"Date": None})
