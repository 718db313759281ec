"""The softmax class sums of few classes on a GPU: each thread holds all channels of its pixels.

Every channel is a tensor of its own, unrolled, so that sums over the classes stay in a thread and C needs no padding.
Programs walk over the pixels of one image and keep their sums in registers to the end: two reads and one write of the
logits in all, forward and backward, and one exponential for each element. Logits in channels_last are read a tile at a
time, `[BLOCK, WIDTH]`, and turned so that a thread again has all channels of its pixels.
"""

from __future__ import annotations

import triton
import triton.language as tl

from segtrain.kernels.triton_enlarged import enlarged_channels
from segtrain.kernels.triton_pixel import (
    FOLD,
    add_at_label,
    add_each,
    channels_of,
    exponent_of,
    loss_of,
    power_of,
    read_labels,
    read_weights,
    store_mined,
    store_sums,
    zeros_of,
)


@triton.jit
def read_channels(
    base, p, inside, sc, LAST: tl.constexpr, C: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Return the logits of a tile in float32: C tensors `[BLOCK]`.

    `sc` is the stride of the classes, with pixels side by side; with LAST (channels_last) the C classes are.
    """
    found = ()
    if LAST:
        place = tl.arange(0, WIDTH)
        tile = base + p.to(tl.int64)[:, None] * C + place[None, :]
        raw = channels_of(tl.load(tile, mask=inside[:, None] & (place < C)[None, :], other=0.0), BLOCK, WIDTH)
    for c in tl.static_range(C):
        if LAST:
            found = found + (raw[c].to(tl.float32),)
        else:
            found = found + (tl.load(base + tl.full([], c, tl.int64) * sc + p, mask=inside, other=0.0).to(tl.float32),)
    return found


@triton.jit
def scores_of(raw, valid, label, shift, margin, C: tl.constexpr):
    """Return z + shift − margin at the label for each of C channels, 0 where ignored."""
    found = ()
    for c in tl.static_range(C):
        x = raw[c]
        if shift is not None:
            x += tl.load(shift + c)
        if margin is not None:
            x = tl.where(label == c, x - tl.load(margin + c), x)
        found = found + (tl.where(valid, x, 0.0),)
    return found


@triton.jit
def largest_of(raw, C: tl.constexpr, BLOCK: tl.constexpr):
    """Return the first channel of the largest logit, int32 `[BLOCK]`; a NaN counts as the largest, as in torch."""
    best, index = raw[0], tl.zeros([BLOCK], tl.int32)
    for c in tl.static_range(1, C):
        better = (raw[c] > best) | ((raw[c] != raw[c]) & (best == best))
        best = tl.where(better, raw[c], best)
        index = tl.where(better, c, index)
    return index


@triton.jit
def exponentials(x, label, factor, C: tl.constexpr, BLOCK: tl.constexpr):
    """Turn C scores into e^(z − max z) with 0 in place of the label's; return these, their sum, the label's, its log2.

    Where a pixel has no label (−1) the third is e^(−max z).
    """
    top = x[0]
    at_label = tl.zeros([BLOCK], tl.float32)
    for c in tl.static_range(C):
        top = tl.maximum(top, x[c])
        at_label = tl.where(label == c, x[c], at_label)
    top = top * factor
    e = ()
    others = tl.zeros([BLOCK], tl.float32)
    for c in tl.static_range(C):
        value = tl.where(label == c, 0.0, tl.exp2(x[c] * factor - top))
        others += value
        e = e + (value,)
    label_score = at_label * factor - top
    return e, others, tl.exp2(label_score), label_score


@triton.jit
def forward(
    logits, target, shift, margin, weight, keep, gammas, partial, losses, mask, counts, settled, largest,
    places, weights, pixels, sn, sc, sh, sw, height, width, ignore_index, factor, gamma, cut,
    LAST: tl.constexpr, C: tl.constexpr, WIDTH: tl.constexpr, WANTED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Put the sums of program (s, n) into partial float32 `[2 + K, N, C, S, BLOCK / 16]`; grid (S, N).

    Its rows are pixels, kept, and the K sums that WANTED names (bit i for that of SUMS).

    With `losses` hard examples are mined on the way: it receives ℓ (0 where ignored) and `mask` whether ℓ > cut, both
    in the shape of target; `counts` (int64) gains the numbers of valid and of hard pixels; the pixel terms are summed
    over the hard ones. `largest` receives the class of the largest logit. With `places` the logits are coarse, and the
    pixels those of their enlargement, see `triton_enlarged`. A program returns at once where `settled` is given and not
    0.
    """
    if settled is not None:
        if tl.load(settled) != 0:
            return
    s, n = tl.program_id(0), tl.program_id(1)
    base, first = logits + n.to(tl.int64) * sn, n.to(tl.int64) * pixels
    none = zeros_of(C, BLOCK // 2)
    sums = (none, none, none, none, none, none, none, none)
    wrong, num_valid, num_hard = (tl.zeros([BLOCK], tl.int32),) * 3
    for start in range(s * BLOCK, pixels, tl.num_programs(0) * BLOCK):
        p = start + tl.arange(0, BLOCK)
        inside = p < pixels
        label, is_wrong = read_labels(target, first + p, inside, ignore_index, C)
        valid = label >= 0
        wrong |= is_wrong.to(tl.int32)
        if places is None:
            raw = read_channels(base, p, inside, sc, LAST, C, WIDTH, BLOCK)
        else:
            raw = enlarged_channels(base, p, inside, places, weights, height, width, sc, sh, sw, C)
        if largest is not None:
            tl.store(largest + first + p, largest_of(raw, C, BLOCK).to(largest.dtype.element_ty), mask=inside)
        x = scores_of(raw, valid, label, shift, margin, C)
        e, others, label_e, label_score = exponentials(x, label, factor, C, BLOCK)
        count, kept = read_weights(weight, keep, first + p, valid)
        loss = tl.where(valid, loss_of(others, label_e, label_score), 0.0)
        if losses is not None:
            hard = store_mined(losses, mask, first + p, inside, loss, valid, cut)
            num_valid += valid.to(tl.int32)
            num_hard += hard.to(tl.int32)
            kept = tl.where(hard, count, 0.0)
        inverse = 1.0 / (others + label_e)
        if WANTED & 16:
            focal = power_of(others * inverse, exponent_of(gamma, gammas, label)) * loss
        else:
            focal = loss
        sums = add_tile(sums, x, e, label, label_e, inverse, loss, focal, count, kept, factor, C, WANTED, BLOCK)
    LANES: tl.constexpr = BLOCK // 2 // FOLD
    lanes = tl.num_programs(0).to(tl.int64) * LANES
    place = partial + n.to(tl.int64) * C * lanes + s * LANES
    store_tile(place, lanes, tl.num_programs(1) * C * lanes, sums, C, WANTED, BLOCK)
    if tl.sum(wrong) > 0:  # no host can be asked here: a label out of range shows as a loss that is not a number
        tl.debug_barrier()
        tl.store(place, float("nan"))
    if losses is not None:
        tl.atomic_add(counts, tl.sum(num_valid).to(tl.int64), sem="relaxed")
        tl.atomic_add(counts + 1, tl.sum(num_hard).to(tl.int64), sem="relaxed")


@triton.jit
def add_tile(
    sums,
    x,
    e,
    label,
    label_e,
    inverse,
    loss,
    focal,
    count,
    kept,
    factor,
    C: tl.constexpr,
    WANTED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Add a tile to the 8 rows of C sums; return the new rows. `probability` is left without the label's share."""
    pixels, kept_pixels, probability, squared, intersection, cross_entropy, focal_sums, log_mass = sums
    pixels = add_at_label(pixels, label, count, C, BLOCK)
    kept_pixels = add_at_label(kept_pixels, label, kept, C, BLOCK)
    if WANTED & 1:
        probability = add_each(probability, e, inverse * count, C, BLOCK)
    if WANTED & 2:
        squares = ()
        for c in tl.static_range(C):
            squares = squares + (e[c] * e[c],)
        weighted = inverse * inverse * count
        squared = add_each(squared, squares, weighted, C, BLOCK)
        squared = add_at_label(squared, label, label_e * label_e * weighted, C, BLOCK)
    if WANTED & 5:
        intersection = add_at_label(intersection, label, label_e * inverse * count, C, BLOCK)
    if WANTED & 8:
        cross_entropy = add_at_label(cross_entropy, label, loss * kept, C, BLOCK)
    if WANTED & 16:
        focal_sums = add_at_label(focal_sums, label, focal * kept, C, BLOCK)
    if WANTED & 32:  # Σ k (log Σ e^z − z_c), in which log Σ e^z = ℓ + z at the label
        at_label = tl.zeros([BLOCK], tl.float32)
        for c in tl.static_range(C):
            at_label = tl.where(label == c, x[c], at_label)
        scaled = factor * 0.6931471805599453
        terms = ()
        for c in tl.static_range(C):
            terms = terms + (loss + (at_label - x[c]) * scaled,)
        log_mass = add_each(log_mass, terms, kept, C, BLOCK)
    return (pixels, kept_pixels, probability, squared, intersection, cross_entropy, focal_sums, log_mass)


@triton.jit
def store_tile(place, lanes, stride, sums, C: tl.constexpr, WANTED: tl.constexpr, BLOCK: tl.constexpr):
    """Store the counts and the wanted rows, `stride` apart."""
    for k in tl.static_range(8):
        if k == 2 and WANTED & 1:
            whole = ()
            for c in tl.static_range(C):
                whole = whole + (sums[2][c] + sums[4][c],)
            store_sums(place, whole, C, BLOCK // 2, lanes)
            place += stride
        elif k < 2 or (k > 2 and (WANTED << 2 >> k) & 1):
            store_sums(place, sums[k], C, BLOCK // 2, lanes)
            place += stride
