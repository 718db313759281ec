"""Hard-example mining over a read in chunks: a threshold is taken at once, and taken back if it keeps too few."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from segtrain.kernels.mining import HardExamples

MINED = ("cross_entropy", "focal")  # the sums by label that mining leaves pixels out of


class MinedRead:
    """Collects the loss of each pixel and the mask of what is kept.

    Attributes:
        losses: float, −log p_y of each pixel, anything where ignored.
        mask: bool, the same shape; final after `finish`, anything where ignored.
        was_right: after `finish`, whether what `take` returned was the final mask.
    """

    def __init__(self, rule: HardExamples, shape: torch.Size, *, dtype: torch.dtype) -> None:
        self.rule = rule
        self.losses = torch.empty(shape, dtype=dtype)
        self.mask = torch.empty(shape, dtype=torch.bool)
        self.was_right = False
        self._at_once = rule.threshold is not None and rule.threshold < 1 and not rule.per_class

    def take(self, where: tuple[slice, ...], loss: Tensor) -> Tensor:
        """Store the losses of a chunk; return 1.0 for what a threshold keeps of it, in their shape.

        A loss of NaN is not kept, and shows all the same: 0 times it is NaN.
        """
        place = self.losses[where]
        place.copy_(loss.view(place.shape))
        if not self._at_once:
            return torch.zeros_like(loss)
        hard = torch.empty_like(loss)
        torch.gt(loss, self.rule.cut, out=hard)  # many times faster than a comparison that makes a bool
        self.mask.view(torch.uint8)[where] = hard.view(place.shape)
        return hard

    def finish(
        self, num_valid: Tensor, num_kept: Callable[[], Tensor], buckets: Callable[[], Tensor], *, num_buckets: int
    ) -> Tensor:
        """Return the final mask, given how many pixels count, and how many of them `take` kept.

        `buckets` are the rule's.
        """
        if self._at_once and self.losses.numel():
            self.was_right = bool(num_kept() >= self.rule.least(num_valid.long()))
        if not self.was_right:
            self.mask = self.rule(self.losses, buckets(), num_buckets=num_buckets)
        return self.mask
