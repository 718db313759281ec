"""Draws what a pixel costs and how hard it pulls, against the probability of its label, from the losses themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter
from numpy.typing import NDArray

from segtrain.losses import build_loss
from segtrain.report.figure import new_figure, save_png

PLAIN_COLOR, WEIGHTED_COLOR = "#000000", "#D55E00"  # Okabe & Ito; focal: from light to dark, told apart in gray too
POINTS = 120
SMALLEST_RATIO = 1e-3


def label_curves(
    section: Mapping[str, Any], probabilities: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return loss and |dL/dz_y| of one pixel of class 0 of two, at each probability p_y of its label, [K] each.

    The loss module that `section` describes is called for each: logits (log p_y/(1−p_y), 0), the gradient by autograd.
    """
    loss = build_loss(section, num_classes=2)
    target = torch.zeros(1, 1, 1, dtype=torch.int64)
    values, gradients = [], []
    for label_logit in np.log(probabilities) - np.log1p(-probabilities):
        logits = torch.tensor([[[[float(label_logit)]], [[0.0]]]], dtype=torch.float64, requires_grad=True)
        value = loss(logits, target)
        (gradient,) = torch.autograd.grad(value, logits)
        values.append(value.item())
        gradients.append(abs(gradient[0, 0, 0, 0].item()))
    return np.array(values), np.array(gradients)


def curve_sections(gammas: Sequence[float], weight: float) -> dict[str, dict[str, Any]]:
    """Return the loss sections that the figure compares, by their name in it."""
    cross_entropy = {"terms": [{"name": "cross_entropy"}]}
    weights = {"class_weights": {"scheme": "manual", "weights": [float(weight), 1.0]}}
    return {
        "cross entropy (γ = 0)": cross_entropy,
        f"cross entropy, weight {weight:g}": cross_entropy | weights,
        **{f"focal, γ = {gamma:g}": {"terms": [{"name": "focal", "gamma": float(gamma)}]} for gamma in gammas},
    }


def save_loss_curves(path: Path, *, gammas: Sequence[float], weight: float) -> None:
    """Draw cross entropy, weighted cross entropy and focal (Lin 2017) at several γ, as PNG: loss, gradient, ratio.

    gammas: of the focal curves. weight: of the class of the pixel, in the weighted cross entropy.
    """
    probabilities = np.linspace(0.002, 0.998, POINTS)
    figure = new_figure(11.5, 4.0, dpi=100)
    panels = figure.subplots(1, 3)
    sections = curve_sections(gammas, weight)
    _, plain = label_curves(sections["cross entropy (γ = 0)"], probabilities)
    for (name, section), style in zip(sections.items(), _styles(len(gammas)), strict=True):
        values, gradients = label_curves(section, probabilities)
        for axes, heights in zip(panels, (values, gradients, gradients / plain), strict=True):
            axes.plot(probabilities, heights, label=name, **style)
    _dress(panels, weight=weight)
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), frameon=False, fontsize=9)
    save_png(path, figure)


def _styles(num_gammas: int) -> list[dict[str, Any]]:
    shades = mpl.colormaps["Blues"](np.linspace(0.4, 1.0, num_gammas))
    return [
        {"color": PLAIN_COLOR, "linewidth": 2.0},
        {"color": WEIGHTED_COLOR, "linewidth": 2.0, "linestyle": (0, (5, 2))},
        *({"color": shade, "linewidth": 1.8} for shade in shades),
    ]


def _dress(panels: Sequence[Axes], *, weight: float) -> None:
    titles = ("loss of a pixel", "its gradient, |∂L/∂z_y|", "gradient / that of cross entropy")
    for axes, title in zip(panels, titles, strict=True):
        axes.set_title(title.replace("z_y", "$z_y$"), loc="left", fontsize=11)
        axes.set_xlabel("$p_y$, probability of the label", fontsize=9.5)
        axes.set_xlim(0, 1)
        axes.grid(color="#dddddd", linewidth=0.7)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=9)
    panels[0].set_ylim(0, 5)
    panels[1].set_ylim(0, 1.08 * max(1.0, weight))
    panels[2].set_yscale("log")
    panels[2].set_ylim(SMALLEST_RATIO, 2 * max(2.0, weight))
    panels[2].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panels[0].text(
        0.98,
        0.72,
        "hard pixels: left\neasy pixels: right",
        ha="right",
        fontsize=9,
        color="#555555",
        transform=panels[0].transAxes,
    )
