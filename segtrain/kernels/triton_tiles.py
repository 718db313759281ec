"""The softmax class sums of many classes on a GPU: a tile of all channels of a few pixels in registers.

One read, one exponential for each element, no unrolling, any number of classes up to what registers hold. The forward
gives the loss of each pixel, from which `triton_labels` makes the sums by label, and the sums over all classes.
"""

from __future__ import annotations

import triton
import triton.language as tl

from segtrain.kernels.triton_columns_backward import label_slopes
from segtrain.kernels.triton_enlarged import enlarged_tile
from segtrain.kernels.triton_pixel import exponent_of, loss_of, read_labels, read_weights, store_mined


@triton.jit
def along(values, LAST: tl.constexpr):
    """Put `[BLOCK]` along the pixels of a tile: it is `[BLOCK, WIDTH]` with LAST, else `[WIDTH, BLOCK]`."""
    if LAST:
        return values[:, None]
    else:
        return values[None, :]


@triton.jit
def across(values, LAST: tl.constexpr):
    """Put `[WIDTH]` along the classes of a tile."""
    if LAST:
        return values[None, :]
    else:
        return values[:, None]


@triton.jit
def place_of(p, c, sc, LAST: tl.constexpr, C: tl.constexpr):
    """Return the offsets of a tile in an image: `sc` is the stride of the classes, except with LAST."""
    if LAST:
        return p.to(tl.int64)[:, None] * C + c[None, :]
    else:
        return c.to(tl.int64)[:, None] * sc + p[None, :]


@triton.jit
def read_tile(base, p, c, inside, sc, LAST: tl.constexpr, C: tl.constexpr):
    """Return the logits of a tile in float32, 0 beyond the image and the classes."""
    wanted = along(inside, LAST) & across(c < C, LAST)
    return tl.load(base + place_of(p, c, sc, LAST, C), mask=wanted, other=0.0).to(tl.float32)


@triton.jit
def largest_of_tile(raw, c, LAST: tl.constexpr, C: tl.constexpr, WIDTH: tl.constexpr):
    """Return the first class of the largest logit, int32 `[BLOCK]`; a NaN counts as the largest, as in torch.

    Floats are compared by their bits, turned so that they rise with the values.
    """
    AXIS: tl.constexpr = 1 if LAST else 0
    bits = tl.where(raw == 0.0, 0.0, raw).to(tl.int32, bitcast=True)  # −0 is 0
    rank = tl.where(raw != raw, 0x7FFFFFFF, bits ^ ((bits >> 31) & 0x7FFFFFFF))
    rank = tl.where(across(c < C, LAST), rank, -0x80000000)
    is_largest = rank == along(tl.max(rank, axis=AXIS), LAST)
    return tl.min(tl.where(is_largest, across(c, LAST), WIDTH), axis=AXIS)


@triton.jit
def scores_of_tile(x, c, valid, label, shift, margin, factor, LAST: tl.constexpr, C: tl.constexpr):
    """Return factor · (x + shift − margin at the label) of a tile: 0 where ignored, −∞ beyond the classes."""
    known = across(c < C, LAST)
    if shift is not None:
        x += across(tl.load(shift + c, mask=c < C, other=0.0), LAST)
    if margin is not None:
        is_label = across(c, LAST) == along(label, LAST)
        x = tl.where(is_label, x - across(tl.load(margin + c, mask=c < C, other=0.0), LAST), x)
    x = tl.where(along(valid, LAST), x * factor, 0.0)
    return tl.where(known, x, float("-inf"))


@triton.jit
def exponentials_of_tile(x, c, label, LAST: tl.constexpr):
    """Return e^(x − max x) with 0 at the label, their sum, the label's e, and its exponent, all in powers of two."""
    AXIS: tl.constexpr = 1 if LAST else 0
    is_label = across(c, LAST) == along(label, LAST)
    top = tl.max(x, axis=AXIS)
    label_score = tl.sum(tl.where(is_label, x, 0.0), axis=AXIS) - top
    e = tl.where(is_label, 0.0, tl.exp2(x - along(top, LAST)))
    return e, tl.sum(e, axis=AXIS), tl.exp2(label_score), label_score


