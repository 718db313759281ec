"""The region terms: overlaps of probability maps and masks, averaged over the classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from segtrain.losses.accumulation import Normalizer
from segtrain.losses.class_sums import Activation, ClassSums
from segtrain.losses.term import ClassWeights, LossInputs, divide, valid_pixels

Absent = Literal["skip", "count", "zero", "all"]
Per = Literal["batch", "image"]
BATCH = "overlaps are taken within each micro-batch (per: image is exact)"
STEEPEST_AT = 1e-6  # below this loss, a power of it goes straight to 0


def overlap_loss(
    intersection: Tensor, mass: Tensor, pixels: Tensor, *, alpha: float, beta: float, smooth: float
) -> Tensor:
    """Tversky loss (Salehi 2017, eq. 3): 1 − (I + s) / (I + α FP + β FN + s), FP = P − I, FN = T − I.

    α = β = 1/2 is dice, with s/2 for its s; α = β = 1 is Jaccard. 0 where nothing is there and nothing predicted.

    Args:
        intersection: I = Σ [y=c] p_c, float64 `[..., C]`.
        mass: P = Σ p_c, or Σ p_c² for the squared dice.
        pixels: T = Σ [y=c].
        alpha: weight of the false positives.
        beta: weight of the false negatives.
        smooth: s, in pixels.
    """
    union = intersection + alpha * (mass - intersection) + beta * (pixels - intersection) + smooth
    # Compared with 0, so that a union of NaN stays NaN: a diverged model must show.
    return torch.where(union == 0, 0.0, 1 - divide(intersection + smooth, union))


def powered(loss: Tensor, exponent: Tensor) -> Tensor:
    """Return loss^exponent, of which the part below 1e-6 is replaced by its chord from 0.

    An exponent below 1 has an infinite slope at 0: there the slope stays that of the chord. Exact for exponent 1.
    """
    chord = loss * STEEPEST_AT ** (exponent - 1)
    return torch.where(loss < STEEPEST_AT, chord, loss.clamp(min=STEEPEST_AT) ** exponent)


@dataclass(frozen=True)
class OverlapTerm:
    """Dice, Jaccard, Tversky and focal Tversky: the mean over the classes of their overlap losses.

    `per` batch: the sums run over the batch; statistics `[4, C]`. `per` image: over each image, and the loss is the
    mean over the (image, class) pairs; statistics `[2, C]`. Which classes (or pairs) are averaged:
    `skip`: those with target pixels. `count`: those with any valid pixel; an absent class then costs 1 (with s = 0).
    For presets, `zero`: all, the absent ones at a loss of 0; `all`: all, even where no pixel is valid.
    """

    num_classes: int
    alpha: float = 0.5
    beta: float = 0.5
    smooth: float = 0.0
    squared: bool = False
    per: Per = "batch"
    absent_classes: Absent = "skip"
    class_weights: bool = False
    weighted_mean: bool = True  # divide by the sum of the class weights, not by their number
    exponents: tuple[float, ...] = (1.0,)  # one, or one for each class
    activation: Activation = "softmax"
    gamma: tuple[float, ...] | None = None
    is_pixel_term = False
    apart = None

    @property
    def wanted(self) -> tuple[str, ...]:
        """Names of the class sums."""
        return ("intersection", "squared_probability" if self.squared else "probability")

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the statistics."""
        return (4 if self.per == "batch" else 2, self.num_classes)

    @property
    def inexact(self) -> str | None:
        """An overlap of a whole window is no sum over its micro-batches."""
        return BATCH if self.per == "batch" else None

    def statistics(self, sums: ClassSums, inputs: LossInputs) -> Tensor:
        """Return I, P, T and the valid pixels `[4, C]`; per image the loss and the pairs behind it `[2, C]`."""
        mass = sums.squared_probability if self.squared else sums.probability
        assert mass is not None
        assert sums.intersection is not None
        rows = (sums.intersection, mass, sums.pixels, valid_pixels(sums))
        if self.per == "batch":
            return torch.stack([row.sum(0) for row in rows])
        return torch.stack([row.sum(0) for row in self._averaged(*rows)])

    def window(self, normalizer: Normalizer) -> Tensor | None:
        """Return the pairs `[1, C]` of the window, None per batch."""
        if self.per == "batch":
            return None
        if self.absent_classes == "skip":
            return normalizer.images.unsqueeze(0)
        if self.absent_classes == "count":
            return normalizer.valid_images.unsqueeze(0)
        return normalizer.num_images.expand(1, self.num_classes)

    def value(self, statistics: Tensor, weights: ClassWeights) -> Tensor:
        """Return the mean over classes or pairs."""
        loss, pairs = self._averaged(*statistics.unbind()) if self.per == "batch" else statistics.unbind()
        weights = weights if self.class_weights else ClassWeights(None)
        return divide(weights.times(loss).sum(), (weights.times(pairs) if self.weighted_mean else pairs).sum())

    def _averaged(self, intersection: Tensor, mass: Tensor, pixels: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Return loss and weight in the mean of each class (of each image), float64 `[..., C]` both."""
        loss = overlap_loss(intersection, mass, pixels, alpha=self.alpha, beta=self.beta, smooth=self.smooth)
        if self.exponents != (1.0,):
            exponents = torch.tensor(self.exponents, dtype=loss.dtype)
            loss = powered(loss, exponents.to(loss.device, non_blocking=True))  # no wait for the device
        costs = {"skip": pixels > 0, "zero": pixels > 0, "count": valid > 0}.get(self.absent_classes, pixels >= 0)
        counted = costs if self.absent_classes in ("skip", "count") else torch.ones_like(costs)
        # A product with 0, not a selection: an absent class stays in the graph, with a zero gradient.
        return loss * costs, counted.double()


@dataclass(frozen=True)
class GeneralizedDiceTerm:
    """Generalised dice loss (Sudre 2017, eq. 4): 1 − (2 Σ_c w_c I_c + s) / (Σ_c w_c (P_c + T_c) + s), w_c ∝ 1 / T_c².

    A class absent from the target has no such weight and is left out: what is predicted of it is missing from the
    others (Sudre's 1 / (T² + ε) would let it rule the sum). The weights are scaled so that the rarest class present
    has 1, and s is in its pixels. Per image: the mean over the images that hold any class.
    """

    num_classes: int
    per: Per = "batch"
    smooth: float = 0.0
    activation: Activation = "softmax"
    gamma: tuple[float, ...] | None = None
    wanted = ("intersection", "probability")
    is_pixel_term = False
    apart = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the statistics."""
        return (3, self.num_classes) if self.per == "batch" else (2,)

    @property
    def inexact(self) -> str | None:
        """An overlap of a whole window is no sum over its micro-batches."""
        return BATCH if self.per == "batch" else None

    def statistics(self, sums: ClassSums, inputs: LossInputs) -> Tensor:
        """Return I, P and T `[3, C]`; per image the summed losses and the number of images `[2]`."""
        assert sums.intersection is not None
        assert sums.probability is not None
        rows = (sums.intersection, sums.probability, sums.pixels)
        if self.per == "batch":
            return torch.stack([row.sum(0) for row in rows])
        return torch.stack([self._loss(*rows).sum(), (sums.pixels > 0).any(1).sum().double()])

    def window(self, normalizer: Normalizer) -> Tensor | None:
        """Return the number of images `[1]` of the window, None per batch."""
        return None if self.per == "batch" else normalizer.num_present.unsqueeze(0)

    def value(self, statistics: Tensor, weights: ClassWeights) -> Tensor:
        """Return the loss; class weights play no part in it."""
        return self._loss(*statistics.unbind()) if self.per == "batch" else divide(*statistics.unbind())

    def _loss(self, intersection: Tensor, mass: Tensor, pixels: Tensor) -> Tensor:
        """Return the loss of `[..., C]` sums, `[...]`; 0 without any class."""
        present = pixels > 0
        rarest = torch.where(present, pixels, torch.inf).amin(-1, keepdim=True)
        weight = torch.where(present, (rarest / torch.where(present, pixels, 1.0)).square(), 0.0)
        union = (weight * (mass + pixels)).sum(-1) + self.smooth
        loss = 1 - divide(2 * (weight * intersection).sum(-1) + self.smooth, union)
        return loss * present.any(-1)
