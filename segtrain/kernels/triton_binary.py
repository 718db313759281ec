"""The sigmoid class sums on a GPU: every class of a pixel on its own, as its log-odds d against its label.

q = σ(d), p = σ(−d), ℓ = log(1 + e^d), from one exponential; d is −z where the target is 1, and z where it is 0. A tile
is BLOCK pixels of WIDTH classes, `[BLOCK, WIDTH]`: one class where the pixels of a class stand side by side.
"""

from __future__ import annotations

import triton
import triton.language as tl

from segtrain.kernels.triton_pixel import (
    exponent_of,
    focal_slope,
    log1p_by,
    power_of,
    read_labels,
    read_weights,
    store_mined,
)


@triton.jit
def read_odds(
    logits, target, shift, margin, weight, keep,
    n, p, c, pixels, num_classes, sn, sc, sp, ignore_index, scale,
):  # fmt: skip
    """Return of a tile: the label (−1 where ignored), whether it is wrong, d (0 where ignored), count, and kept.

    `sc` and `sp` are the strides of classes and pixels in the logits; target and keep are `[N, C, P]`, and weight
    `[N, P]`, side by side.
    """
    inside = (p < pixels)[:, None] & (c < num_classes)[None, :]
    place = (n * num_classes + c.to(tl.int64))[None, :] * pixels + p[:, None]
    label, wrong = read_labels(target, place, inside, ignore_index, 2)
    x = tl.load(logits + n * sn + p.to(tl.int64)[:, None] * sp + c.to(tl.int64)[None, :] * sc, mask=inside, other=0.0)
    z = x.to(tl.float32)
    if shift is not None:
        z += tl.load(shift + c, mask=c < num_classes, other=0.0)[None, :]
    if margin is not None:
        z -= tl.where(label == 1, tl.load(margin + c, mask=c < num_classes, other=0.0)[None, :], 0.0)
    z = tl.where(label >= 0, z * scale, 0.0)
    if weight is None:
        count = tl.where(label >= 0, 1.0, 0.0)
    else:
        of_pixel = tl.load(weight + n * pixels + p, mask=p < pixels, other=0.0).to(tl.float32)
        count = tl.where(label >= 0, tl.broadcast_to(of_pixel[:, None], label.shape), 0.0)
    _, kept = read_weights(None, keep, place, label >= 0)
    return label, wrong, tl.where(label == 1, -z, z), count, tl.where(kept > 0.0, count, 0.0)


@triton.jit
def pixel_of(d):
    """Return p, q and ℓ of log-odds d: one exponential, and all digits of whichever is small."""
    e = tl.exp2(-tl.abs(d) * 1.4426950408889634)
    large, small = 1.0 / (1.0 + e), e / (1.0 + e)
    log1p = tl.where(e < 0.25, log1p_by(e / (2.0 + e)), tl.log2(1.0 + e) * 0.6931471805599453)
    loss = tl.where(d <= 0.0, 0.0, d) + log1p  # of NaN NaN, and 0 of −∞
    return tl.where(d > 0.0, small, large), tl.where(d > 0.0, large, small), loss


