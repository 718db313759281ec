"""What Triton kernels share: labels, channels in registers, the loss of a pixel, and sums by class, one tile at a time.

A tile is BLOCK pixels of one image. The names are those of LOSSES: p is the probability of the label, q = 1 − p, made
of a sum over the other classes because the difference would round to 0, ℓ = −log p. All arithmetic is float32. Scores
are kept as they were read, x; the softmax is that of x · factor / log2(e) with factor = scale · log2(e), so that one
multiplication and one `exp2` make an exponential.
"""

from __future__ import annotations

import triton
import triton.language as tl

FOLD = tl.constexpr(8)  # neighbouring threads whose sums are added up before they are stored
GAMMAS = 8  # that one launch of `write_gammas` stores


@triton.jit
def read_labels(target, offsets, inside, ignore_index, num_classes):
    """Return the labels of a tile as int32, −1 where they are to be left out, and which of them are out of range.

    A label outside [0, num_classes) that is not `ignore_index` counts as ignored, so that nothing is read beyond a
    table; the second result, bool, says where.
    """
    raw = tl.load(target + offsets, mask=inside, other=0)
    if raw.dtype != tl.int64:
        raw = raw.to(tl.int32)
    counts = inside & (raw != ignore_index)
    in_range = (raw >= 0) & (raw < num_classes)
    return tl.where(counts & in_range, raw, -1).to(tl.int32), counts & (in_range == 0)


@triton.jit
def read_weights(weight, keep, offsets, valid):
    """Return what each pixel counts, and what it counts in the pixel terms: 0 where ignored, or not kept."""
    if weight is None:
        count = tl.where(valid, 1.0, 0.0)
    else:
        count = tl.where(valid, tl.load(weight + offsets, mask=valid, other=0.0).to(tl.float32), 0.0)
    if keep is None:
        return count, count
    else:
        return count, tl.where(tl.load(keep + offsets, mask=valid, other=0) != 0, count, 0.0)


@triton.jit
def store_mined(losses, mask, place, inside, loss, valid, cut):
    """Store the losses, and whether they are hard: above the cut, or no numbers; return the latter, bool."""
    hard = valid & ((loss > cut) | (loss != loss))
    tl.store(losses + place, loss, mask=inside)
    tl.store(mask + place, hard.to(tl.uint8), mask=inside)
    return hard


