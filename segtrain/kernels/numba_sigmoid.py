"""The sigmoid class sums of a run of pixels of one class on a CPU, forward and backward; compiled by Numba.

A pixel is its log-odds d against its label, −z where the target is 1 and z where it is 0: q = σ(d), p = σ(−d) and
ℓ = log(1 + e^d). The numbers of a block lie in one array, as those of softmax do (`numba_pixels`).
"""

from __future__ import annotations

import numpy as np

from segtrain.kernels.numba_compile import Kernel, exact, reordered
from segtrain.kernels.numba_math import as_number, as_stored, exponential, logarithm, power

F32 = np.float32
at = np.uint64  # of a place: Numba asks of signed ones whether they are negative, pixel by pixel
LENGTH = 256  # pixels of a block
ODDS, P, Q, LOSS, FOCAL, WEIGHT, KEPT, VALUE, SLOPE = range(0, 9 * LENGTH, LENGTH)
WORK = 9 * LENGTH
COLUMNS = 7  # of the sums: pixels, kept, p, q, p², ℓ, focal
IGNORED = 2
SMALLEST_SQUARED = F32(1e-18)


@exact
def load(stored, origin, step, labels, start, length, shift, margin, scale, work):
    """Write d of a block, 0 where ignored."""
    if step == 1:
        for b in range(length):
            work[ODDS + b] = as_number(stored[at(origin + b)])
    else:
        for b in range(length):
            work[ODDS + b] = as_number(stored[at(origin + b * step)])
    for b in range(length):
        score = work[ODDS + b] + shift
        odds = margin - score if labels[at(start + b)] == 1 else score
        work[ODDS + b] = odds * scale if labels[at(start + b)] != IGNORED else F32(0)


@exact
def settle(length, work):
    """Find p, q and ℓ of each pixel."""
    for b in range(length):
        d = work[ODDS + b]
        e = exponential(-abs(d))
        argument = F32(1) + e
        likely = F32(1) / argument
        unlikely = e * likely
        lost = (e - (argument - F32(1))) / argument + (e - e)  # what rounding took off 1 + e; NaN stays
        work[LOSS + b] = (d if d > 0 else F32(0)) + (logarithm(argument) + lost)
        work[P + b] = unlikely if d > 0 else likely
        work[Q + b] = likely if d > 0 else unlikely


@exact
def count(labels, start, length, weights, keep, work):
    """Write what each pixel counts, and counts in the pixel terms; the weights and the mask given may be empty."""
    if len(weights) > 0:
        for b in range(length):
            work[WEIGHT + b] = F32(0) if labels[at(start + b)] == IGNORED else weights[at(start + b)]
    else:
        for b in range(length):
            work[WEIGHT + b] = F32(0) if labels[at(start + b)] == IGNORED else F32(1)
    if len(keep) > 0:
        for b in range(length):
            work[KEPT + b] = work[WEIGHT + b] if keep[at(start + b)] else F32(0)
    else:
        for b in range(length):
            work[KEPT + b] = work[WEIGHT + b]


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
def focal_power(length, gamma, work):
    """Write q^γ."""
    if gamma == 2:
        for b in range(length):
            work[FOCAL + b] = work[Q + b] * work[Q + b]
    else:
        for b in range(length):
            work[FOCAL + b] = power(work[Q + b], gamma)


@reordered
def add(labels, start, length, place, column, work, sums):
    """Add the values at a place to the sums `[2, COLUMNS]` of label 0 and of label 1."""
    zeros = ones = work.dtype.type(0)
    for b in range(length):
        value = work[place + b]
        zeros += value if labels[at(start + b)] == 0 else F32(0)
        ones += value if labels[at(start + b)] == 1 else F32(0)
    sums[0, column] += zeros
    sums[1, column] += ones


@exact
def add_product(labels, start, length, first, second, column, work, sums):
    """Add the products of the values at two places."""
    for b in range(length):
        work[VALUE + b] = work[first + b] * work[second + b]
    add(labels, start, length, VALUE, column, work, sums)


@exact
def square(labels, start, length, work):
    """Write p² to the place of d, of the label's probability or the other's: what `squared_probability` adds up."""
    for b in range(length):
        p = work[P + b] if labels[at(start + b)] == 1 else work[Q + b]
        work[ODDS + b] = (p if p > SMALLEST_SQUARED else F32(0)) * p


