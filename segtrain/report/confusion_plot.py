"""The confusion matrix as a picture (each row is a class of the target), and the counts of classes that overlap."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from segtrain.drawing import shorten
from segtrain.metrics import ConfusionMatrix, MultiLabelConfusion
from segtrain.report.figure import new_figure, plain, save_png

ANNOTATED_CLASSES = 20
NAMED_CLASSES = 60


def row_shares(confusion: ConfusionMatrix) -> npt.NDArray[np.float64]:
    """Return the matrix with rows that add up to 1, [C, C]; rows of classes without pixels are NaN."""
    matrix = confusion.matrix.numpy().astype(np.float64)
    totals = matrix.sum(axis=1, keepdims=True)
    shares: npt.NDArray[np.float64] = np.divide(matrix, totals, out=np.full_like(matrix, np.nan), where=totals > 0)
    return shares


def save_plot(
    path: Path, confusion: ConfusionMatrix | MultiLabelConfusion, *, class_names: Sequence[str], title: str
) -> None:
    """Write the picture that fits the counts: who is taken for whom, or what each class's yes and no are worth."""
    if isinstance(confusion, MultiLabelConfusion):
        save_label_plot(path, confusion, class_names=class_names, title=title)
    else:
        save_confusion_plot(path, confusion, class_names=class_names, title=title)


def save_label_plot(path: Path, confusion: MultiLabelConfusion, *, class_names: Sequence[str], title: str) -> None:
    """Write, for each class of its own, what became of its pixels and how much of its prediction is right, as PNG."""
    found, right = confusion.recall().numpy(), confusion.precision().numpy()
    shares = np.stack([found, 1 - found, right, 1 - right], axis=1)
    figure = new_figure(7.5, min(24.0, 2.0 + 0.45 * len(class_names)), dpi=120)
    axes = figure.add_subplot()
    axes.imshow(shares, vmin=0, vmax=1, cmap=mpl.colormaps["Blues"].with_extremes(bad="0.92"), aspect="auto")
    axes.set_title(plain(title))
    axes.set_xticks(range(4), ["found", "missed", "right", "invented"])
    axes.set_xlabel("% of the target's pixels (found, missed) and of the predicted ones (right, invented)")
    if len(class_names) <= NAMED_CLASSES:
        axes.set_yticks(range(len(class_names)), [plain(shorten(name, 18)) for name in class_names])
        _annotate(axes, shares)
    save_png(path, figure)


def save_confusion_plot(path: Path, confusion: ConfusionMatrix, *, class_names: Sequence[str], title: str) -> None:
    """Write the row-normalised matrix as PNG, with numbers up to 20 classes and names up to 60."""
    num_classes = len(class_names)
    side = min(24.0, 3.0 + 0.55 * num_classes)
    figure = new_figure(side + 1.5, side, dpi=120)
    axes = figure.add_subplot()
    shares = row_shares(confusion)
    colors = mpl.colormaps["Blues"].with_extremes(bad="0.92")
    shown = axes.imshow(shares, vmin=0, vmax=1, cmap=colors)
    figure.colorbar(
        shown, ax=axes, fraction=0.046, label="% of the target's pixels", format=PercentFormatter(1, symbol=None)
    )
    axes.set_title(plain(title))
    axes.set_xlabel("prediction")
    axes.set_ylabel("target")
    if num_classes <= NAMED_CLASSES:
        names = [plain(shorten(name, 18)) for name in class_names]
        axes.set_xticks(range(num_classes), names, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(num_classes), names)
    if num_classes <= ANNOTATED_CLASSES:
        _annotate(axes, shares)
    save_png(path, figure)


def _annotate(axes: Axes, shares: npt.NDArray[np.float64]) -> None:
    for row, column in np.argwhere(np.isfinite(shares)):
        share = shares[row, column]
        ink = "white" if share > 0.5 else "black" if share >= 0.01 else "0.6"
        axes.text(column, row, _percent(share), ha="center", va="center", color=ink, fontsize=8)


def _percent(share: float) -> str:
    """Percent with one decimal; what rounds to nothing but is not nothing says so."""
    if share == 0:
        return "0"
    return "<.1" if share < 0.0005 else "100" if share == 1 else f"{min(share, 0.9994) * 100:.1f}"
