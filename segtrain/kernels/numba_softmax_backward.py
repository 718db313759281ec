"""The gradient of the softmax class sums of a run of pixels on a CPU; compiled by Numba. See `numba_pixels`.

With f what a pixel counts, k the same in the pixel terms, g_c = G_prob[c] + G_inter[c] [c=y] + 2 G_sq[c] p_c and
s = k (G_ce[y] + G_focal[y] q^γ (1 + γ p ℓ/q)):
dz = s (p − δ_y) + f p ∘ (g − ⟨p, g⟩) + k [(ΣG_log) p − G_log].
"""

from __future__ import annotations

import numpy as np

from segtrain.kernels.numba_compile import Kernel, exact
from segtrain.kernels.numba_math import as_stored, exponential
from segtrain.kernels.numba_pixels import (
    FOCAL,
    FREE,
    INVERSE,
    KEPT,
    LENGTH,
    LOSS,
    OTHERS,
    OWN,
    ROW,
    SCORES,
    SLOPE,
    SMALLEST_SQUARED,
    SQUARES,
    TOP,
    WEIGHED,
    WEIGHT,
    P,
    Q,
    count,
    focal_power,
    load,
    settle,
    take_out,
)

F32 = np.float32
at = np.uint64  # of a place: Numba asks of signed ones whether they are negative, pixel by pixel
SLOPES = range(6)  # rows of the slopes
OF_PROBABILITY, OF_SQUARE, OF_OWN, OF_LOSS, OF_FOCAL, OF_LOG_MASS = SLOPES


@exact
def exponentiate_and_weigh(slopes, length, work):
    """Turn scores into e, and add e and slope · e up to OTHERS and WEIGHED."""
    for b in range(length):
        work[OTHERS + b] = F32(0)
        work[WEIGHED + b] = F32(0)
    for c in range(slopes.shape[1] - 1):
        slope, scores = slopes[OF_PROBABILITY, c], SCORES + c * ROW
        for b in range(length):
            e = exponential(work[at(scores + b)] - work[TOP + b])
            work[at(scores + b)] = e
            work[OTHERS + b] += e
            work[WEIGHED + b] += e * slope


@exact
def weigh_squares(slopes, length, work):
    """Add 2 slope · p² of the other classes up to SQUARES."""
    for b in range(length):
        work[SQUARES + b] = F32(0)
    for c in range(slopes.shape[1] - 1):
        twice, scores = F32(2) * slopes[OF_SQUARE, c], SCORES + c * ROW
        for b in range(length):
            p = work[at(scores + b)] * work[INVERSE + b]
            work[SQUARES + b] += (p if p > SMALLEST_SQUARED else F32(0)) * p * twice


@exact
def find_pixel_slopes(labels, start, length, slopes, gamma, is_square, has_focal, work):
    """Write s."""
    for b in range(length):
        work[SLOPE + b] = slopes[OF_LOSS, at(labels[at(start + b)])]
    if has_focal:
        if is_square:
            for b in range(length):
                work[FOCAL + b] = work[Q + b] * (work[Q + b] + F32(2) * work[P + b] * work[LOSS + b])
        else:
            focal_power(labels, start, length, gamma, False, work)
            for b in range(length):
                work[FREE + b] = gamma[at(labels[at(start + b)])]
            for b in range(length):
                share = work[LOSS + b] / work[Q + b] if work[Q + b] > 0 else work[Q + b] + F32(1)
                work[FOCAL + b] *= F32(1) + work[FREE + b] * work[P + b] * share
        for b in range(length):
            work[FREE + b] = slopes[OF_FOCAL, at(labels[at(start + b)])]
        for b in range(length):
            work[SLOPE + b] += work[FREE + b] * work[FOCAL + b]
    for b in range(length):
        work[SLOPE + b] *= work[KEPT + b]


@exact
def find_factors(labels, start, length, slopes, has_squares, work):
    """Write what each e is multiplied with into WEIGHED (for a slope of 1) and SLOPE (without one), and dz_y to OWN."""
    for b in range(length):
        work[OWN + b] = slopes[OF_OWN, at(labels[at(start + b)])]
        work[WEIGHED + b] *= work[INVERSE + b]
    if has_squares:
        for b in range(length):
            work[FREE + b] = slopes[OF_SQUARE, at(labels[at(start + b)])]
        for b in range(length):
            work[OWN + b] += F32(2) * work[FREE + b] * work[P + b]
            work[WEIGHED + b] += work[SQUARES + b]
    for b in range(length):
        # g_y − ⟨p, g⟩ by q = 1 − p_y: the plain difference would lose the slope of a pixel that is all but certain
        own, others, p, q = work[OWN + b], work[WEIGHED + b], work[P + b], work[Q + b]
        work[OWN + b] = p * (own * q - others) * work[WEIGHT + b] - work[SLOPE + b] * q
        work[SLOPE + b] -= (others + own * p) * work[WEIGHT + b]
    for b in range(length):
        work[WEIGHED + b] = work[INVERSE + b] * work[WEIGHT + b]


