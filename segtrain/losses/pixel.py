"""The pixel terms: means of class sums over the pixels, weighted by class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from segtrain.losses.accumulation import Normalizer
from segtrain.losses.class_sums import Activation, ClassSums
from segtrain.losses.term import ClassWeights, LossInputs, divide

Reduction = Literal["valid", "weighted"]
MINED = "hard examples are ranked within each micro-batch"


def pixel_mean(loss: Tensor, pixels: Tensor, *, weights: ClassWeights, reduction: Reduction) -> Tensor:
    """Average a pixel loss over the pixels, given its sums by class.

    `valid`: Σ w ℓ / number of pixels. `weighted`: Σ w ℓ / Σ w, as torch does; in a batch of a single class the
    weight then cancels. With sigmoid each (pixel, class) pair is a pixel, and w that of its channel, for yes and no
    alike. 0, still connected to the graph, when there is no pixel.

    Args:
        loss: float64 `[C]`, the loss summed over the pixels of each class.
        pixels: float64 `[C]`, the pixels behind it, or those of a whole accumulation window.
        weights: of the classes.
        reduction: what to divide by.
    """
    denominator = pixels if reduction == "valid" else weights.times(pixels)
    return divide(weights.times(loss).sum(), denominator.sum())


@dataclass(frozen=True)
class PixelTerm:
    """Cross entropy and focal loss, softmax or sigmoid: statistics `[2, C]` of the loss and the pixels behind it.

    Label smoothing is torch's: (1 − ε) CE + ε/C Σ_c −log p_c, each class's part with its weight, over the denominator
    of the cross entropy. Presets count `over` all pixels (ignored ones too) and divide by `divisor`.
    """

    name: Literal["cross_entropy", "focal"]
    num_classes: int
    activation: Activation = "softmax"
    gamma: tuple[float, ...] | None = None
    label_smoothing: float = 0.0
    reduction: Reduction = "valid"
    mined: bool = False
    over: Literal["valid", "all"] = "valid"
    divisor: float = 1.0
    is_pixel_term = True

    @property
    def wanted(self) -> tuple[str, ...]:
        """Names of the class sums."""
        return (self.name, "log_mass") if self.label_smoothing else (self.name,)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the statistics."""
        return (2, self.num_classes)

    @property
    def inexact(self) -> str | None:
        """Mining ranks pixels of different micro-batches apart."""
        return MINED if self.mined else None

    @property
    def apart(self) -> str | None:
        """Mining stays within a micro-batch and a rank."""
        return MINED if self.mined else None

    def statistics(self, sums: ClassSums, inputs: LossInputs) -> Tensor:
        """Return the loss and the pixels of each class, `[2, C]`."""
        loss, pixels = getattr(sums, self.name), sums.kept
        if self.activation == "sigmoid":
            assert sums.kept_negatives is not None
            loss, pixels = loss + getattr(sums, f"{self.name}_negatives"), pixels + sums.kept_negatives
        if self.label_smoothing:
            assert sums.log_mass is not None
            loss = (1 - self.label_smoothing) * loss + self.label_smoothing / self.num_classes * sums.log_mass
        pixels = pixels.sum(0)
        if self.over == "all":
            num_pixels = inputs.logits.shape[0] * inputs.logits.shape[2] * inputs.logits.shape[3]
            pixels = torch.full_like(pixels, num_pixels * self._share)
        return torch.stack([loss.sum(0), pixels])

    def window(self, normalizer: Normalizer) -> Tensor | None:
        """Return the pixels `[1, C]` of the window, None under mining."""
        if self.mined:
            return None
        if self.over == "all":
            return (normalizer.num_pixels * self._share).expand(1, self.num_classes)
        return (normalizer.valid if self.activation == "sigmoid" else normalizer.pixels).unsqueeze(0)

    def value(self, statistics: Tensor, weights: ClassWeights) -> Tensor:
        """Return the mean."""
        loss, pixels = statistics.unbind()
        mean = pixel_mean(loss, pixels, weights=weights, reduction=self.reduction)
        return mean if self.divisor == 1 else mean / self.divisor

    @property
    def _share(self) -> float:
        """The share of all pixels that counts for one class: with sigmoid each class has them all."""
        return 1.0 if self.activation == "sigmoid" else 1 / self.num_classes


@dataclass(frozen=True)
class BalancedCrossEntropyTerm:
    """Class-balanced binary cross entropy (Xie & Tu 2015, HED, eq. 2), mean over the (pixel, class) pairs.

    −β Σ_{y=1} log p − (1 − β) Σ_{y=0} log(1 − p) for each class, β being the share of its pixels where y = 0, in the
    batch or in each image. A class without positives costs nothing there. (The paper sums where this averages.)
    """

    num_classes: int
    per: Literal["batch", "image"] = "batch"
    reduction: Reduction = "valid"
    mined: bool = False
    activation: Activation = "sigmoid"
    gamma: tuple[float, ...] | None = None
    wanted = ("cross_entropy",)
    is_pixel_term = True

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the statistics."""
        return (2 if self.per == "image" else 4, self.num_classes)

    @property
    def inexact(self) -> str | None:
        """Mining ranks pixels of different micro-batches apart."""
        return MINED if self.mined else None

    @property
    def apart(self) -> str | None:
        """Mining stays within a micro-batch and a rank."""
        return MINED if self.mined else None

    def statistics(self, sums: ClassSums, inputs: LossInputs) -> Tensor:
        """Return losses on positives and negatives and their counts `[4, C]`; per image loss and pixels `[2, C]`."""
        assert sums.cross_entropy is not None
        assert sums.cross_entropy_negatives is not None
        assert sums.kept_negatives is not None
        rows = (sums.cross_entropy, sums.cross_entropy_negatives, sums.kept, sums.kept_negatives)
        if self.per == "image":
            return torch.stack([_balanced(*rows).sum(0), (sums.kept + sums.kept_negatives).sum(0)])
        return torch.stack([row.sum(0) for row in rows])

    def window(self, normalizer: Normalizer) -> Tensor | None:
        """Return the counts of the window, None under mining."""
        if self.mined:
            return None
        if self.per == "image":
            return normalizer.valid.unsqueeze(0)
        return torch.stack([normalizer.pixels, normalizer.valid - normalizer.pixels])

    def value(self, statistics: Tensor, weights: ClassWeights) -> Tensor:
        """Return the mean."""
        loss, pixels = statistics[0], statistics[1]
        if self.per == "batch":
            loss, pixels = _balanced(*statistics.unbind()), statistics[2] + statistics[3]
        return pixel_mean(loss, pixels, weights=weights, reduction=self.reduction)


def _balanced(positive_loss: Tensor, negative_loss: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
    return divide(negatives * positive_loss + positives * negative_loss, positives + negatives)
