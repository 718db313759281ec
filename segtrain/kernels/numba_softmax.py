"""The softmax class sums of a run of pixels on a CPU, forward; compiled by Numba. See `numba_pixels`."""

from __future__ import annotations

import numpy as np

from segtrain.kernels.numba_compile import Kernel, exact, reordered
from segtrain.kernels.numba_math import logarithm
from segtrain.kernels.numba_pixels import (
    FOCAL,
    FREE,
    INVERSE,
    KEPT,
    LENGTH,
    LOSS,
    NONE,
    OWN,
    ROW,
    SCORES,
    SMALLEST_SQUARED,
    TOP,
    WEIGHT,
    P,
    count,
    exponentiate,
    focal_power,
    load,
    settle,
    take_out,
)

F32 = np.float32
at = np.uint64  # of a place: Numba asks of signed ones whether they are negative, pixel by pixel
COLUMNS = 6  # of the table by label: pixels, kept, p, ℓ, focal, p²
FEW_CLASSES = 8
WAYS = 4  # tables that neighbouring pixels are added to in turn: an addition to one place waits for the last


@exact
def mine(length, cut, start, losses, mask, work):
    """Store the losses, and leave pixels of no more than `cut` out of the pixel terms; NaN stays in, to show."""
    for b in range(length):
        losses[at(start + b)] = work[LOSS + b]
    for b in range(length):
        mask[at(start + b)] = not work[LOSS + b] <= cut
    for b in range(length):
        work[KEPT + b] = F32(0) if work[LOSS + b] <= cut else work[WEIGHT + b]


@exact
def add_by_label(labels, start, length, work, table):
    """Add the values of each pixel to the row of its label."""
    for b in range(length):
        row = at(WAYS * labels[at(start + b)] + b % WAYS)
        table[row, 0] += work[WEIGHT + b]
        table[row, 1] += work[KEPT + b]
        table[row, 2] += work[FREE + b]
        table[row, 3] += work[LOSS + b]
        table[row, 4] += work[FOCAL + b]


@reordered
def add_of_each_label(labels, start, length, num_classes, work, table):
    """The same by a pass for each label: many pixels at once, and faster where labels are few."""
    for c in range(num_classes):
        zero = work.dtype.type(0)
        weight = kept = p = loss = focal = zero
        for b in range(length):
            weight += work[WEIGHT + b] if labels[at(start + b)] == c else zero
            kept += work[KEPT + b] if labels[at(start + b)] == c else zero
            p += work[FREE + b] if labels[at(start + b)] == c else zero
            loss += work[LOSS + b] if labels[at(start + b)] == c else zero
            focal += work[FOCAL + b] if labels[at(start + b)] == c else zero
        row = WAYS * c
        table[row, 0] += weight
        table[row, 1] += kept
        table[row, 2] += p
        table[row, 3] += loss
        table[row, 4] += focal


@reordered
def add_by_class(length, work, sums):
    """Add Σ_b e_cb INVERSE_b to each sum."""
    for c in range(sums.shape[1]):
        total = work.dtype.type(0)
        for b in range(length):
            total += work[at(SCORES + c * ROW + b)] * work[INVERSE + b]
        sums[0, c] += total


@reordered
def add_squares(length, work, sums):
    """Add Σ_b p_cb² weight_b to each sum."""
    for c in range(sums.shape[1]):
        total = work.dtype.type(0)
        for b in range(length):
            p = work[at(SCORES + c * ROW + b)] * work[INVERSE + b]
            total += (p if p > SMALLEST_SQUARED else F32(0)) * p * work[WEIGHT + b]
        sums[1, c] += total


@exact
def add_own_squares(labels, start, length, work, table):
    """Add p² of the label, which is in FREE, to the row of the label."""
    for b in range(length):
        table[at(WAYS * labels[at(start + b)] + b % WAYS), 5] += work[FREE + b]


@exact
def keep_scores(labels, start, length, work, raw):
    """Copy the scores `[C, ROW]` before their exponentials are taken, those at the labels to their places."""
    for b in range(length):
        work[at(SCORES + np.int64(labels[at(start + b)]) * ROW + b)] = work[OWN + b]
    for k in range(len(raw)):
        raw[k] = work[SCORES + k]
    for b in range(length):
        work[at(SCORES + np.int64(labels[at(start + b)]) * ROW + b)] = NONE


