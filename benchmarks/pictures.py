"""Charts: times as points with quartiles, and metrics over epochs as curves."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.cases import Kind
from benchmarks.pages import digits
from benchmarks.results import Results, Row, file_name

# Ours in color, all others in gray.
_OURS = ("#3f51b5", "#7986cb", "#9fa8da", "#c5cae9")
_OTHERS = ("#616161", "#8d8d8d", "#ababab", "#c4c4c4", "#d6d6d6", "#e3e3e3")
_LINE, _GAP = 0.17, 0.2
_MOST_TASKS = 12
_TITLES: Mapping[Kind, str] = {
    "operator": "Multi-scale deformable attention",
    "model": "Whole model",
    "matcher": "Hungarian matching",
    "criterion": "Matching and losses",
}
_DIRECTIONS = {"forward_backward": "forward + backward", "training_step": "training step"}
_GRAYS = ("#1f1f1f", "#757575", "#b0b0b0")
_COLORS = ("#3f51b5", "#00897b", "#e65100", "#ad1457", "#6a1b9a", "#29b6f6")
_DASHES = ("-", "--", "-.")


def charts(results: Results) -> dict[str, list[Row]]:
    """Return the rows of every chart by its file's name: one, or with many tasks one per dtype and direction."""
    rows = [row for row in results.rows if row.time is not None and results.kind in _TITLES]
    name = f"benchmark_{Path(file_name(results.kind, results.environment)).stem}"
    if len({row.key[:3] for row in rows}) <= _MOST_TASKS:
        return {f"{name}.svg": rows} if rows else {}
    parted: dict[str, list[Row]] = {}
    for row in rows:
        parted.setdefault(f"{name}_{row.dtype}_{row.direction}.svg", []).append(row)
    return parted


def write_charts(results: Results, directory: Path) -> list[Path]:
    """Draw the charts of a file of results, and return their paths."""
    for name, rows in charts(results).items():
        draw_times(rows, f"{_TITLES[results.kind]} on {results.place}", directory / name)
    return [directory / name for name in charts(results)]


def draw_times(rows: Sequence[Row], title: str, path: Path) -> None:
    """Draw median times as points, grouped by task, with quartiles as whiskers; the suffix sets the format."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    groups: dict[str, list[Row]] = {}
    for row in rows:
        dtype = "" if row.dtype == "float32" else f", {row.dtype}"
        label = f"{row.case}{dtype}\n{_DIRECTIONS.get(row.direction, row.direction)}"
        groups.setdefault(label, []).append(row)
    colors = _provider_colors(rows)
    height = sum(len(group) * _LINE + _GAP for group in groups.values())
    figure = Figure(figsize=(9, 1.4 + 1.2 * height), layout="constrained")
    axes = figure.subplots()
    ticks = []
    top = 0.0
    for group in groups.values():
        for index, row in enumerate(group):
            _draw_point(axes, top + index * _LINE, row, colors[row.provider])
        ticks.append(top + (len(group) - 1) * _LINE / 2)
        top += len(group) * _LINE + _GAP
    axes.set_yticks(ticks, groups.keys())
    axes.set_ylim(top - _GAP, -_LINE)
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    # Leaves space for the labels of the slowest.
    axes.set_xlim(low, high * (high / low) ** 0.25)
    axes.xaxis.set_major_formatter(lambda number, _: f"{number:g}")
    axes.grid(axis="x", alpha=0.3)
    axes.set(xlabel=f"milliseconds, with quartiles (×: times as fast as {rows[0].baseline})")
    axes.set_title(title, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    handles = [Line2D([], [], color=color, marker="o", label=name) for name, color in colors.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
    _save(figure, path)


def draw_curves(
    curves: Mapping[str, Mapping[int, Mapping[str, float]]],
    panels: Mapping[str, tuple[str, float]],
    title: str,
    path: Path,
) -> None:
    """Draw metrics over the epochs, on a logarithmic axis.

    Args:
        curves: For every name, metrics by epoch.
        panels: For every metric, the title of its panel and the value that a dotted line marks.
        title: Title of the chart.
        path: Where to write; the suffix sets the format.
    """
    from matplotlib.figure import Figure

    styles = curve_styles(list(curves))
    figure = Figure(figsize=(10, 5.2), layout="constrained")
    grid = figure.subplots(1, len(panels), squeeze=False)
    for axes, (metric, (label, mark)) in zip(grid[0], panels.items(), strict=True):
        for name, curve in curves.items():
            epochs = sorted(curve)
            axes.plot(epochs, [curve[epoch][metric] for epoch in epochs], linewidth=1.7, label=name, **styles[name])
        axes.axhline(mark, color="#757575", linewidth=1, linestyle=":")
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda number, _: f"{number:g}")
        axes.set_ylim(bottom=0)
        axes.grid(which="both", axis="x", alpha=0.2)
        axes.grid(axis="y", alpha=0.3)
        axes.set(xlabel="epochs", title=label)
        axes.spines[["top", "right"]].set_visible(False)
    handles, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle(title, x=0.01, ha="left")
    _save(figure, path)


def curve_styles(names: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return a color for every name, gray for DETRs, and a line; "A, b" is drawn in the color of "A"."""
    styles: dict[str, dict[str, str]] = {}
    kinds = {name: name.partition(", ")[0] for name in names}
    for is_detr, colors in ((True, _GRAYS), (False, _COLORS)):
        kin = list(dict.fromkeys(kind for kind in kinds.values() if kind.startswith("DETR") == is_detr))
        for name, kind in kinds.items():
            if kind in kin:
                color = colors[kin.index(kind) % len(colors)]
                dashes = _DASHES[sum(style["color"] == color for style in styles.values()) % len(_DASHES)]
                styles[name] = {"color": color, "linestyle": dashes}
    return styles


def _draw_point(axes: Any, position: float, row: Row, color: str) -> None:
    if row.time is None:
        raise ValueError(f"{row.provider} has no time in {row.case}")
    median, lower, upper = (each * 1e3 for each in (row.time.median, row.time.lower_quartile, row.time.upper_quartile))
    whiskers = [[median - lower], [upper - median]]
    axes.errorbar(median, position, xerr=whiskers, color=color, marker="o", markersize=6, linewidth=1.5, capsize=3)
    factor = f" ({row.speedup.median:.2g} ×)" if row.speedup and row.provider != row.baseline else ""
    axes.annotate(
        f"{digits(median)}{factor}",
        (max(median, upper), position),
        xytext=(5, 0),
        textcoords="offset points",
        va="center",
        fontsize=8,
    )


def _provider_colors(rows: Sequence[Row]) -> dict[str, str]:
    """Return a shade for every provider; with more providers than shades, the last ones share one."""
    names = list(dict.fromkeys(row.provider for row in rows))
    shades: dict[str, str] = {}
    for is_ours, scale in ((True, _OURS), (False, _OTHERS)):
        kin = [name for name in names if name.startswith("ours") == is_ours]
        shades |= {name: scale[min(index, len(scale) - 1)] for index, name in enumerate(kin)}
    return shades


def _save(figure: Any, path: Path) -> None:
    import matplotlib as mpl

    path.parent.mkdir(parents=True, exist_ok=True)
    # The same numbers give the same file, to the byte.
    with mpl.rc_context({"svg.hashsalt": "deformdetr", "svg.fonttype": "none"}):
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
