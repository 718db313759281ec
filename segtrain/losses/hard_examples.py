"""Online hard-example mining: which valid pixels stay in the pixel terms."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from segtrain.config.loss import OhemConfig

DEFAULT_MIN_KEPT = 0.05


@dataclass(frozen=True)
class HardExamples:
    """Keep the pixels with p_y < `threshold` but at least `min_kept`, or the `top_k` fraction of lowest p_y.

    Pixels are ranked over the whole batch given, among valid pixels only, by the unweighted p_y; of equal ones the
    first by position (image, row, column) is kept. Numbers of pixels from a fraction are rounded, and at least 1.
    (Shrivastava 2016; the threshold rule as in Wu 2016.)
    """

    threshold: float | None = None
    min_kept: int | float = DEFAULT_MIN_KEPT
    top_k: float | None = None

    @classmethod
    def from_config(cls, config: OhemConfig) -> HardExamples:
        """Take the rule of `loss.ohem`; `min_kept` is 0.05 where it is not given."""
        min_kept = DEFAULT_MIN_KEPT if config.min_kept is None else config.min_kept
        return cls(threshold=config.threshold, min_kept=min_kept, top_k=config.top_k)

    def __call__(self, log_odds: Tensor, valid: Tensor) -> Tensor:
        """Return the bool mask of what is kept, in the shape of its arguments.

        Args:
            log_odds: float, log(1 − p_y) − log p_y: falls as p_y rises, and separates what p_y rounds to 1.
            valid: bool, same shape; pixels that are not ignored.
        """
        if valid.numel() == 0:
            return valid
        unknown = log_odds.isnan() & valid  # a diverged pixel must show in the loss, not hide from it
        num_valid = valid.sum()
        if self.top_k is not None:
            return _hardest(log_odds, valid, _fraction(self.top_k, num_valid)) | unknown
        assert self.threshold is not None
        at_threshold = math.inf if self.threshold >= 1 else math.log(self.threshold) - math.log1p(-self.threshold)
        hard = (log_odds > -at_threshold) & valid
        if isinstance(self.min_kept, float):
            least = _fraction(self.min_kept, num_valid)
        else:
            least = num_valid.clamp(max=self.min_kept)
        num_hard = hard.sum()
        if not hard.is_cuda and num_hard >= least:  # reading a value costs nothing on the CPU
            return hard | unknown
        return _hardest(log_odds, valid, torch.maximum(least, num_hard)) | unknown


def _fraction(fraction: float, num_valid: Tensor) -> Tensor:
    """Return round(fraction × num_valid), at least 1 where there is any: int64 scalar on the same device."""
    return (num_valid.double() * fraction).round().long().clamp(min=1).minimum(num_valid)


def _hardest(log_odds: Tensor, valid: Tensor, count: Tensor) -> Tensor:
    """Mask the `count` valid pixels of the largest log-odds, the first ones by position among equals."""
    ranked = torch.where(valid, log_odds, -torch.inf).flatten()
    cut = _kth_largest(ranked, count)
    above = ranked > cut
    tied = (ranked == cut) & valid.flatten()
    mask = above | (tied & (tied.cumsum(0) <= count - above.sum()))
    return mask.view_as(valid) & valid


def _kth_largest(values: Tensor, k: Tensor) -> Tensor:
    """Return the k-th largest of the values (the largest at k = 0), without a sync on CUDA."""
    if values.is_cuda:
        return values.sort(descending=True).values.gather(0, (k - 1).clamp(min=0).view(1))
    return values.kthvalue(values.numel() + 1 - max(int(k), 1)).values