def _build_forward(sources):
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
        wanted,
        cut,
        losses,
        mask,
        sums,
        work,
    ):
        """Add up the sums of the pixels from `start` to `stop` of a class of an image.

        Args:
            stored, origin, strides, columns: as the softmax kernel takes them; strides of row and column.
            labels: int16 [P] of 0, 1 and IGNORED.
            weights, keep: what each pixel counts, and bool whether in the pixel terms; [P], or empty for 1.
            shift, margin, scale, gamma: numbers.
            wanted: whether (probability, squared_probability, focal) are.
            cut, losses, mask: as for softmax.
            sums: float64 [2, COLUMNS], added to: the sums over label 0 and over label 1.
            work: memory for WORK numbers.
        """
        sources  # part of what the kept code is known by  # noqa: B018
        position = start
        while position < stop:
            row, column = position // columns, position % columns
            length = min(LENGTH, stop - position, columns - column)
            load(
                stored,
                origin + row * strides[0] + column * strides[1],
                strides[1],
                labels,
                position,
                length,
                shift,
                margin,
                scale,
                work,
            )
            settle(length, work)
            count(labels, position, length, weights, keep, work)
            if len(losses) > 0:
                mine(length, cut, position, losses, mask, work)
            add(labels, position, length, WEIGHT, 0, work, sums)
            add(labels, position, length, KEPT, 1, work, sums)
            add_product(labels, position, length, LOSS, KEPT, 5, work, sums)
            if wanted[2]:
                focal_power(length, gamma, work)
                for b in range(length):
                    work[FOCAL + b] *= work[LOSS + b]
                add_product(labels, position, length, FOCAL, KEPT, 6, work, sums)
            if wanted[0]:
                add_product(labels, position, length, P, WEIGHT, 2, work, sums)
                add_product(labels, position, length, Q, WEIGHT, 3, work, sums)
            if wanted[1]:
                square(labels, position, length, work)
                add_product(labels, position, length, ODDS, WEIGHT, 4, work, sums)
            position += length

    return forward


@exact
def find_slopes(labels, start, length, slopes, gamma, has_squares, has_focal, work):
    """Write the change of the result with d: dp/dd = −p q, dq/dd = p q, dℓ/dd = q."""
    if has_focal:
        focal_power(length, gamma, work)
        for b in range(length):
            share = work[LOSS + b] / work[Q + b] if work[Q + b] > 0 else work[Q + b] + F32(1)  # ℓ/q → 1
            work[FOCAL + b] *= F32(1) + gamma * work[P + b] * share
    for b in range(length):
        work[SLOPE + b] = slopes[1, 1] if labels[at(start + b)] == 1 else slopes[0, 1]
    if has_focal:
        for b in range(length):
            of_focal = slopes[1, 2] if labels[at(start + b)] == 1 else slopes[0, 2]
            work[SLOPE + b] += work[FOCAL + b] * of_focal
    for b in range(length):
        of_mass = slopes[1, 0] if labels[at(start + b)] == 1 else slopes[0, 0]
        work[SLOPE + b] = work[SLOPE + b] * work[KEPT + b] + of_mass * work[P + b] * work[WEIGHT + b]
    if has_squares:
        for b in range(length):
            p = work[P + b] if labels[at(start + b)] == 1 else work[Q + b]
            of_square = slopes[1, 3] if labels[at(start + b)] == 1 else slopes[0, 3]
            work[SLOPE + b] += F32(2) * of_square * p * work[P + b] * work[WEIGHT + b]


@exact
def store(result, origin, step, labels, start, length, work):
    """Write the gradient of a block: d falls with z where the target is 1."""
    for b in range(length):
        slope = work[SLOPE + b] * work[Q + b]
        work[SLOPE + b] = (
            (-slope if labels[at(start + b)] == 1 else slope) if labels[at(start + b)] != IGNORED else F32(0)
        )
    if step == 1:
        for b in range(length):
            result[at(origin + b)] = as_stored(work[SLOPE + b], result[0])
    else:
        for b in range(length):
            result[at(origin + b * step)] = as_stored(work[SLOPE + b], result[0])


def _build_backward(sources):
    def backward(
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
        has,
        slopes,
        result,
        result_origin,
        result_strides,
        work,
    ):
        """Write the gradient of the pixels from `start` to `stop` of a class of an image.

        Args:
            has: whether there are slopes of (squared_probability, focal).
            slopes: [2, 4], for label 0 and label 1, times scale: of q or p less that of the other, ℓ, focal, square.
            result, result_origin, result_strides: where to write, as `stored`, `origin` and `strides`.
        """
        sources  # part of what the kept code is known by  # noqa: B018
        position = start
        while position < stop:
            row, column = position // columns, position % columns
            length = min(LENGTH, stop - position, columns - column)
            load(
                stored,
                origin + row * strides[0] + column * strides[1],
                strides[1],
                labels,
                position,
                length,
                shift,
                margin,
                scale,
                work,
            )
            settle(length, work)
            count(labels, position, length, weights, keep, work)
            find_slopes(labels, position, length, slopes, gamma, has[0], has[1], work)
            place = result_origin + row * result_strides[0] + column * result_strides[1]
            store(result, place, result_strides[1], labels, position, length, work)
            position += length

    return backward


forward = Kernel(_build_forward)
backward = Kernel(_build_backward)
