"""The gradient of the softmax class sums of few classes on a GPU, by the tiles of `triton_columns`."""

from __future__ import annotations

import triton
import triton.language as tl

from segtrain.kernels.triton_columns import exponentials, read_channels, scores_of
from segtrain.kernels.triton_pixel import (
    exponent_of,
    focal_slope,
    loss_of,
    read_labels,
    read_weights,
    stacked,
)


@triton.jit
def backward(
    logits, target, shift, margin, weight, keep, gammas, grads, result,
    pixels, sn, sc, ignore_index, factor, gamma,
    LAST: tl.constexpr, C: tl.constexpr, WIDTH: tl.constexpr, WANTED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the gradient of the scores z of image n: dense, with LAST in channels_last; grid (any, N).

    `grads` float32 `[K, N, C]` is that of the wanted sums, times scale: g_c = G_prob + 2 G_sq p_c + G_inter at the
    label, and dz_c = p_c (s − ⟨p, g⟩ + ΣG_log + g_c) − G_log, in which the label's own is written with q so that no
    digits are lost where it is all but certain.
    """
    n = tl.program_id(1).to(tl.int64)
    base, first = logits + n * sn, n * pixels
    table = grads + n * C
    stride = tl.num_programs(1).to(tl.int64) * C
    slopes, squares, log_slopes = uniform_slopes(table, stride, C, WANTED)
    for start in range(tl.program_id(0) * BLOCK, pixels, tl.num_programs(0) * BLOCK):
        p = start + tl.arange(0, BLOCK)
        inside = p < pixels
        label, _ = read_labels(target, first + p, inside, ignore_index, C)
        valid = label >= 0
        raw = read_channels(base, p, inside, sc, LAST, C, WIDTH, BLOCK)
        x = scores_of(raw, valid, label, shift, margin, C)
        e, others, label_e, label_score = exponentials(x, label, factor, C, BLOCK)
        count, kept = read_weights(weight, keep, first + p, valid)
        inverse = tl.where(valid, 1.0 / (others + label_e), 0.0)
        likely, unlikely = label_e * inverse, others * inverse
        dot = tl.zeros([BLOCK], tl.float32)  # Σ p_j g_j over the other classes
        for c in tl.static_range(C):
            if WANTED & 1:
                dot += e[c] * slopes[c]
            if WANTED & 2:
                dot += e[c] * e[c] * (2.0 * inverse * squares[c])
        dot *= inverse
        loss = loss_of(others, label_e, label_score)
        exponent = exponent_of(gamma, gammas, label)
        s, g, of_mass, at_mass = label_slopes(
            table, stride, label, loss, likely, unlikely, kept, exponent, log_slopes, C, WANTED
        )
        at_label = -s * unlikely + count * likely * (g * unlikely - dot) + kept * (of_mass * likely - at_mass)
        shared = s - count * (dot + likely * g) + kept * of_mass
        dz = ()
        for c in tl.static_range(C):
            p_c = e[c] * inverse
            factor_c = shared
            if WANTED & 1:
                factor_c += count * slopes[c]
            if WANTED & 2:
                factor_c += count * (2.0 * squares[c] * p_c)
            value = p_c * factor_c
            if WANTED & 32:
                value -= kept * log_slopes[c]
            dz = dz + (tl.where(label == c, at_label, value).to(result.dtype.element_ty),)
        write_channels(result + n * C * pixels, p, inside, dz, pixels, LAST, C, WIDTH, BLOCK)


@triton.jit
def write_channels(
    base, p, inside, values, pixels, LAST: tl.constexpr, C: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr
):
    """Store C tensors `[BLOCK]` in a dense image, where `read_channels` would read them."""
    if LAST:
        place = tl.arange(0, WIDTH)
        tile = base + p.to(tl.int64)[:, None] * C + place[None, :]
        tl.store(tile, stacked(values, 0, BLOCK, C, WIDTH), mask=inside[:, None] & (place < C)[None, :])
    else:
        for c in tl.static_range(C):
            tl.store(base + tl.full([], c, tl.int64) * pixels + p, values[c], mask=inside)


@triton.jit
def uniform_slopes(table, stride, C: tl.constexpr, WANTED: tl.constexpr):
    """Load what is the same for all pixels: C numbers each for probability, squared_probability and log_mass."""
    slopes, squares, log_slopes = (), (), ()
    last: tl.constexpr = (WANTED & 1) + (WANTED >> 1 & 1) + (WANTED >> 2 & 1) + (WANTED >> 3 & 1) + (WANTED >> 4 & 1)
    for c in tl.static_range(C):
        if WANTED & 1:
            slopes = slopes + (tl.load(table + c),)
        if WANTED & 2:
            squares = squares + (tl.load(table + (WANTED & 1) * stride + c),)
        if WANTED & 32:
            log_slopes = log_slopes + (tl.load(table + last * stride + c),)
    return slopes, squares, log_slopes


@triton.jit
def label_slopes(
    table, stride, label, loss, likely, unlikely, kept, exponent, log_slopes, C: tl.constexpr, WANTED: tl.constexpr
):
    """Return s, g at the label, ΣG_log and G_log at the label, of each pixel; 0 where it has no label."""
    known = label >= 0
    s, g, of_mass, at_mass = likely * 0.0, likely * 0.0, likely * 0.0, likely * 0.0
    row = table + label
    if WANTED & 1:
        g += tl.load(row, mask=known, other=0.0)
        row += stride
    if WANTED & 2:
        g += 2.0 * likely * tl.load(row, mask=known, other=0.0)
        row += stride
    if WANTED & 4:
        g += tl.load(row, mask=known, other=0.0)
        row += stride
    if WANTED & 8:
        s += tl.load(row, mask=known, other=0.0)
        row += stride
    if WANTED & 16:
        s += tl.load(row, mask=known, other=0.0) * focal_slope(loss, likely, unlikely, exponent)
        row += stride
    if WANTED & 32:
        at_mass += tl.load(row, mask=known, other=0.0)
        for c in tl.static_range(C):
            of_mass += log_slopes[c]
    return s * kept, g, of_mass, at_mass
