"""Hard-example mining over a read in runs: a threshold is taken at once, and taken back if it keeps too few."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segtrain.kernels.mining import HardExamples
from segtrain.kernels.rows import Array, share_out


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
        """Return how many pixels count and were kept: from the sums, or if those are of weights, by the mask."""
        if not are_weighted:
            return sums["pixels"].sum(), sums["kept"].sum()
        valid = labels != ignored
        return valid.count_nonzero(), (self.mask & valid).count_nonzero()


def mined_sums(
    mined: Mined, labels: Array, gamma: Array, weight: Array, *, wanted: Collection[str], weight_rows: int = 1
) -> dict[str, Tensor]:
    """Return kept, cross_entropy and focal, float64 `[R, L]`, over what the mask keeps of R rows of P pixels.

    From the loss of each alone: q = 1 − e^{−ℓ}.

    Args:
        labels: int16 `[R, P]`, L where ignored.
        gamma: `[R or 1, L + 1]`.
        weight: `[R / weight_rows, P]`, each for so many rows, or `[1, 0]` for 1.
    """
    from segtrain.kernels import numba_mined

    losses, mask = mined.losses.numpy(), mined.mask.numpy()
    table = np.zeros((len(labels), gamma.shape[1], numba_mined.WAYS, numba_mined.COLUMNS))

    def work(row: int) -> None:
        numba_mined.add_kept(
            labels[row],
            0,
            labels.shape[1],
            losses[row],
            mask[row],
            weight[row // weight_rows] if weight.size else weight[0],
            gamma[min(row, len(gamma) - 1)],
            "focal" in wanted,
            table[row].reshape(-1, numba_mined.COLUMNS),
            np.empty(numba_mined.WORK, losses.dtype),
        )

    share_out(work, range(len(labels)))
    found = torch.from_numpy(table[:, :-1].sum(2))
    return dict(zip(("kept", "cross_entropy", "focal"), found.unbind(2), strict=True))
