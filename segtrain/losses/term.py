"""What a loss term is: statistics that add up over images, micro-batches and ranks, and a value made of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from segtrain.kernels.upsample import CoarseLogits
from segtrain.losses.accumulation import Normalizer
from segtrain.losses.class_sums import Activation, ClassSums


@dataclass(frozen=True, eq=False)
class LossInputs:
    """One head's batch, as the terms read it."""

    logits: Tensor | CoarseLogits  # float [N, C, H, W]
    target: Tensor  # integer [N, H, W]; with sigmoid [N, C, H, W] of 0, 1 and the ignored label
    ignore_index: int
    pixel_weight: Tensor | None = None  # float [N, H, W]
    teacher_logits: Tensor | None = None  # float [N, C, H, W]
    distances: Tensor | None = None  # float [N, K, H, W], signed distance maps of the boundary term's K classes

    @property
    def full_logits(self) -> Tensor:
        """The logits for a term with a pass of its own, which `fused_upsample` does not go with."""
        assert isinstance(self.logits, Tensor)
        return self.logits


@dataclass(frozen=True, eq=False)
class ClassWeights:
    """The class weights in force: float64 `[C]`, or None where all are 1."""

    values: Tensor | None

    def times(self, rows: Tensor) -> Tensor:
        """Return `[..., C]` rows times the weights."""
        return rows if self.values is None else rows * self.values


class _Valued(Protocol):
    """What all terms have.

    `statistics` gives a float64 tensor of `shape`, whose last rows count the target only. `window` gives these rows for
    a whole accumulation window, and makes the term exact there; None where the value is no plain quotient.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def inexact(self) -> str | None:
        """Why micro-batches with a normalizer do not add up to the whole window, or None where they do."""
        ...

    @property
    def apart(self) -> str | None:
        """Why even added statistics are not those of one large batch, or None where they are."""
        ...

    def window(self, normalizer: Normalizer) -> Tensor | None: ...

    def value(self, statistics: Tensor, weights: ClassWeights) -> Tensor:
        """Return the float64 scalar that statistics, added over whatever they should cover, stand for."""
        ...


class SumsTerm(_Valued, Protocol):
    """A term made of class sums; terms that agree in how the logits are read share one read."""

    @property
    def wanted(self) -> tuple[str, ...]:
        """Names of the class sums that it is made of."""
        ...

    @property
    def activation(self) -> Activation: ...

    @property
    def is_pixel_term(self) -> bool:
        """Whether mining, priors and margins act on it."""
        ...

    @property
    def gamma(self) -> tuple[float, ...] | None:
        """Focal exponents (one, or one for each class), None where it has none."""
        ...

    def statistics(self, sums: ClassSums, inputs: LossInputs) -> Tensor: ...


class OwnPassTerm(_Valued, Protocol):
    """A term that reads the logits by itself."""

    def own_statistics(self, inputs: LossInputs) -> Tensor: ...


AnyTerm: TypeAlias = SumsTerm | OwnPassTerm


def divide(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Divide; where the denominator is 0, return the numerator (0 itself, and part of the graph)."""
    return numerator / torch.where(denominator == 0, 1.0, denominator)


def valid_pixels(sums: ClassSums) -> Tensor:
    """Return how many pixels (times their weight) could have held each class: float64 `[N, C]`."""
    if sums.negatives is None:
        return sums.pixels.sum(1, keepdim=True).expand_as(sums.pixels)
    return sums.pixels + sums.negatives


def part_of_window(
    term: AnyTerm, statistics: Tensor, weights: ClassWeights, normalizer: Normalizer | None, num_batches: int
) -> Tensor:
    """Return a term's value; with a normalizer this batch's part of the window's, of `num_batches`."""
    counts = None if normalizer is None else term.window(normalizer)
    if counts is None:
        value = term.value(statistics, weights)
        return value if num_batches == 1 else value / num_batches
    return term.value(torch.cat([statistics[: -len(counts)], counts]), weights)
