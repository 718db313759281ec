"""The sums over the pixels that hard-example mining keeps, from the loss of each on a CPU; compiled by Numba."""

from __future__ import annotations

import numpy as np

from segtrain.kernels.numba_compile import Kernel, exact
from segtrain.kernels.numba_math import one_less, power

F32 = np.float32
at = np.uint64  # of a place: Numba asks of signed ones whether they are negative, pixel by pixel
LENGTH = 256  # pixels of a block
KEPT, LOSS, FOCAL = range(0, 3 * LENGTH, LENGTH)
WORK = 3 * LENGTH
COLUMNS = 3  # of the table: kept, ℓ, focal
WAYS = 4  # tables that neighbouring pixels are added to in turn: an addition to one place waits for the last


@exact
def choose(labels, start, length, num_labels, losses, mask, weights, work):
    """Write what each pixel counts, and its loss as often; a pixel that is left out has none, whatever it was."""
    for b in range(length):
        is_kept = mask[at(start + b)] & (labels[at(start + b)] != num_labels)
        work[KEPT + b] = F32(1) if is_kept else F32(0)
        work[LOSS + b] = losses[at(start + b)] if is_kept else F32(0)
    if len(weights) > 0:
        for b in range(length):
            work[KEPT + b] = weights[at(start + b)] if work[KEPT + b] > 0 else F32(0)


@exact
def find_focal(labels, start, length, gamma, work):
    """Write q^γ, q = 1 − e^{−ℓ}."""
    for b in range(length):
        work[FOCAL + b] = gamma[at(labels[at(start + b)])]
    for b in range(length):
        work[FOCAL + b] = power(one_less(work[LOSS + b]), work[FOCAL + b])


def _build(sources):
    def add_kept(labels, start, stop, losses, mask, weights, gamma, has_focal, table, work):
        """Add up the pixels from `start` to `stop` of a row that are kept.

        Args:
            labels: int16 [P], L where ignored.
            losses, mask: float and bool [P]; weights: [P], or empty for 1.
            gamma: [L + 1], a number for ignored pixels too.
            has_focal: whether focal is wanted.
            table: float64 [WAYS (L + 1), COLUMNS], added to: the sums by label.
            work: memory for WORK numbers.
        """
        sources  # part of what the kept code is known by  # noqa: B018
        position = start
        while position < stop:
            length = min(LENGTH, stop - position)
            choose(labels, position, length, len(gamma) - 1, losses, mask, weights, work)
            if has_focal:
                find_focal(labels, position, length, gamma, work)
            else:
                for b in range(length):
                    work[FOCAL + b] = F32(0)
            for b in range(length):
                row = at(WAYS * labels[at(position + b)] + b % WAYS)
                loss = work[LOSS + b] * work[KEPT + b]
                table[row, 0] += work[KEPT + b]
                table[row, 1] += loss
                table[row, 2] += work[FOCAL + b] * loss
            position += length

    return add_kept


add_kept = Kernel(_build)
