"""Plots of an evaluation: precision over recall, and confusions of classes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from deformdetr.visualize._images import save_image
from deformdetr.visualize._matplotlib import new_figure
from deformdetr.visualize._plots import rendered, show_names

_MAX_CURVES = 20
_MAX_CLASSES = 40


def plot_precision_recall(
    curves: Sequence[tuple[str, Float[np.ndarray, " recalls"]]], path: str | Path, *, title: str = ""
) -> None:
    """Plot the precision of each class, and their mean, over the recall to an image file.

    Args:
        curves: Name of each class, and its precision at equally spaced recalls from 0 to 1. Of more than 20 classes,
            the 20 of the lowest mean are named.
        path: File to write. The suffix gives the format. An existing file is replaced atomically.
        title: Title of the plot.

    Raises:
        ValueError: If there are no curves.

    Examples:
        >>> import numpy as np
        >>> from deformdetr.visualize import plot_precision_recall
        >>> plot_precision_recall([("cat", np.linspace(1, 0, 101))], "curve.png")
    """
    if not curves:
        raise ValueError("there are no curves to plot")
    figure = new_figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    worst_first = sorted(curves, key=lambda pair: float(pair[1].mean()))
    for index, (name, curve) in enumerate(worst_first):
        is_named = index < _MAX_CURVES
        axes.plot(
            np.linspace(0, 1, len(curve)),
            curve,
            label=f"{name} {curve.mean():.3f}" if is_named else None,
            linewidth=1.3 if is_named else 0.6,
            color=f"C{index % 10}" if is_named else "0.8",
        )
    mean = np.mean([curve for _, curve in curves], axis=0)
    axes.plot(np.linspace(0, 1, len(mean)), mean, label=f"mean {mean.mean():.3f}", color="black", linewidth=2.4)
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02), title=title)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    legend = figure.legend(loc="outside right upper", frameon=False, title="mean precision", fontsize=9)
    show_names(legend.get_texts())
    save_image(rendered(figure), path)


def plot_confusion(
    counts: Int[np.ndarray, "all all"], names: Sequence[str], path: str | Path, *, title: str = ""
) -> None:
    """Plot how often each class is detected as each other to an image file.

    Args:
        counts: Numbers by class of the object (row) and of the detection (column). The last row counts detections
            without an object, and the last column objects without a detection. Of more than 40 classes, those with the
            most errors are shown.
        names: Name of each class, one fewer than rows.
        path: File to write. The suffix gives the format. An existing file is replaced atomically.
        title: Title of the plot.

    Raises:
        ValueError: If the numbers of names and counts do not fit.

    Examples:
        >>> import numpy as np
        >>> from deformdetr.visualize import plot_confusion
        >>> plot_confusion(np.array([[5, 1, 0], [0, 7, 2], [1, 0, 0]]), ["cat", "dog"], "confusion.png")
    """
    if counts.shape != (len(names) + 1, len(names) + 1):
        raise ValueError(f"{len(names)} names need {len(names) + 1} rows and columns of counts, got {counts.shape}")
    shown = _most_errors(counts)
    labels = [*(names[index] for index in shown), "(none)"]
    counts = counts[np.ix_([*shown, -1], [*shown, -1])]
    side = max(4.0, 0.55 * len(labels) + 1.5)
    figure = new_figure(figsize=(side + 0.5, side), layout="constrained")
    axes = figure.subplots()
    shares = counts / counts.sum(axis=1, keepdims=True).clip(1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in zip(*np.nonzero(counts), strict=True):
        color = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, str(counts[row, column]), ha="center", va="center", fontsize=8, color=color)
    axes.set_xticks(range(len(labels)), labels, rotation=90)
    axes.set_yticks(range(len(labels)), labels)
    axes.set(xlabel="detected as", ylabel="object")
    axes.set_title(title, fontsize=10)
    show_names([*axes.get_xticklabels(), *axes.get_yticklabels()])
    save_image(rendered(figure), path)


def _most_errors(counts: Int[np.ndarray, "all all"]) -> list[int]:
    """Return the classes to show, in their order."""
    errors = (counts.sum(axis=0) + counts.sum(axis=1) - 2 * counts.diagonal())[:-1]
    return sorted(np.argsort(-errors, kind="stable")[:_MAX_CLASSES].tolist())