@triton.jit
def forward(
    logits, target, shift, margin, weight, keep, partial, losses, mask, counts, settled, largest,
    places, weights, pixels, sn, sc, sh, sw, height, width, ignore_index, factor, cut,
    LAST: tl.constexpr, C: tl.constexpr, WIDTH: tl.constexpr, WANTED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the loss of each pixel, and put sums of program (s, n) into partial `[K, N, C, S]`; grid (S, N).

    Its rows are those of WANTED that are no sums by label: probability (1), squared_probability (2), log_mass (32).
    `losses`, `mask`, `counts`, `settled` and `largest` are as in `triton_columns.forward`; the first is always given
    where it is not a read for log_mass alone, the next two with mining. So are `places` and what comes with them.
    """
    if settled is not None:
        if tl.load(settled) != 0:
            return
    s, n = tl.program_id(0), tl.program_id(1)
    base, first = logits + n.to(tl.int64) * sn, n.to(tl.int64) * pixels
    c = tl.arange(0, WIDTH)
    SHAPE: tl.constexpr = [BLOCK, WIDTH] if LAST else [WIDTH, BLOCK]
    probability, squared, log_mass = (tl.zeros(SHAPE, tl.float32),) * 3
    num_valid, num_hard = (tl.zeros([BLOCK], tl.int32),) * 2
    for start in range(s * BLOCK, pixels, tl.num_programs(0) * BLOCK):
        p = start + tl.arange(0, BLOCK)
        inside = p < pixels
        label, _ = read_labels(target, first + p, inside, ignore_index, C)
        valid = label >= 0
        if places is None:
            raw = read_tile(base, p, c, inside, sc, LAST, C)
        else:
            y, x = p // width, p % width
            raw = enlarged_tile(base, y, x, c, inside, places, weights, height, width, sc, sh, sw, C)
        if largest is not None:
            found = largest_of_tile(raw, c, LAST, C, WIDTH)
            tl.store(largest + first + p, found.to(largest.dtype.element_ty), mask=inside)
        x = scores_of_tile(raw, c, valid, label, shift, margin, factor, LAST, C)
        e, others, label_e, label_score = exponentials_of_tile(x, c, label, LAST)
        loss = tl.where(valid, loss_of(others, label_e, label_score), 0.0)
        count, kept = read_weights(weight, keep, first + p, valid)
        if counts is not None:
            hard = store_mined(losses, mask, first + p, inside, loss, valid, cut)
            num_valid += valid.to(tl.int32)
            num_hard += hard.to(tl.int32)
        elif losses is not None:
            tl.store(losses + first + p, loss, mask=inside)
        inverse = count / (others + label_e)
        if WANTED & 3:
            is_label = across(c, LAST) == along(label, LAST)
            e = tl.where(is_label, along(label_e, LAST), e)
        if WANTED & 1:
            probability += e * along(inverse, LAST)
        if WANTED & 2:
            squared += e * e * along(inverse / (others + label_e), LAST)
        if WANTED & 32:
            AXIS: tl.constexpr = 1 if LAST else 0
            at_label = tl.sum(tl.where(across(c, LAST) == along(label, LAST), x, 0.0), axis=AXIS)
            log_mass += (along(loss, LAST) + (along(at_label, LAST) - x) * 0.6931471805599453) * along(kept, LAST)
    PIXELS: tl.constexpr = 0 if LAST else 1
    programs = tl.num_programs(0).to(tl.int64)
    place = partial + (n.to(tl.int64) * C + c) * programs + s
    stride = tl.num_programs(1) * C * programs
    if WANTED & 1:
        tl.store(place, tl.sum(probability, axis=PIXELS), mask=c < C)
        place += stride
    if WANTED & 2:
        tl.store(place, tl.sum(squared, axis=PIXELS), mask=c < C)
        place += stride
    if WANTED & 32:
        tl.store(place, tl.sum(log_mass, axis=PIXELS), mask=c < C)
    if counts is not None:
        tl.atomic_add(counts, tl.sum(num_valid).to(tl.int64), sem="relaxed")
        tl.atomic_add(counts + 1, tl.sum(num_hard).to(tl.int64), sem="relaxed")


@triton.jit
def backward(
    logits, target, shift, margin, weight, keep, gammas, grads, result,
    pixels, sn, sc, ignore_index, factor, gamma,
    LAST: tl.constexpr, C: tl.constexpr, WIDTH: tl.constexpr, WANTED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the gradient of the scores z of image n, as `triton_columns.backward` does; grid (any, N)."""
    n = tl.program_id(1).to(tl.int64)
    base, first = logits + n * sn, n * pixels
    table = grads + n * C
    stride = tl.num_programs(1).to(tl.int64) * C
    c = tl.arange(0, WIDTH)
    slopes, squares, log_slopes = vector_slopes(table, stride, c, C, WANTED)
    of_all = tl.sum(log_slopes)
    for start in range(tl.program_id(0) * BLOCK, pixels, tl.num_programs(0) * BLOCK):
        p = start + tl.arange(0, BLOCK)
        inside = p < pixels
        label, _ = read_labels(target, first + p, inside, ignore_index, C)
        raw = read_tile(base, p, c, inside, sc, LAST, C)
        count, kept = read_weights(weight, keep, first + p, label >= 0)
        value = gradient_of_tile(
            raw, c, label, count, kept, shift, margin, factor, gamma, gammas, table, stride,
            slopes, squares, log_slopes, of_all, LAST, C, WANTED,
        )  # fmt: skip
        stored = along(inside, LAST) & across(c < C, LAST)
        tl.store(
            result + n * C * pixels + place_of(p, c, pixels, LAST, C), value.to(result.dtype.element_ty), mask=stored
        )


@triton.jit
def gradient_of_tile(
    raw, c, label, count, kept, shift, margin, factor, gamma, gammas, table, stride,
    slopes, squares, log_slopes, of_all, LAST: tl.constexpr, C: tl.constexpr, WANTED: tl.constexpr,
):  # fmt: skip
    """Return the gradient of the logits of a tile, 0 where ignored; what is not of the tile is of `vector_slopes`."""
    AXIS: tl.constexpr = 1 if LAST else 0
    valid = label >= 0
    x = scores_of_tile(raw, c, valid, label, shift, margin, factor, LAST, C)
    e, others, label_e, label_score = exponentials_of_tile(x, c, label, LAST)
    inverse = tl.where(valid, 1.0 / (others + label_e), 0.0)
    likely, unlikely = label_e * inverse, others * inverse
    p_c = e * along(inverse, LAST)
    g_c = across(slopes, LAST) + 2.0 * across(squares, LAST) * p_c
    dot = tl.sum(p_c * g_c, axis=AXIS)
    loss = loss_of(others, label_e, label_score)
    exponent = exponent_of(gamma, gammas, label)
    s, g, _, at_mass = label_slopes(table, stride, label, loss, likely, unlikely, kept, exponent, (), 0, WANTED)
    at_label = -s * unlikely + count * likely * (g * unlikely - dot) + kept * (of_all * likely - at_mass)
    shared = s - count * (dot + likely * g) + kept * of_all
    value = p_c * (along(shared, LAST) + along(count, LAST) * g_c)
    if WANTED & 32:
        value -= along(kept, LAST) * across(log_slopes, LAST)
    return tl.where(across(c, LAST) == along(label, LAST), along(at_label, LAST), value)


@triton.jit
def vector_slopes(table, stride, c, C: tl.constexpr, WANTED: tl.constexpr):
    """Load the gradients of probability, squared_probability and log_mass, `[WIDTH]` each; 0 where not wanted."""
    slopes, squares, log_slopes = (tl.zeros_like(c).to(tl.float32),) * 3
    last: tl.constexpr = (WANTED & 1) + (WANTED >> 1 & 1) + (WANTED >> 2 & 1) + (WANTED >> 3 & 1) + (WANTED >> 4 & 1)
    if WANTED & 1:
        slopes = tl.load(table + c, mask=c < C, other=0.0)
    if WANTED & 2:
        squares = tl.load(table + (WANTED & 1) * stride + c, mask=c < C, other=0.0)
    if WANTED & 32:
        log_slopes = tl.load(table + last * stride + c, mask=c < C, other=0.0)
    return slopes, squares, log_slopes
