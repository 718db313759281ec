"""Figures of matplotlib without pyplot: no window system is asked for, and nothing stays in a global list."""

from __future__ import annotations

import io
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from segtrain.files import write_whole


def new_figure(width: float, height: float, *, dpi: int) -> Figure:
    """Return an empty figure of a size in inches that arranges its parts by itself."""
    figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_png(path: Path, figure: Figure) -> None:
    """Write a figure as PNG, whole or not at all."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_whole(path, buffer.getvalue())


def plain(text: str) -> str:
    """Return text in which matplotlib sees no formula."""
    return text.replace("$", r"\$")
