"""What is read off curves of average precision, and how they are drawn."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

Curve: TypeAlias = Mapping[int, Mapping[str, float]]
"""Metrics by name, by the epochs after which they were measured."""

_GREYS = ("#1f1f1f", "#757575", "#b0b0b0")
_COLOURS = ("#3f51b5", "#00897b", "#e65100", "#ad1457", "#6a1b9a", "#29b6f6")
_LINES = ("-", "--", "-.")
_PANELS = {"AP": "AP", "AP_small": "AP of small objects"}


def mean_curve(runs: Sequence[Curve]) -> Curve:
    """Average runs of other seeds, as far as all of them went."""
    epochs = sorted(set.intersection(*(set(run) for run in runs)))
    return {
        epoch: {name: float(np.mean([run[epoch][name] for run in runs])) for name in runs[0][epoch]} for epoch in epochs
    }


def highest(curve: Curve, metric: str = "AP") -> tuple[int, float]:
    """Give the highest value of a metric, and the first epoch that has it."""
    epoch = max(curve, key=lambda each: (curve[each][metric], -each))
    return epoch, curve[epoch][metric]


def first_reaching(curve: Curve, value: float, metric: str = "AP") -> int | None:
    """Give the first epoch at which a metric is no less than a value, `None` if it never is."""
    return next((epoch for epoch in sorted(curve) if curve[epoch][metric] >= value), None)


def plot(curves: Mapping[str, Sequence[Curve]], targets: Mapping[str, float], title: str, path: Path) -> None:
    """Draw means of runs over the epochs, on a scale on which a tenth is the same distance everywhere.

    Args:
        curves: Runs by the name of what was trained.
        targets: By metric, the value that a dotted line marks.
        title: Of the chart.
        path: Where to write; the suffix gives the format.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    styles = _styles(list(curves))
    figure = Figure(figsize=(10, 5.2), layout="constrained")
    for axes, (metric, label) in zip(figure.subplots(1, 2), _PANELS.items(), strict=True):
        for name, runs in curves.items():
            if len(runs) > 1:
                for run in runs:
                    _line(axes, run, metric, linewidth=0.5, alpha=0.6, **styles[name])
            _line(axes, mean_curve(runs), metric, linewidth=1.7, label=name, **styles[name])
        axes.axhline(targets[metric], color="#757575", linewidth=1, linestyle=":")
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
    path.parent.mkdir(parents=True, exist_ok=True)
    # The same numbers give the same file, to the byte.
    with mpl.rc_context({"svg.hashsalt": "deformdetr", "svg.fonttype": "none"}):
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def _line(axes: Any, curve: Curve, metric: str, **style: Any) -> None:
    epochs = sorted(curve)
    axes.plot(epochs, [curve[epoch][metric] for epoch in epochs], **style)


def _styles(names: Sequence[str]) -> dict[str, dict[str, str]]:
    """Give every name a colour and a line; what a comma follows is the same thing trained otherwise, in other lines."""
    styles: dict[str, dict[str, str]] = {}
    kinds = {name: name.partition(", ")[0] for name in names}
    for is_detr, colours in ((True, _GREYS), (False, _COLOURS)):
        kin = list(dict.fromkeys(kind for kind in kinds.values() if kind.startswith("DETR") == is_detr))
        for name, kind in kinds.items():
            if kind in kin:
                colour = colours[kin.index(kind) % len(colours)]
                line = _LINES[sum(style["color"] == colour for style in styles.values()) % len(_LINES)]
                styles[name] = {"color": colour, "linestyle": line}
    return styles