@triton.jit
def channels_of(tile, BLOCK: tl.constexpr, WIDTH: tl.constexpr):
    """Split `[BLOCK, WIDTH]` (a power of two) into a tuple of WIDTH tensors `[BLOCK]`: a pixel stays in one thread."""
    if WIDTH == 1:
        return (tl.reshape(tile, [BLOCK]),)
    else:
        low, high = tl.split(tl.permute(tl.reshape(tile, [BLOCK, 2, WIDTH // 2]), (0, 2, 1)))
        return channels_of(low, BLOCK, WIDTH // 2) + channels_of(high, BLOCK, WIDTH // 2)


@triton.jit
def stacked(parts, FIRST: tl.constexpr, ROWS: tl.constexpr, COUNT: tl.constexpr, WIDTH: tl.constexpr):
    """Join COUNT tensors `[ROWS]`, from FIRST on, into `[ROWS, WIDTH]` (a power of two); the last fills the rest."""
    if WIDTH == 1:
        if FIRST < COUNT:
            return tl.reshape(parts[FIRST], [ROWS, 1])
        else:
            return tl.reshape(parts[COUNT - 1], [ROWS, 1])
    else:
        low = stacked(parts, FIRST, ROWS, COUNT, WIDTH // 2)
        high = stacked(parts, FIRST + WIDTH // 2, ROWS, COUNT, WIDTH // 2)
        return tl.reshape(tl.permute(tl.join(low, high), (0, 2, 1)), [ROWS, WIDTH])


@triton.jit
def loss_of(others, label_e, label_score):
    """Return −log p of a softmax: from the sums of e^z over the other classes and at the label, and log2 of the latter.

    log1p(others / label) by a series of atanh where the label is likely, so that a loss of 1e-8 keeps its digits; for
    the rest log(total) − z at the label. Never −0, so that the bits of losses rise with them.
    """
    ratio = others / (2.0 * label_e + others)
    far = (tl.log2(others + label_e) - label_score) * 0.6931471805599453
    return tl.abs(tl.where(ratio < 0.12, log1p_by(ratio), far))


@triton.jit
def log1p_by(ratio):
    """Return log(1 + x) from ratio = x / (2 + x) of at most 1/7: 2 atanh(ratio), to the last digit of float32."""
    square = ratio * ratio
    return 2.0 * ratio * (1.0 + square * (0.3333333333 + square * (0.2 + square * (0.1428571429 + square * 0.1111111))))


@triton.jit
def q_of(loss):
    """Return q = 1 − e^−ℓ of a loss, with all digits of a small one."""
    series = 1.0 - loss * 0.125
    series = 1.0 - loss * 0.14285714285714285 * series
    series = 1.0 - loss * 0.16666666666666666 * series
    series = 1.0 - loss * 0.2 * series
    series = 1.0 - loss * 0.25 * series
    series = 1.0 - loss * 0.3333333333333333 * series
    series = loss * (1.0 - loss * 0.5 * series)
    return tl.where(loss < 0.4, series, 1.0 - tl.exp2(-1.4426950408889634 * loss))


@triton.jit
def power_of(q, gamma):
    """Return q^γ for γ ≥ 0; 1 at γ = 0, also where q is 0."""
    power = tl.where(gamma == 0.0, 1.0, tl.exp2(gamma * tl.log2(q)))
    return tl.where(gamma == 2.0, q * q, power)


@triton.jit
def focal_slope(loss, p, q, gamma):
    """Return q^γ (1 + γ p ℓ/q), the change of q^γ ℓ with the log-odds divided by q; ℓ/q → 1 as q → 0."""
    return power_of(q, gamma) * (1.0 + gamma * p * tl.where(q > 1e-30, loss / q, 1.0))


@triton.jit
def exponent_of(gamma, gammas, label):
    """Return γ: the number, or where there is a table of one for each class, that of the label (0 where ignored)."""
    if gammas is None:
        return gamma
    else:
        return tl.load(gammas + label, mask=label >= 0, other=0.0)


@triton.jit
def zeros_of(COUNT: tl.constexpr, ROWS: tl.constexpr):
    """Return a tuple of COUNT sums, float32 `[ROWS]`."""
    sums = ()
    for _ in tl.static_range(COUNT):
        sums = sums + (tl.zeros([ROWS], tl.float32),)
    return sums


@triton.jit
def add_at_label(sums, label, values, COUNT: tl.constexpr, BLOCK: tl.constexpr):
    """Add the values `[BLOCK]` to those of COUNT sums `[BLOCK / 2]` that their labels name; return the new sums.

    Nothing crosses a thread here: neighbours are in one, and sums are added up over threads once, when a program ends.
    """
    label_0, label_1 = tl.split(tl.reshape(label, [BLOCK // 2, 2]))
    value_0, value_1 = tl.split(tl.reshape(values, [BLOCK // 2, 2]))
    added = ()
    for c in tl.static_range(COUNT):
        first = tl.where(label_0 == c, 1.0, 0.0) * value_0
        second = tl.where(label_1 == c, 1.0, 0.0) * value_1
        added = added + (sums[c] + first + second,)
    return added


@triton.jit
def add_each(sums, values, factor, COUNT: tl.constexpr, BLOCK: tl.constexpr):
    """Add values_c · factor, `[BLOCK]`, to sum c `[BLOCK / 2]` of COUNT; return the new sums."""
    factor_0, factor_1 = tl.split(tl.reshape(factor, [BLOCK // 2, 2]))
    added = ()
    for c in tl.static_range(COUNT):
        value_0, value_1 = tl.split(tl.reshape(values[c], [BLOCK // 2, 2]))
        added = added + (sums[c] + value_0 * factor_0 + value_1 * factor_1,)
    return added


@triton.jit
def store_sums(place, sums, COUNT: tl.constexpr, ROWS: tl.constexpr, lanes):
    """Store COUNT sums `[ROWS]`, each as ROWS / 8 numbers, `lanes` apart from `place` on, to be added up later.

    Eight neighbours are added up here: all of them would be many instructions, none of them much to write.
    """
    place += tl.arange(0, ROWS // FOLD)
    for c in tl.static_range(COUNT):
        tl.store(place + c * lanes, tl.sum(tl.reshape(sums[c], [ROWS // FOLD, FOLD]), axis=1))


@triton.jit(do_not_specialize=["first"])
def write_gammas(table, first, a, b, c, d, e, f, g, h):
    """Store 8 numbers from a place on."""
    place = table + first
    tl.store(place, a)
    tl.store(place + 1, b)
    tl.store(place + 2, c)
    tl.store(place + 3, d)
    tl.store(place + 4, e)
    tl.store(place + 5, f)
    tl.store(place + 6, g)
    tl.store(place + 7, h)
