"""The region terms: overlaps of probability maps and masks, averaged over the classes."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from segtrain.losses.class_sums import ClassSums
from segtrain.losses.pixel import divide

Absent = Literal["skip", "count"]
Per = Literal["batch", "image"]


def dice_sums(squared: bool) -> tuple[str, ...]:
    """Return the names of the class sums that dice needs."""
    return ("intersection", "squared_probability" if squared else "probability")


def dice(
    sums: ClassSums,
    *,
    squared: bool = False,
    per: Per = "batch",
    smooth: float = 0.0,
    absent_classes: Absent = "skip",
    class_weights: Tensor | None = None,
    total_weight: Tensor | None = None,
) -> Tensor:
    """Dice loss: the mean over the classes of 1 − (2 I + s) / (P + T + s).

    I = Σ [y=c] p_c, T = Σ [y=c] and P = Σ p_c, or Σ p_c² when squared (Milletari 2016, V-Net). Sums run over the
    batch, or over each image and then the loss is the mean over the (image, class) pairs.

    Args:
        sums: class sums `[N, C]` with what `dice_sums` names.
        squared: take P as Σ p_c².
        per: where the sums stop: at the batch or at each image.
        smooth: s, in pixels, added to numerator and denominator.
        absent_classes: `skip` leaves a class without target pixels out of the mean; `count` takes it at a loss of 1
            (with s = 0) wherever the batch or image has any valid pixel.
        class_weights: float64 `[C]`: a weighted mean over the classes.
        total_weight: the sum of weights to divide by in place of this batch's own, for accumulation.

    Returns:
        float64 scalar; 0, connected to the graph, without any valid pixel.
    """
    mass = sums.squared_probability if squared else sums.probability
    assert mass is not None
    assert sums.intersection is not None
    intersection, pixels = sums.intersection, sums.pixels
    if per == "batch":
        mass, intersection, pixels = (x.sum(0, keepdim=True) for x in (mass, intersection, pixels))
    union = mass + pixels + smooth
    # Compared with 0, so that a union of NaN stays NaN: a diverged model must show.
    loss = torch.where(union == 0, 0.0, 1 - divide(2 * intersection + smooth, union))
    weight = region_weights(pixels, absent_classes=absent_classes, class_weights=class_weights)
    # A product with weight 0, not a selection: an absent class stays in the graph, with a zero gradient.
    return divide((loss * weight).sum(), weight.sum() if total_weight is None else total_weight)


def region_weights(pixels: Tensor, *, absent_classes: Absent, class_weights: Tensor | None) -> Tensor:
    """Return the weight of each (image, class) pair in the mean, float64 `[N, C]`, from the target pixels."""
    counted = pixels > 0
    if absent_classes == "count":
        counted = counted.any(1, keepdim=True).expand_as(pixels)
    return counted.double() if class_weights is None else counted * class_weights.double()
