"""Hard-example mining over a read in runs: a threshold is taken at once, and taken back if it keeps too few."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segtrain.kernels.labels import count
from segtrain.kernels.mining import HardExamples


class Mined:
    """Takes up the loss of each pixel and the mask of what is kept.

    Attributes:
        losses: float `[N, P]`, −log p_y of each pixel, anything where ignored.
        mask: bool, the same shape; final after `finish`, anything where ignored.
        was_right: after `finish`, whether the read kept what the final mask keeps.
    """

    def __init__(self, rule: HardExamples, shape: tuple[int, ...], *, kind: np.dtype[Any]) -> None:
        self.rule = rule
        self.losses = torch.from_numpy(np.empty(shape, kind))
        self.mask = torch.empty(shape, dtype=torch.bool)
        self.was_right = False
        self._at_once = rule.threshold is not None and rule.threshold < 1 and not rule.per_class

    def arguments(self, row: int) -> tuple[Any, ...]:
        """Return what the kernels ask of a row: the loss that is kept from, and where to write losses and mask."""
        kind = self.losses.numpy().dtype.type
        return kind(self.rule.cut if self._at_once else np.inf), self.losses[row].numpy(), self.mask[row].numpy()

    def finish(self, pixels: Tensor, kept: Tensor, buckets: Tensor, *, num_buckets: int) -> Tensor:
        """Return the final mask.

        Args:
            pixels, kept: how many pixels count, and how many of them the read kept.
            buckets: integer `[N, P]`, as the rule takes them.
        """
        if self._at_once and self.losses.numel():
            self.was_right = bool(kept >= self.rule.least(pixels.long()))
        if not self.was_right:
            self.mask = self.rule(self.losses, buckets, num_buckets=num_buckets)
        return self.mask

    def counts(
        self, sums: Mapping[str, Tensor], labels: Tensor, *, ignored: int, are_weighted: bool
    ) -> tuple[Tensor, Tensor]:
        """Return how many pixels count and were kept: from the sums, or where these are of weights, from the mask."""
        if not are_weighted:
            return sums["pixels"].sum(), sums["kept"].sum()
        valid = labels != ignored
        return valid.count_nonzero(), (self.mask & valid).count_nonzero()


def mined_values(
    mined: Mined, labels: Tensor, gamma: Tensor, weight: Tensor | None, *, wanted: Collection[str], num_buckets: int
) -> dict[str, Tensor]:
    """Return kept, cross_entropy and focal, float64 `[N, num_buckets]`, over what the mask keeps of `[N, P]` pixels.

    From the loss of each alone: q = 1 − e^{−ℓ}. gamma broadcasts to the pixels.
    """
    buckets = torch.where(mined.mask, labels, num_buckets)
    losses = mined.losses if weight is None else mined.losses * weight
    sums = {"kept": count(buckets, num_buckets=num_buckets, weight=weight)}
    if "cross_entropy" in wanted:
        sums["cross_entropy"] = count(buckets, num_buckets=num_buckets, weight=losses)
    if "focal" in wanted:
        factor = torch.expm1(-mined.losses).neg_().pow_(gamma)
        sums["focal"] = count(buckets, num_buckets=num_buckets, weight=factor.mul_(losses))
    return sums
