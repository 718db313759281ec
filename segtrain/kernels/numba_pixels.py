"""What the softmax class sums of a block of pixels start from on a CPU, forward and backward; compiled by Numba.

Pixels are worked on in blocks whose numbers stay in the cache. A pixel has e_c = exp(z_c − max z),
q = Σ_{j≠y} e_j / Σ_j e_j (1 − p_y would round to 0 near a certain label) and ℓ = −log p_y.

A block has its numbers in one array, `work`: in the place of each name below those of its pixels, and from SCORES on a
row for each class and one for ignored pixels. As the compiler knows how far apart they are, it sees that loops over
pixels can take many at once. Loops alone: what Numba does with whole arrays takes long to compile.
"""

from __future__ import annotations

import numpy as np

from segtrain.kernels.numba_compile import exact
from segtrain.kernels.numba_math import as_number, exponential, logarithm, power

F32 = np.float32
at = np.uint64  # of a place: Numba asks of signed ones whether they are negative, pixel by pixel
NONE = F32(-np.inf)
LENGTH = 256  # pixels of a block
TOP, OWN, OTHERS, INVERSE, LOSS, P, Q, WEIGHT, KEPT, FOCAL, SLOPE, WEIGHED, SQUARES, FREE = range(
    0, 14 * LENGTH, LENGTH
)
SCORES = 14 * LENGTH
ROW = LENGTH + 16  # a power of two would crowd the rows into a few lines of the cache
SMALLEST_SQUARED = F32(1e-18)  # squares of less are no normal numbers, which are slow


@exact
def load(stored, origin, strides, labels, start, length, shift, scale, work):
    """Write scale · (z + shift) of a block to the scores, 0 where ignored, and the largest of each pixel to TOP."""
    num_classes, step = len(shift), strides[2]
    for b in range(length):
        work[TOP + b] = NONE
        work[at(SCORES + num_classes * ROW + b)] = F32(0)
    for c in range(num_classes):
        first, added, scores = at(origin + c * strides[0]), shift[c], SCORES + c * ROW
        if step == 1:
            for b in range(length):
                number = as_number(stored[first + at(b)])
                score = (number + added) * scale if labels[at(start + b)] != num_classes else F32(0)
                work[at(scores + b)] = score
                work[TOP + b] = score if score > work[TOP + b] else work[TOP + b]
        else:
            for b in range(length):
                number = as_number(stored[first + at(b * step)])
                score = (number + added) * scale if labels[at(start + b)] != num_classes else F32(0)
                work[at(scores + b)] = score
                work[TOP + b] = score if score > work[TOP + b] else work[TOP + b]


@exact
def take_out(labels, start, length, margin, work):
    """Move the score at the label to OWN, less the margin: −inf stands in its place."""
    for b in range(length):
        label = at(labels[at(start + b)])
        place = at(SCORES) + label * at(ROW) + at(b)
        work[OWN + b] = work[place] - margin[label]
        work[place] = NONE
    for b in range(length):
        work[TOP + b] = work[OWN + b] if work[OWN + b] > work[TOP + b] else work[TOP + b]


@exact
def exponentiate(num_classes, length, work):
    """Turn scores into e, and add them up to OTHERS."""
    for b in range(length):
        work[OTHERS + b] = F32(0)
    for c in range(num_classes):
        scores = SCORES + c * ROW
        for b in range(length):
            e = exponential(work[at(scores + b)] - work[TOP + b])
            work[at(scores + b)] = e
            work[OTHERS + b] += e


@exact
def settle(length, work):
    """Find 1/Σe, p_y, q and ℓ of each pixel."""
    for b in range(length):
        difference, rest = work[OWN + b] - work[TOP + b], work[OTHERS + b]
        e = exponential(difference)
        total = rest + e
        is_likely = rest < e
        # log(1 + rest / e) for a likely label, exact to the last digit; the other form where e is all but 0
        ratio = rest / e if is_likely else F32(0)
        argument = F32(1) + ratio if is_likely else total
        lost = (ratio - (argument - F32(1))) / argument if is_likely else -difference
        work[LOSS + b] = logarithm(argument) + lost + (total - total)  # NaN stays
        inverse = F32(1) / total
        work[INVERSE + b] = inverse
        work[P + b] = e * inverse
        work[Q + b] = rest * inverse


@exact
def count(labels, start, length, ignored, weights, keep, work):
    """Write what each pixel counts, and counts in the pixel terms; the weights and the mask given may be empty."""
    if len(weights) > 0:
        for b in range(length):
            work[WEIGHT + b] = F32(0) if labels[at(start + b)] == ignored else weights[at(start + b)]
    else:
        for b in range(length):
            work[WEIGHT + b] = F32(0) if labels[at(start + b)] == ignored else F32(1)
    if len(keep) > 0:
        for b in range(length):
            work[KEPT + b] = work[WEIGHT + b] if keep[at(start + b)] else F32(0)
    else:
        for b in range(length):
            work[KEPT + b] = work[WEIGHT + b]


@exact
def focal_power(labels, start, length, gamma, is_square, work):
    """Write q^γ, γ of the label."""
    if is_square:
        for b in range(length):
            work[FOCAL + b] = work[Q + b] * work[Q + b]
        return
    for b in range(length):
        work[FOCAL + b] = gamma[at(labels[at(start + b)])]
    for b in range(length):
        work[FOCAL + b] = power(work[Q + b], work[FOCAL + b])
