"""The terms with a pass of their own over the logits, as the combined loss adds them up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from segtrain.config.loss_terms import TermConfig
from segtrain.errors import ConfigError
from segtrain.losses.accumulation import Normalizer
from segtrain.losses.boundary import boundary
from segtrain.losses.cl_dice import cl_dice, cl_dice_value
from segtrain.losses.class_sums import Activation
from segtrain.losses.distillation import distillation
from segtrain.losses.lovasz import lovasz
from segtrain.losses.region import BATCH
from segtrain.losses.term import ClassWeights, LossInputs, divide

WITHOUT_PIXEL_WEIGHT = ("lovasz", "cl_dice")  # a weight of a pixel has no meaning in their formulas


class QuotientTerm:
    """A term whose function gives numerator and denominator: statistics `[2]`."""

    shape = (2,)

    def value(self, statistics: Tensor, weights: ClassWeights) -> Tensor:
        """Return the quotient, 0 without anything to average; class weights play no part in it."""
        return divide(*statistics.unbind())


class PixelQuotientTerm(QuotientTerm):
    """A mean over the valid pixels: exact under accumulation and over ranks."""

    inexact = apart = None

    def window(self, normalizer: Normalizer) -> Tensor | None:
        """Return the valid pixels `[1]` of the window."""
        return normalizer.pixels.sum().unsqueeze(0)


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

    def own_statistics(self, inputs: LossInputs) -> Tensor:
        """Return the summed losses and the number of classes or pairs."""
        return lovasz(
            inputs.full_logits,
            inputs.target,
            ignore_index=inputs.ignore_index,
            activation=self.activation,
            per=self.per,
            bins=self.bins,
        )

    def window(self, normalizer: Normalizer) -> Tensor | None:
        """Return the number of (image, class) pairs `[1]` of the window, None per batch."""
        return normalizer.images.sum().unsqueeze(0) if self.per == "image" else None


@dataclass(frozen=True)
class BoundaryOwnTerm(PixelQuotientTerm):
    """Boundary loss of `classes`, on the given distance maps or its own."""

    classes: tuple[int, ...]
    activation: Activation

    def own_statistics(self, inputs: LossInputs) -> Tensor:
        """Return the sum and the number of valid pixels."""
        return boundary(
            inputs.full_logits,
            inputs.target,
            ignore_index=inputs.ignore_index,
            distances=inputs.distances,
            classes=self.classes,
            activation=self.activation,
            pixel_weight=inputs.pixel_weight,
        )

    def window(self, normalizer: Normalizer) -> Tensor | None:
        """Return the valid pixels `[1]` of the window; with sigmoid the mean over the classes."""
        if self.activation == "softmax":
            return super().window(normalizer)
        return torch.stack([normalizer.valid[c] for c in self.classes]).mean().unsqueeze(0)


@dataclass(frozen=True)
class DistillationOwnTerm(PixelQuotientTerm):
    """The softened divergence from the teacher's logits."""

    temperature: float
    activation: Activation

    def own_statistics(self, inputs: LossInputs) -> Tensor:
        """Return the sum and the number of valid pixels (with sigmoid of pairs)."""
        assert inputs.teacher_logits is not None
        return distillation(
            inputs.full_logits,
            inputs.teacher_logits,
            inputs.target,
            ignore_index=inputs.ignore_index,
            temperature=self.temperature,
            activation=self.activation,
            pixel_weight=inputs.pixel_weight,
        )

    def window(self, normalizer: Normalizer) -> Tensor | None:
        """Return the valid pixels `[1]` of the window; with sigmoid the pairs."""
        return super().window(normalizer) if self.activation == "softmax" else normalizer.valid.sum().unsqueeze(0)


@dataclass(frozen=True)
class ClDiceOwnTerm:
    """Soft clDice of `classes`: statistics `[5, K]`, per image `[2]`."""

    classes: tuple[int, ...]
    iterations: int
    smooth: float
    per: Literal["batch", "image"]
    activation: Activation
    apart = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the statistics."""
        return (5, len(self.classes)) if self.per == "batch" else (2,)

    @property
    def inexact(self) -> str | None:
        """An overlap of a whole window is no sum over its micro-batches."""
        return BATCH if self.per == "batch" else None

    def own_statistics(self, inputs: LossInputs) -> Tensor:
        """Return the sums over skeletons and masks; per image the summed losses and the number of pairs."""
        return cl_dice(
            inputs.full_logits,
            inputs.target,
            ignore_index=inputs.ignore_index,
            classes=self.classes,
            iterations=self.iterations,
            smooth=self.smooth,
            per=self.per,
            activation=self.activation,
        )

    def window(self, normalizer: Normalizer) -> Tensor | None:
        """Return the number of (image, class) pairs `[1]` of the window, None per batch."""
        if self.per == "batch":
            return None
        return torch.stack([normalizer.images[c] for c in self.classes]).sum().unsqueeze(0)

    def value(self, statistics: Tensor, weights: ClassWeights) -> Tensor:
        """Return the loss; class weights play no part in it."""
        return cl_dice_value(statistics, smooth=self.smooth)


def check_given(
    terms: Sequence[TermConfig],
    *,
    pixel_weight: Tensor | None,
    teacher_logits: Tensor | None,
    distances: Tensor | None,
) -> None:
    """Raise ConfigError where a batch brings what none of the terms uses, or lacks what one of them needs."""
    names = [term.name for term in terms]
    unweighted = [name for name in names if name in WITHOUT_PIXEL_WEIGHT]
    if pixel_weight is not None and unweighted:
        raise ConfigError(
            f"pixel_weight was given, but {unweighted[0]} has no weights for pixels: drop one of them, or add up "
            "two losses, one of them called without pixel_weight."
        )
    if teacher_logits is not None and "distillation" not in names:
        raise ConfigError("teacher_logits were given, but no term of this loss uses them: drop them.")
    if teacher_logits is None and "distillation" in names:
        raise ConfigError("the distillation term needs teacher_logits: pass those of its teacher on this batch.")
    if distances is not None and "boundary" not in names:
        raise ConfigError("distances were given, but no term of this loss uses them: drop them.")
