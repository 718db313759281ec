"""The pixel terms: means of class sums over the pixels, weighted by class."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Reduction = Literal["valid", "weighted"]


def pixel_mean(loss_sums: Tensor, pixels: Tensor, *, class_weights: Tensor | None, reduction: Reduction) -> Tensor:
    """Average a pixel loss over the pixels, given its sums by class.

    `valid`: Σ w ℓ / number of pixels. `weighted`: Σ w ℓ / Σ w, as torch does; in a batch of a single class the
    weight then cancels. 0, still connected to the graph, when there is no pixel.

    Args:
        loss_sums: float64 `[N, C]`, the loss summed over the pixels of each class.
        pixels: float64 `[N, C]` (or `[C]`), the pixels behind it, or those of a whole accumulation window.
        class_weights: float64 `[C]` or None for 1.
    """
    numerator = loss_sums.sum() if class_weights is None else (loss_sums * class_weights).sum()
    return divide(numerator, pixel_denominator(pixels, class_weights=class_weights, reduction=reduction))


def pixel_denominator(pixels: Tensor, *, class_weights: Tensor | None, reduction: Reduction) -> Tensor:
    """Return the number of pixels, or with `weighted` the sum of their class weights."""
    if class_weights is None or reduction == "valid":
        return pixels.sum()
    return (pixels * class_weights).sum()


def divide(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Divide; where the denominator is 0, return the numerator (0 itself, and part of the graph)."""
    return numerator / torch.where(denominator == 0, 1.0, denominator)
