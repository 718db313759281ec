"""Online hard-example mining: which valid pixels stay in the pixel terms."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

DEFAULT_MIN_KEPT = 0.05
WORTH_A_HISTOGRAM = 2**15  # values; fewer are ranked at once


@dataclass(frozen=True)
class HardExamples:
    """Keep the pixels with p_y < `threshold` but at least `min_kept`, or the `top_k` fraction of lowest p_y.

    Pixels are ranked over the whole batch given, among valid pixels only, by the unweighted p_y; of equal ones the
    first by position (image, row, column) is kept. Numbers of pixels from a fraction are rounded, and at least 1.
    With `per_class`, `min_kept` and `top_k` hold for the pixels of each class on their own, so that a common class
    cannot fill the budget. (Shrivastava 2016; the threshold rule as in Wu 2016.)
    """

    threshold: float | None = None
    min_kept: int | float = DEFAULT_MIN_KEPT
    top_k: float | None = None
    per_class: bool = False

    def __call__(self, loss: Tensor, buckets: Tensor, *, num_buckets: int) -> Tensor:
        """Return the bool mask of what is kept, in the shape of its arguments.

        Args:
            loss: float, the cross entropy −log p_y of each pixel, unweighted.
            buckets: integer, same shape: the class of each pixel, `num_buckets` where it is ignored.
            num_buckets: how many classes there are.
        """
        if loss.numel() == 0:
            return torch.zeros_like(loss, dtype=torch.bool)
        mask = (
            self._keep_each(loss, buckets, num_buckets) if self.per_class else self._keep(loss, buckets != num_buckets)
        )
        if not loss.is_cuda and not loss.max().isnan():
            return mask
        return mask | (loss.isnan() & (buckets != num_buckets))  # a diverged pixel must show in the loss

    def least(self, num_valid: Tensor) -> Tensor:
        """Return how many of `num_valid` pixels (int64 scalar) the threshold rule keeps at least."""
        if isinstance(self.min_kept, float):
            return _fraction(self.min_kept, num_valid)
        return num_valid.clamp(max=self.min_kept)

    @property
    def cut(self) -> float:
        """The loss above which the threshold rule keeps a pixel."""
        assert self.threshold is not None
        return -math.log(self.threshold) if self.threshold < 1 else -math.inf

    def _keep_each(self, loss: Tensor, buckets: Tensor, num_buckets: int) -> Tensor:
        mask = torch.zeros_like(loss, dtype=torch.bool)
        for bucket in range(num_buckets):
            mask |= self._keep(loss, buckets == bucket)
        return mask

    def _keep(self, loss: Tensor, among: Tensor) -> Tensor:
        num_valid = among.count_nonzero()
        if self.top_k is not None:
            return _hardest(loss, among, _fraction(self.top_k, num_valid))
        hard = compare(torch.gt, loss, self.cut) & among
        num_hard, least = hard.count_nonzero(), self.least(num_valid)
        if not hard.is_cuda and num_hard >= least:  # reading a value costs nothing on the CPU
            return hard
        return _hardest(loss, among, torch.maximum(least, num_hard))


def _fraction(fraction: float, num_valid: Tensor) -> Tensor:
    """Return round(fraction × num_valid), at least 1 where there is any: int64 scalar on the same device."""
    return (num_valid.double() * fraction).round().long().clamp(min=1).minimum(num_valid)


def _hardest(loss: Tensor, among: Tensor, count: Tensor) -> Tensor:
    """Mask the `count` pixels of the largest loss `among` those given, the first ones by position among equals."""
    ranked = _ranked(loss, among)
    cut = _kth_largest(ranked, count)
    mask = compare(torch.ge, ranked, cut)
    if ranked.is_cuda or mask.count_nonzero() != count:  # several are equal to the cut, or none is wanted
        above, tied = ranked > cut, (ranked == cut) & among.flatten()
        mask = above | (tied & (tied.cumsum(0) <= count - above.sum()))
    return mask.view_as(among) & among


def _ranked(loss: Tensor, among: Tensor) -> Tensor:
    """Return the losses as a row, with a number below all of them in place of those that are not among those given."""
    if not loss.is_cuda:  # a choice by bools is many times slower here than arithmetic
        wanted = among.view(torch.uint8).to(loss.dtype)
        ranked = torch.addcmul(wanted - 1, loss, wanted)
        if bool(ranked.sum().isfinite()):
            return ranked.flatten()
    return torch.where(among, loss, -torch.inf).flatten()


def compare(comparison: Callable[..., Tensor], values: Tensor, limit: Tensor | float) -> Tensor:
    """Return the bools of a comparison: on the CPU made as numbers, which is many times faster."""
    if values.is_cuda:
        return comparison(values, limit)
    numbers = comparison(values, limit, out=torch.empty_like(values))
    return numbers.to(torch.uint8).view(torch.bool)


def _kth_largest(values: Tensor, k: Tensor) -> Tensor:
    """Return the k-th largest of the values (the largest at k = 0), without a sync on CUDA."""
    if values.is_cuda:
        return values.sort(descending=True).values.gather(0, (k - 1).clamp(min=0).view(1))
    rank = max(int(k), 1)
    if values.numel() >= WORTH_A_HISTOGRAM:
        values, rank = _around(values, rank)
    return values.kthvalue(values.numel() + 1 - rank).values


def _around(values: Tensor, rank: int) -> tuple[Tensor, int]:
    """Return the values that share their leading bits with the one of this rank from the top, and its rank in them.

    The bits of floats that are not negative rise with their values; the others here count as the lowest.
    """
    bits = values.view(torch.int32) >> 16 if values.dtype == torch.float32 else values.view(torch.int64) >> 48
    from_top = torch.bincount(bits.clamp_(min=0)).flip(0).cumsum(0)
    place = int(torch.searchsorted(from_top, rank))
    above = int(from_top[place - 1]) if place else 0
    same = torch.eq(bits, len(from_top) - 1 - place, out=torch.empty_like(bits)).view(-1)
    return values[same.nonzero().squeeze(1)], rank - above
