"""The gradient of coarse logits on a GPU, from the class sums of what they are enlarged to."""

from __future__ import annotations

import triton
import triton.language as tl

from segtrain.kernels.triton_enlarged import enlarged_tile, share_of
from segtrain.kernels.triton_pixel import read_labels, read_weights
from segtrain.kernels.triton_tiles import gradient_of_tile, vector_slopes


@triton.jit(do_not_specialize=["rows", "columns"])
def backward(
    logits, target, shift, margin, weight, keep, gammas, grads, result, places, weights, spans,
    pixels, height, width, small_height, small_width, rows, columns, sn, sc, sh, sw, ignore_index, factor, gamma,
    C: tl.constexpr, WIDTH: tl.constexpr, WANTED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the gradient of the coarse scores of image n, `[N, C, h, w]` dense; grid (any, N).

    A coarse pixel adds up, over the full-size ones that it has a share in, share · gradient: at most `rows` by
    `columns` of them, which begin and end where `spans` says.
    """
    n = tl.program_id(1).to(tl.int64)
    base, first = logits + n * sn, n * pixels
    table = grads + n * C
    stride = tl.num_programs(1).to(tl.int64) * C
    c = tl.arange(0, WIDTH)
    slopes, squares, log_slopes = vector_slopes(table, stride, c, C, WANTED)
    of_all = tl.sum(log_slopes)
    size = small_height * small_width
    row_spans, column_spans = spans, spans + 2 * small_height
    for start in range(tl.program_id(0) * BLOCK, size, tl.num_programs(0) * BLOCK):
        q = start + tl.arange(0, BLOCK)
        known = q < size
        i, j = q // small_width, q % small_width
        y_0 = tl.load(row_spans + i, mask=known, other=0)
        y_end = tl.load(row_spans + small_height + i, mask=known, other=0)
        x_0 = tl.load(column_spans + j, mask=known, other=0)
        x_end = tl.load(column_spans + small_width + j, mask=known, other=0)
        added = tl.zeros([WIDTH, BLOCK], tl.float32)
        for step in range(rows * columns):
            y, x = y_0 + step // columns, x_0 + step % columns
            inside = known & (y < y_end) & (x < x_end)
            p = y * width + x
            label, _ = read_labels(target, first + p, inside, ignore_index, C)
            count, kept = read_weights(weight, keep, first + p, label >= 0)
            raw = enlarged_tile(base, y, x, c, inside, places, weights, height, width, sc, sh, sw, C)
            value = gradient_of_tile(
                raw, c, label, count, kept, shift, margin, factor, gamma, gammas, table, stride,
                slopes, squares, log_slopes, of_all, False, C, WANTED,
            )  # fmt: skip
            share = share_of(places, places + height, weights, y, i, inside)
            share *= share_of(
                places + 2 * height, places + 2 * height + width, weights + height, x, j, inside
            )  # fmt: skip
            added += value * share[None, :]
        place = result + n * C * size + c.to(tl.int64)[:, None] * size + q[None, :]
        tl.store(place, added.to(result.dtype.element_ty), mask=known[None, :] & (c < C)[:, None])
