"""The terms with a pass of their own over the logits, as the combined loss adds them up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from segtrain.losses.accumulation import Normalizer
from segtrain.losses.lovasz import lovasz
from segtrain.losses.term import Activation, ClassWeights, Inputs, divide


class QuotientTerm:
    """A term whose function gives numerator and denominator: statistics `[2]`."""

    shape = (2,)

    def value(self, statistics: Tensor, weights: ClassWeights) -> Tensor:
        """Return the quotient, 0 without anything to average; class weights play no part in it."""
        return divide(*statistics.unbind())


@dataclass(frozen=True)
class LovaszOwnTerm(QuotientTerm):
    """Lovász-softmax, sorted in each micro-batch and on each rank (or, per image, in each image)."""

    per: Literal["batch", "image"]
    bins: int | None
    activation: Activation

    @property
    def inexact(self) -> str | None:
        """A sort over the window is no sum over its micro-batches."""
        return "errors are sorted within each micro-batch (per: image is exact)" if self.per == "batch" else None

    @property
    def apart(self) -> str | None:
        """Nor is the mean of two batches' losses that of the sorted whole."""
        return self.inexact

    def own_statistics(self, inputs: Inputs) -> Tensor:
        """Return the summed losses and the number of classes or pairs."""
        return lovasz(
            inputs.logits,
            inputs.target,
            ignore_index=inputs.ignore_index,
            activation=self.activation,
            per=self.per,
            bins=self.bins,
        )

    def window(self, normalizer: Normalizer) -> Tensor | None:
        """Return the number of (image, class) pairs `[1]` of the window, None per batch."""
        return normalizer.images.sum().unsqueeze(0) if self.per == "image" else None