@reordered
def add_log_mass(length, raw, work, sums):
    """Add Σ_b kept_b −log p_cb; a pixel that is not kept adds 0, whatever its scores."""
    for b in range(length):  # log Σe, which of a likely label ℓ has to the last digit
        is_top = work[OWN + b] == work[TOP + b]
        work[FREE + b] = work[LOSS + b] if is_top else -logarithm(work[INVERSE + b]) + (work[LOSS + b] - work[LOSS + b])
    for c in range(sums.shape[1]):
        total = work.dtype.type(0)
        for b in range(length):
            gap = (work[TOP + b] - raw[at(c * ROW + b)]) + work[FREE + b]
            total += gap * work[KEPT + b] if work[KEPT + b] != 0 else F32(0)
        sums[2, c] += total


@exact
def add_terms(labels, start, length, gamma, is_square, wanted, work, by_class, table):
    """Add what a block has to all sums but the log mass."""
    for b in range(length):
        work[LOSS + b] *= work[KEPT + b]
    if wanted[2]:
        focal_power(labels, start, length, gamma, is_square, work)
        for b in range(length):
            work[FOCAL + b] *= work[LOSS + b]
    else:
        for b in range(length):
            work[FOCAL + b] = F32(0)
    for b in range(length):
        work[FREE + b] = work[P + b] * work[WEIGHT + b]
    if by_class.shape[1] <= FEW_CLASSES:
        add_of_each_label(labels, start, length, by_class.shape[1], work, table)
    else:
        add_by_label(labels, start, length, work, table)
    if wanted[1]:
        for b in range(length):
            work[FREE + b] *= work[P + b]
        add_own_squares(labels, start, length, work, table)
        add_squares(length, work, by_class)
    if wanted[0]:
        for b in range(length):
            work[INVERSE + b] *= work[WEIGHT + b]
        add_by_class(length, work, by_class)


def _build(sources):
    def forward(
        stored,
        origin,
        strides,
        columns,
        start,
        stop,
        labels,
        weights,
        keep,
        shift,
        margin,
        scale,
        gamma,
        is_square,
        wanted,
        cut,
        losses,
        mask,
        by_class,
        table,
        work,
        raw,
    ):
        """Add up the sums of the pixels from `start` to `stop` of an image.

        Args:
            stored: the logits' memory, as `as_number` takes it; `origin` is the place of the image's first pixel.
            strides: of class, row and column in it, each row of `columns` pixels.
            labels: int16 [P], C where ignored.
            weights, keep: what each pixel counts, and bool whether in the pixel terms; [P], or empty for 1.
            shift, margin, gamma: [C] and twice [C + 1], with what acts on ignored pixels.
            is_square: whether γ is 2 everywhere.
            wanted: whether (probability, squared_probability, focal, log_mass) are.
            cut, losses, mask: a loss of no more leaves a pixel out of the pixel terms, and where to write the losses
                and what is kept; [P], or empty for no such rule.
            by_class: float64 [3, C], added to: Σ p and p² over the classes but the label, and the log mass.
            table: float64 [WAYS (C + 1), COLUMNS], added to: the sums by label.
            work: memory for SCORES + (C + 1) ROW numbers; raw: for C ROW, or empty without log_mass.
        """
        sources  # part of what the kept code is known by  # noqa: B018
        num_classes = len(shift)
        position = start
        while position < stop:
            row, column = position // columns, position % columns
            length = min(LENGTH, stop - position, columns - column)
            load(
                stored,
                origin + row * strides[1] + column * strides[2],
                strides,
                labels,
                position,
                length,
                shift,
                scale,
                work,
            )
            take_out(labels, position, length, margin, work)
            if wanted[3]:
                keep_scores(labels, position, length, work, raw)
            exponentiate(num_classes, length, work)
            settle(length, work)
            count(labels, position, length, num_classes, weights, keep, work)
            if len(losses) > 0:
                mine(length, cut, position, losses, mask, work)
            if wanted[3]:
                add_log_mass(length, raw, work, by_class)
            add_terms(labels, position, length, gamma, is_square, wanted, work, by_class, table)
            position += length

    return forward


forward = Kernel(_build)