@exact
def add_log_mass(labels, start, length, slopes, of_all, work):
    """Add k (ΣG_log) to SLOPE, and k [(ΣG_log) p − G_log] to dz_y."""
    for b in range(length):
        work[FREE + b] = slopes[OF_LOG_MASS, at(labels[at(start + b)])]
    for b in range(length):
        work[SLOPE + b] += work[KEPT + b] * of_all
        work[OWN + b] += work[KEPT + b] * (of_all * work[P + b] - work[FREE + b])


@exact
def turn(slopes, length, has_squares, has_log, work):
    """Turn e into dz."""
    for b in range(length):
        work[SLOPE + b] *= work[INVERSE + b]
    for c in range(slopes.shape[1] - 1):
        slope, scores = slopes[OF_PROBABILITY, c], SCORES + c * ROW
        twice, of_log = F32(2) * slopes[OF_SQUARE, c], slopes[OF_LOG_MASS, c]
        if not has_squares and not has_log:
            for b in range(length):
                work[at(scores + b)] *= slope * work[WEIGHED + b] + work[SLOPE + b]
        else:
            for b in range(length):
                e = work[at(scores + b)]
                p = e * work[INVERSE + b]
                of_square = (p if p > SMALLEST_SQUARED else F32(0)) * p * twice * work[WEIGHT + b]
                value = e * (slope * work[WEIGHED + b] + work[SLOPE + b]) + of_square
                work[at(scores + b)] = value - work[KEPT + b] * of_log


@exact
def mirror(labels, start, length, work):
    """Write dz of two classes, which add up to 0: worked out apart, that of a likely class would lose its digits."""
    for c in range(2):
        for b in range(length):
            other = -work[OWN + b] if labels[at(start + b)] != 2 else F32(0)
            work[at(SCORES + c * ROW + b)] = work[OWN + b] if labels[at(start + b)] == c else other


@exact
def store(result, origin, strides, labels, start, length, num_classes, work):
    """Put dz_y in its place, and write the block to the gradient."""
    for b in range(length):
        work[at(SCORES) + at(labels[at(start + b)]) * at(ROW) + at(b)] = work[OWN + b]
    step = strides[2]
    for c in range(num_classes):
        first, scores = at(origin + c * strides[0]), SCORES + c * ROW
        if step == 1:
            for b in range(length):
                result[first + at(b)] = as_stored(work[at(scores + b)], result[0])
        else:
            for b in range(length):
                result[first + at(b * step)] = as_stored(work[at(scores + b)], result[0])


def _build(sources):
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
        is_square,
        has,
        slopes,
        result,
        result_origin,
        result_strides,
        work,
    ):
        """Write the gradient of the pixels from `start` to `stop` of an image.

        The arguments are those of the forward kernel, and:

        Args:
            has: whether there are slopes of (squared_probability, focal, log_mass).
            slopes: [6, C + 1] in the order of SLOPES, 0 where ignored; OF_OWN is what p_y is weighed with.
            result, result_origin, result_strides: where to write, as `stored`, `origin` and `strides`.
        """
        sources  # part of what the kept code is known by  # noqa: B018
        num_classes = len(shift)
        of_log_mass = work.dtype.type(0)
        for c in range(num_classes):
            of_log_mass += slopes[OF_LOG_MASS, c]
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
            exponentiate_and_weigh(slopes, length, work)
            settle(length, work)
            count(labels, position, length, num_classes, weights, keep, work)
            if has[0]:
                weigh_squares(slopes, length, work)
            find_pixel_slopes(labels, position, length, slopes, gamma, is_square, has[1], work)
            find_factors(labels, position, length, slopes, has[0], work)
            if has[2]:
                add_log_mass(labels, position, length, slopes, of_log_mass, work)
            if num_classes == 2:
                mirror(labels, position, length, work)
            else:
                turn(slopes, length, has[0], has[2], work)
            place = result_origin + row * result_strides[1] + column * result_strides[2]
            store(result, place, result_strides, labels, position, length, num_classes, work)
            position += length

    return backward


backward = Kernel(_build)
