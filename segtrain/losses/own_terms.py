"""The terms with a pass of their own over the logits, as the combined loss adds them up."""

from __future__ import annotations

from torch import Tensor

from segtrain.losses.term import ClassWeights, divide


class QuotientTerm:
    """A term whose function gives numerator and denominator: statistics `[2]`."""

    shape = (2,)

    def value(self, statistics: Tensor, weights: ClassWeights) -> Tensor:
        """Return the quotient, 0 without anything to average; class weights play no part in it."""
        return divide(*statistics.unbind())
