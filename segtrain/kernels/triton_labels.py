"""The class sums that need the loss or the largest class of each pixel alone, on a GPU: without a read of the logits.

p = e^−ℓ and q = 1 − p come from the loss, so that the sums by label of many classes, and those of the pixels that
mining keeps, take 5 bytes a pixel.
"""

from __future__ import annotations

import triton
import triton.language as tl

from segtrain.kernels.triton_pixel import (
    FOLD,
    add_at_label,
    exponent_of,
    power_of,
    q_of,
    read_labels,
    read_weights,
    store_sums,
    zeros_of,
)


@triton.jit
def forward(
    losses, target, weight, keep, gammas, partial, settled, pixels, num_classes, ignore_index, gamma,
    COUNT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Put sums of COUNT classes, of program (k, s, n), into partial `[5, N, chunks · COUNT, S, BLOCK / 16]`.

    The rows are pixels, kept, intersection, cross_entropy and focal; the grid is (chunks of classes, S, N). A program
    returns at once where `settled` is given and not 0.
    """
    if settled is not None:
        if tl.load(settled) != 0:
            return
    k, s, n = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    first = n.to(tl.int64) * pixels
    none = zeros_of(COUNT, BLOCK // 2)
    sums = (none, none, none, none, none)
    wrong = tl.zeros([BLOCK], tl.int32)
    for start in range(s * BLOCK, pixels, tl.num_programs(1) * BLOCK):
        p = start + tl.arange(0, BLOCK)
        inside = p < pixels
        label, is_wrong = read_labels(target, first + p, inside, ignore_index, num_classes)
        wrong |= is_wrong.to(tl.int32)
        valid = label >= 0
        loss = tl.load(losses + first + p, mask=valid, other=0.0)
        count, kept = read_weights(weight, keep, first + p, valid)
        focal = power_of(q_of(loss), exponent_of(gamma, gammas, label)) * loss
        values = (count, kept, tl.exp2(-1.4426950408889634 * loss) * count, loss * kept, focal * kept)
        added = ()
        for row in tl.static_range(5):
            added = added + (add_at_label(sums[row], label - k * COUNT, values[row], COUNT, BLOCK),)
        sums = added
    LANES: tl.constexpr = BLOCK // 2 // FOLD
    lanes = tl.num_programs(1).to(tl.int64) * LANES
    stride = tl.num_programs(2) * tl.num_programs(0) * COUNT * lanes
    place = partial + (n.to(tl.int64) * tl.num_programs(0) + k) * COUNT * lanes + s * LANES
    for row in tl.static_range(5):
        store_sums(place + row * stride, sums[row], COUNT, BLOCK // 2, lanes)
    if tl.sum(wrong) > 0:  # see triton_columns.forward
        tl.debug_barrier()
        tl.store(place, float("nan"))


@triton.jit
def count_largest(
    largest, target, partial, pixels, num_classes, ignore_index, BINS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Count the valid pixels by 2 · largest class + (1 if that is the label) in partial, int32 `[N, S, BINS]`."""
    s, n = tl.program_id(0), tl.program_id(1).to(tl.int64)
    bins = tl.zeros([BINS], tl.int32)
    for start in range(s * BLOCK, pixels, tl.num_programs(0) * BLOCK):
        p = start + tl.arange(0, BLOCK)
        inside = p < pixels
        label, _ = read_labels(target, n * pixels + p, inside, ignore_index, num_classes)
        found = tl.load(largest + n * pixels + p, mask=label >= 0, other=0).to(tl.int32)
        bins += tl.histogram(2 * found + (found == label).to(tl.int32), BINS, mask=label >= 0)
    tl.store(partial + (n * tl.num_programs(0) + s) * BINS + tl.arange(0, BINS), bins)
