"""Logits enlarged while they are read on a GPU, and the gradient of coarse ones: full-size logits never exist.

A full-size pixel lies between four coarse ones, which are read again wherever they are needed: they are few, and near
in the cache. Backward (`triton_enlarged_backward`) goes the other way round, so that nothing is added by atomics: a
coarse pixel walks over the full-size ones that it has a share in, works out the gradient of each anew, and adds up its
shares in a fixed order. Each full-size pixel is worked out by up to four coarse ones.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def corners_of(places, weights, y, x, inside, height, width, sh, sw):
    """Return where the rows above and below and the columns before and after lie, and the weights of the second.

    `places` int32 holds these rows for each of `height`, all first ones before all second ones, and the columns for
    each of `width`; `weights` those of the rows and of the columns.
    """
    columns = places + 2 * height + x
    top = tl.load(places + y, mask=inside, other=0).to(tl.int64) * sh
    bottom = tl.load(places + height + y, mask=inside, other=0).to(tl.int64) * sh
    left = tl.load(columns, mask=inside, other=0).to(tl.int64) * sw
    right = tl.load(columns + width, mask=inside, other=0).to(tl.int64) * sw
    down = tl.load(weights + y, mask=inside, other=0.0)
    across = tl.load(weights + height + x, mask=inside, other=0.0)
    return top, bottom, left, right, down, across


@triton.jit
def between(channel, top, bottom, left, right, down, across, wanted):
    """Interpolate, in float32."""
    value = tl.load(channel + top + left, mask=wanted, other=0.0).to(tl.float32)
    first = tl.load(channel + top + right, mask=wanted, other=0.0).to(tl.float32)
    second = tl.load(channel + bottom + left, mask=wanted, other=0.0).to(tl.float32)
    third = tl.load(channel + bottom + right, mask=wanted, other=0.0).to(tl.float32)
    value += (first - value) * across
    second += (third - second) * across
    return value + (second - value) * down


@triton.jit
def enlarged_channels(base, p, inside, places, weights, height, width, sc, sh, sw, C: tl.constexpr):
    """Return what `triton_columns.read_channels` does, of full-size pixels p."""
    top, bottom, left, right, down, across = corners_of(
        places, weights, p // width, p % width, inside, height, width, sh, sw
    )
    found = ()
    for c in tl.static_range(C):
        channel = base + tl.full([], c, tl.int64) * sc
        found = found + (between(channel, top, bottom, left, right, down, across, inside),)
    return found


@triton.jit
def enlarged_tile(base, y, x, c, inside, places, weights, height, width, sc, sh, sw, C: tl.constexpr):
    """Return what `triton_tiles.read_tile` does without LAST, of full-size pixels (y, x)."""
    top, bottom, left, right, down, across = corners_of(places, weights, y, x, inside, height, width, sh, sw)
    channel = base + c.to(tl.int64)[:, None] * sc
    wanted = inside[None, :] & (c < C)[:, None]
    return between(
        channel, top[None, :], bottom[None, :], left[None, :], right[None, :], down[None, :], across[None, :], wanted
    )


@triton.jit
def share_of(firsts, seconds, weights, place, small, inside):
    """Return the share that `small` has of each place of an axis: that of the first, of the second, or of both."""
    weight = tl.load(weights + place, mask=inside, other=0.0)
    is_first = tl.load(firsts + place, mask=inside, other=-1) == small
    is_second = tl.load(seconds + place, mask=inside, other=-1) == small
    return tl.where(is_first, 1.0 - weight, 0.0) + tl.where(is_second, weight, 0.0)
