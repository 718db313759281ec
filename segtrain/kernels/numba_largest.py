"""The class of the largest logit of each pixel on a CPU; compiled by Numba."""

from __future__ import annotations

import numpy as np

from segtrain.kernels.numba_compile import Kernel, exact
from segtrain.kernels.numba_math import as_number

F32 = np.float32
at = np.uint64  # of a place: Numba asks of signed ones whether they are negative, pixel by pixel
LENGTH = 1024  # pixels of a block
VALUE, BEST, CLASS = range(0, 3 * LENGTH, LENGTH)
WORK = 3 * LENGTH


@exact
def load(stored, first, step, length, shift, work):
    """Write logit + shift of a block to VALUE."""
    if step == 1:
        for b in range(length):
            work[VALUE + b] = as_number(stored[at(first + b)]) + shift
    else:
        for b in range(length):
            work[VALUE + b] = as_number(stored[at(first + b * step)]) + shift


@exact
def compare(c, length, work):
    """Let class c win where it is larger; NaN is the largest of all, and of equal ones the first stays."""
    for b in range(length):
        value, best = work[VALUE + b], work[BEST + b]
        is_better = (value > best) | ((value != value) & (best == best))
        work[BEST + b] = value if is_better else best
        work[CLASS + b] = F32(c) if is_better else work[CLASS + b]


def _build(sources):
    def largest(stored, origin, strides, columns, start, stop, shift, found, work):
        """Write the class of the largest of logit + shift of the pixels from `start` to `stop` of an image.

        Args:
            stored, origin, strides, columns: as the softmax kernel takes them.
            shift: [C].
            found: uint8 or int16 [P], written to.
            work: memory for WORK numbers.
        """
        sources  # part of what the kept code is known by  # noqa: B018
        position = start
        while position < stop:
            row, column = position // columns, position % columns
            length = min(LENGTH, stop - position, columns - column)
            first = origin + row * strides[1] + column * strides[2]
            load(stored, first, strides[2], length, shift[0], work)
            for b in range(length):
                work[BEST + b] = work[VALUE + b]
                work[CLASS + b] = F32(0)
            for c in range(1, len(shift)):
                load(stored, first + c * strides[0], strides[2], length, shift[c], work)
                compare(c, length, work)
            for b in range(length):
                found[at(position + b)] = work[CLASS + b]
            position += length

    return largest


largest = Kernel(_build)