@triton.jit
def forward(
    logits, target, shift, margin, weight, keep, gammas, partial, losses, mask, counts, settled,
    pixels, num_classes, sn, sc, sp, ignore_index, scale, gamma, cut,
    WIDTH: tl.constexpr, WANTED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Put the sums of program (s, k, n) into partial `[4 + K, N, C, S]`; grid (S, blocks of WIDTH classes, N).

    Its rows are pixels, negatives, kept and kept_negatives, and then what WANTED names (bit i for that of SUMS), the
    pixel terms followed by their negatives. Mining is as in `triton_columns.forward`, for each class of a pixel.
    """
    if settled is not None:
        if tl.load(settled) != 0:
            return
    s, k, n = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    c = k * WIDTH + tl.arange(0, WIDTH)
    none = tl.zeros([BLOCK, WIDTH], tl.float32)
    sums = (none,) * 11
    wrong, num_valid, num_hard = (tl.zeros([BLOCK, WIDTH], tl.int32),) * 3
    exponent = exponent_of(gamma, gammas, tl.where(c < num_classes, c, -1))
    for start in range(s * BLOCK, pixels, tl.num_programs(0) * BLOCK):
        p = start + tl.arange(0, BLOCK)
        label, is_wrong, d, count, kept = read_odds(
            logits, target, shift, margin, weight, keep, n, p, c, pixels, num_classes, sn, sc, sp, ignore_index, scale
        )
        wrong |= is_wrong.to(tl.int32)
        likely, unlikely, loss = pixel_of(d)
        if losses is not None:
            loss = tl.where(label >= 0, loss, 0.0)
            place = (n * num_classes + c.to(tl.int64))[None, :] * pixels + p[:, None]
            stored = (p < pixels)[:, None] & (c < num_classes)[None, :]
            hard = store_mined(losses, mask, place, stored, loss, label >= 0, cut)
            num_valid += (label >= 0).to(tl.int32)
            num_hard += hard.to(tl.int32)
            kept = tl.where(hard, count, 0.0)
        power = power_of(unlikely, exponent) * loss if WANTED & 16 else loss
        sums = add_tile(sums, label, likely, unlikely, loss, power, count, kept, WANTED)
    programs = tl.num_programs(0).to(tl.int64)
    place = partial + (n * num_classes + c.to(tl.int64)) * programs + s
    stride = tl.num_programs(2) * num_classes * programs
    spoilt = tl.where(tl.sum(tl.sum(wrong, axis=1), axis=0) > 0, float("nan"), 0.0)  # as in triton_columns
    for row in tl.static_range(11):
        if row < 4 or WANTED & (0, 0, 0, 0, 1, 2, 4, 8, 8, 16, 16)[row]:
            total = tl.sum(sums[row], axis=0)
            tl.store(place, total + spoilt if row == 0 else total, mask=c < num_classes)
            place += stride
    if losses is not None:
        tl.atomic_add(counts, tl.sum(tl.sum(num_valid, axis=1), axis=0).to(tl.int64), sem="relaxed")
        tl.atomic_add(counts + 1, tl.sum(tl.sum(num_hard, axis=1), axis=0).to(tl.int64), sem="relaxed")


@triton.jit
def add_tile(sums, label, likely, unlikely, loss, focal, count, kept, WANTED: tl.constexpr):
    """Add a tile to the 11 sums, element by element; return the new ones."""
    positive = label == 1
    probability = tl.where(positive, likely, unlikely)
    values = (
        tl.where(positive, count, 0.0),
        tl.where(positive, 0.0, count),
        tl.where(positive, kept, 0.0),
        tl.where(positive, 0.0, kept),
        probability * count,
        probability * probability * count,
        tl.where(positive, likely * count, 0.0),
        tl.where(positive, loss * kept, 0.0),
        tl.where(positive, 0.0, loss * kept),
        tl.where(positive, focal * kept, 0.0),
        tl.where(positive, 0.0, focal * kept),
    )
    added = ()
    for row in tl.static_range(11):
        if row < 4 or WANTED & (0, 0, 0, 0, 1, 2, 4, 8, 8, 16, 16)[row]:
            added = added + (sums[row] + values[row],)
        else:
            added = added + (sums[row],)
    return added


@triton.jit
def backward(
    logits, target, shift, margin, weight, keep, gammas, grads, result,
    pixels, num_classes, sn, sc, sp, rc, ignore_index, scale, gamma,
    WIDTH: tl.constexpr, WANTED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the gradient of the logits of image n to the dense `result`; grid (any, blocks of WIDTH classes, N).

    `grads` float32 `[K, N, C]` is that of the wanted sums, times scale: dz = ±k q (G_ce + G_focal …) + p q (G_prob +
    2 G_sq σ(z) + G_inter), with those of the negatives, and + for ±, where the target is 0. `rc` is the stride of the
    classes in `result`.
    """
    n = tl.program_id(2).to(tl.int64)
    c = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    known = c < num_classes
    stride = tl.num_programs(2) * num_classes
    row = grads + n * num_classes + c
    slopes = ()
    for k in tl.static_range(7):
        if WANTED & (1, 2, 4, 8, 8, 16, 16)[k]:
            slopes = slopes + (tl.load(row, mask=known, other=0.0)[None, :],)
            row += stride
        else:
            slopes = slopes + (tl.zeros([1, WIDTH], tl.float32),)
    probability, squared, intersection, loss_1, loss_0, focal_1, focal_0 = slopes
    exponent = exponent_of(gamma, gammas, tl.where(known, c, -1))
    for start in range(tl.program_id(0) * BLOCK, pixels, tl.num_programs(0) * BLOCK):
        p = start + tl.arange(0, BLOCK)
        label, _, d, count, kept = read_odds(
            logits, target, shift, margin, weight, keep, n, p, c, pixels, num_classes, sn, sc, sp, ignore_index, scale
        )
        likely, unlikely, loss = pixel_of(d)
        positive = label == 1
        slope = tl.where(positive, loss_1, loss_0)
        if WANTED & 16:
            slope += tl.where(positive, focal_1, focal_0) * focal_slope(loss, likely, unlikely, exponent)
        slope = tl.where(positive, -slope, slope) * kept * unlikely
        region = probability + 2.0 * squared * tl.where(positive, likely, unlikely)
        region += tl.where(positive, intersection, 0.0)
        value = tl.where(label >= 0, slope + region * count * likely * unlikely, 0.0)
        place = result + n * num_classes * pixels + p.to(tl.int64)[:, None] * sp + c.to(tl.int64)[None, :] * rc
        tl.store(place, value.to(result.dtype.element_ty), mask=(p < pixels)[:, None] & known[None, :])
