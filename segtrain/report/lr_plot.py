"""Draws a learning rate range test: the loss against the rate, and what is suggested."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from segtrain.engine.find_lr import RangeTest
from segtrain.report.figure import new_figure, plain, save_png

RAW, SMOOTHED, TENTH, STEEPEST = "#b8b8b8", "#000000", "#0072B2", "#D55E00"  # Okabe & Ito


def save_lr_plot(path: Path, result: RangeTest, *, title: str) -> None:
    """Draw loss and smoothed loss over the rate, logarithmic, with both suggestions, as PNG.

    The axis of the loss holds the fall and a part of the rise: what diverges leaves it.
    """
    figure = new_figure(7.5, 4.5, dpi=110)
    axes = figure.subplots()
    lrs, losses, smoothed = np.array(result.lrs), np.array(result.losses), np.array(result.smoothed)
    axes.plot(lrs, losses, color=RAW, linewidth=1.0, label="loss of the step")
    axes.plot(lrs, smoothed, color=SMOOTHED, linewidth=2.0, label="smoothed")
    marks = (
        (result.steepest, STEEPEST, "-", "steepest fall"),
        (result.tenth, TENTH, "--", "a tenth of it at the minimum"),
    )
    for rate, color, style, label in marks:
        if rate is not None:
            axes.axvline(rate, color=color, linestyle=style, linewidth=1.6, label=f"{label}: {rate:.1e}")
    finite = smoothed[np.isfinite(smoothed)]
    calm = losses[: max(int(finite.argmin()) + 1, 1)]  # until the minimum: no loss that diverges
    low, start = float(calm.min()), float(calm.max())
    room = max(start - low, 1e-3 * abs(low), 1e-12)
    axes.set_ylim(low - 0.1 * room, start + 0.5 * room)
    axes.set_xscale("log")
    axes.set_xlabel("learning rate", fontsize=9.5)
    axes.set_ylabel("loss", fontsize=9.5)
    axes.set_title(plain(title), loc="left", fontsize=11)
    axes.grid(color="#dddddd", linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9)
    axes.legend(frameon=False, fontsize=9)
    save_png(path, figure)
