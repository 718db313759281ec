"""The kernels that find the hardest pixels on a GPU: by histograms of the bits of their losses, no sort and no wait.

The bits of floats that are not negative rise with their values (NaN above all), so that three histograms, of 11, 10 and
10 bits, find the k-th largest loss exactly. Pixels are grouped: all together, or by class, or (sigmoid) by class and
label. Every sum is of integers, so that the order of atomic additions does not matter. Of a group that the threshold
has settled nothing is ranked: its cut is the threshold.

A group's decision is a row of `state`, int64 `[groups, 4]`: the bits of the cut as far as they are known, the rank
that is left among those who share them, how many share them, and whether the threshold has settled the group.
"""

from __future__ import annotations

import triton
import triton.language as tl

from segtrain.kernels.triton_pixel import read_labels

INFINITY_BITS = tl.constexpr(0x7F800000)


@triton.jit
def read_group(target, place, inside, channel_pixels, num_channels, ignore_index, labels, GROUPING: tl.constexpr):
    """Return the group of each pixel, −1 where ignored; GROUPING 0 is one group, 1 by label, 2 by channel and label."""
    label, _ = read_labels(target, place, inside, ignore_index, labels)
    if GROUPING == 0:
        return tl.where(label >= 0, 0, -1)
    elif GROUPING == 1:
        return label
    else:
        channel = ((place // channel_pixels) % num_channels).to(tl.int32)
        return tl.where(label >= 0, 2 * channel + label, -1)


@triton.jit
def count_groups(
    losses, target, counts, size, channel_pixels, num_channels, ignore_index, labels, cut,
    GROUPING: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Add to `counts`, int64 `[2, groups]`, the numbers of valid pixels and of those with ℓ > cut; grid (any,)."""
    groups = 2 * num_channels if GROUPING == 2 else labels
    for start in range(tl.program_id(0), tl.cdiv(size, BLOCK), tl.num_programs(0)):
        place = tl.full([], BLOCK, tl.int64) * start + tl.arange(0, BLOCK)
        group = read_group(
            target, place, place < size, channel_pixels, num_channels, ignore_index, labels, GROUPING
        )  # fmt: skip
        loss = tl.load(losses + place, mask=group >= 0, other=0.0)
        one = tl.full([BLOCK], 1, tl.int64)
        tl.atomic_add(counts + group, one, mask=group >= 0, sem="relaxed")
        tl.atomic_add(counts + groups + group, one, mask=(group >= 0) & (loss > cut), sem="relaxed")


@triton.jit
def start_ranking(
    counts, state, settled, groups, min_kept, fraction_bits, cut_bits,
    IS_FRACTION: tl.constexpr, HAS_THRESHOLD: tl.constexpr,
):  # fmt: skip
    """Decide how many pixels of group g are kept; grid (groups,).

    A fraction comes as the bits of a float64, and is rounded half to even. `settled` (int32) is that of group 0: 1
    where the threshold alone keeps enough.
    """
    g = tl.program_id(0)
    valid, hard = tl.load(counts + g), tl.load(counts + groups + g)
    if IS_FRACTION:
        exact = valid.to(tl.float64) * tl.cast(fraction_bits, tl.int64).to(tl.float64, bitcast=True)
        low = tl.floor(exact)
        count = low.to(tl.int64)
        rest = exact - low
        count += ((rest > 0.5) | ((rest == 0.5) & (count % 2 == 1))).to(tl.int64)
        count = tl.minimum(tl.maximum(count, 1), valid)
    else:
        count = tl.minimum(valid, tl.cast(min_kept, tl.int64))
    is_settled = hard < 0
    if HAS_THRESHOLD:
        is_settled = hard >= count
        count = tl.maximum(count, hard)
    done = is_settled.to(tl.int64)
    none = (count == 0) & (done == 0)
    tl.store(state + 4 * g, tl.where(done != 0, tl.cast(cut_bits, tl.int64), 0))
    tl.store(state + 4 * g + 1, tl.where(done != 0, 0, count))
    tl.store(state + 4 * g + 2, tl.zeros([], tl.int64))
    tl.store(state + 4 * g + 3, tl.where(none, tl.full([], 2, tl.int64), done))
    if g == 0:
        tl.store(settled, done.to(tl.int32))


@triton.jit
def histogram(
    losses, target, state, bins, size, channel_pixels, num_channels, ignore_index, labels,
    GROUPING: tl.constexpr, SHIFT: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Count in bins, int64 `[groups, 2^WIDTH]`, bits [SHIFT, SHIFT + WIDTH) of losses that share the cut's above."""
    if GROUPING == 0:
        if tl.load(state + 3) != 0:
            return
    found = tl.zeros([1 << WIDTH], tl.int32)
    for start in range(tl.program_id(0), tl.cdiv(size, BLOCK), tl.num_programs(0)):
        place = tl.full([], BLOCK, tl.int64) * start + tl.arange(0, BLOCK)
        group = read_group(
            target, place, place < size, channel_pixels, num_channels, ignore_index, labels, GROUPING
        )  # fmt: skip
        known = group >= 0
        bits = tl.load(losses + place, mask=known, other=0.0).to(tl.int32, bitcast=True)
        prefix = tl.load(state + 4 * group, mask=known, other=-1)
        known = known & (tl.load(state + 4 * group + 3, mask=known, other=1) == 0)
        if SHIFT + WIDTH < 31:
            known = known & ((bits >> (SHIFT + WIDTH)).to(tl.int64) == prefix)
        digit = (bits >> SHIFT) & ((1 << WIDTH) - 1)
        if GROUPING == 0:
            found += tl.histogram(digit, 1 << WIDTH, mask=known)
        else:
            one = tl.full([BLOCK], 1, tl.int64)
            tl.atomic_add(bins + (group.to(tl.int64) << WIDTH) + digit, one, mask=known, sem="relaxed")
    if GROUPING == 0:
        tl.atomic_add(bins + tl.arange(0, 1 << WIDTH), found.to(tl.int64), mask=found > 0, sem="relaxed")


@triton.jit
def pick(bins, state, WIDTH: tl.constexpr):
    """Add to the known bits of group g's cut those of the bin that holds its rank from the top; grid (groups,)."""
    g = tl.program_id(0)
    if tl.load(state + 4 * g + 3) == 0:
        count = tl.load(bins + (g.to(tl.int64) << WIDTH) + tl.arange(0, 1 << WIDTH))
        from_top = tl.cumsum(count, axis=0, reverse=True)
        rank = tl.load(state + 4 * g + 1)
        digit = tl.sum((from_top >= rank).to(tl.int32)) - 1
        is_digit = tl.arange(0, 1 << WIDTH) == digit
        tied = tl.sum(tl.where(is_digit, count, 0))
        above = tl.sum(tl.where(is_digit, from_top - count, 0))
        tl.store(state + 4 * g, (tl.load(state + 4 * g) << WIDTH) + digit)
        tl.store(state + 4 * g + 1, rank - above)
        tl.store(state + 4 * g + 2, tied)


@triton.jit
def read_ranks(
    losses, target, state, place, inside, channel_pixels, num_channels, ignore_index, labels, GROUPING: tl.constexpr
):  # fmt: skip
    """Return of each pixel its group, whether it is above the cut, and whether it is tied and not all such are kept.

    A group of no pixel keeps none (its flag is 2). A loss that is no number is above every cut.
    """
    group = read_group(target, place, inside, channel_pixels, num_channels, ignore_index, labels, GROUPING)
    known = group >= 0
    bits = tl.load(losses + place, mask=known, other=0.0).to(tl.int32, bitcast=True).to(tl.int64)
    row = state + 4 * group
    cut = tl.load(row, mask=known, other=0)
    allowed, tied = tl.load(row + 1, mask=known, other=0), tl.load(row + 2, mask=known, other=0)
    flag = tl.load(row + 3, mask=known, other=2)
    above = known & (((flag != 2) & (bits > cut)) | (bits > INFINITY_BITS))
    ties = known & (flag == 0) & (bits == cut) & (bits <= INFINITY_BITS)
    return group, above | (ties & (tied <= allowed)), ties & (tied > allowed)


@triton.jit
def count_ties(
    losses, target, state, ties, runs, size, channel_pixels, num_channels, ignore_index, labels,
    GROUPING: tl.constexpr, TILES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Count in ties, int64 `[groups, runs]`, the undecided pixels of each run of TILES · BLOCK; grid (any,)."""
    if GROUPING == 0:
        if (tl.load(state + 3) != 0) | (tl.load(state + 2) <= tl.load(state + 1)):
            return
    for start in range(tl.program_id(0), tl.cdiv(size, BLOCK), tl.num_programs(0)):
        place = tl.full([], BLOCK, tl.int64) * start + tl.arange(0, BLOCK)
        group, _, undecided = read_ranks(
            losses, target, state, place, place < size, channel_pixels, num_channels, ignore_index, labels, GROUPING
        )  # fmt: skip
        one = tl.full([BLOCK], 1, tl.int64)
        tl.atomic_add(ties + group.to(tl.int64) * runs + start // TILES, one, mask=undecided, sem="relaxed")


@triton.jit
def keep_hardest(
    losses, target, state, ties, mask, size, channel_pixels, num_channels, ignore_index, labels,
    GROUPING: tl.constexpr, TILES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the mask of what is kept; `ties` are the numbers of undecided pixels before each run; grid (runs,).

    Of undecided pixels the first ones by position are kept, counted over the runs, over the tiles of a run (`ties`
    grows with them) and within a tile.
    """
    if GROUPING == 0:
        if tl.load(state + 3) == 1:
            return
    run, runs = tl.program_id(0).to(tl.int64), tl.num_programs(0).to(tl.int64)
    for tile in range(TILES):
        place = (run * TILES + tile) * BLOCK + tl.arange(0, BLOCK)
        inside = place < size
        group, kept, undecided = read_ranks(
            losses, target, state, place, inside, channel_pixels, num_channels, ignore_index, labels, GROUPING
        )  # fmt: skip
        if tl.sum(undecided.to(tl.int32)) > 0:
            count = ties + group * runs + run
            before = tl.load(count, mask=undecided, other=0, cache_modifier=".cg")  # atomics are not in the first cache
            order = tl.arange(0, BLOCK)
            tied = tl.where(undecided, group, -1)
            earlier = (tied[None, :] == group[:, None]) & (order[None, :] < order[:, None])
            rank = before + tl.sum(earlier.to(tl.int32), axis=1)
            allowed = tl.load(state + 4 * group + 1, mask=undecided, other=0)
            kept = kept | (undecided & (rank < allowed))
            tl.debug_barrier()  # all have read the count before it grows
            tl.atomic_add(count, tl.full([BLOCK], 1, tl.int64), mask=undecided)
            tl.debug_barrier()
        tl.store(mask + place, kept.to(tl.uint8), mask=inside)
