"""The confusion counts on CUDA: the argmax in registers, from one read of the logits, enlarged on the way if need be.

A program looks at several tiles of one image and counts its pairs in a histogram of its own (for many classes, in the
result itself). Whole numbers are added by atomics, which is exact in any order: equal inputs give equal bits.
"""

# mypy: ignore-errors
from __future__ import annotations

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from segtrain.kernels.confusion_cpu import class_dtype
from segtrain.kernels.launch import check_extent, multiprocessors
from segtrain.kernels.upsample import Size, taps

BLOCK = 1024  # pixels of a tile
WARPS = 8
PROGRAMS = 4  # for each multiprocessor
MOST_BINS = 4096  # of a program's own histogram: up to 63 classes


@triton.jit
def largest_channel(
    values, shift, top, bottom, left, right, down, across, inside, sc, C,
    ENLARGED: tl.constexpr, DOUBLE: tl.constexpr,
):  # fmt: skip
    """Return the first channel of the largest value, int32; a NaN counts as the largest.

    `top` ... are offsets of the row above and below and of the column before and after, `down` and `across` the weights
    of the second; without ENLARGED `top + left` is where the pixel itself is.
    """
    kind: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    index = tl.zeros(inside.shape, tl.int32)
    best = tl.full(inside.shape, float("-inf"), kind)
    for c in range(C):
        channel = values + tl.cast(c, tl.int64) * sc
        value = tl.load(channel + top + left, mask=inside, other=0.0).to(kind)
        if ENLARGED:
            first = tl.load(channel + top + right, mask=inside, other=0.0).to(kind)
            value += (first - value) * across
            second = tl.load(channel + bottom + left, mask=inside, other=0.0).to(kind)
            third = tl.load(channel + bottom + right, mask=inside, other=0.0).to(kind)
            second += (third - second) * across
            value += (second - value) * down
        if shift is not None:
            value += tl.load(shift + c).to(kind)
        better = (value > best) | ((value != value) & (best == best))
        best = tl.where(better, value, best)
        index = tl.where(better, c, index)
    return index


@triton.jit
def count_kernel(
    values, target, shift, rows, columns, row_weights, column_weights, counts, prediction,
    sn, sc, sh, sw, height, width, C, ignore_index,
    LOGITS: tl.constexpr, ENLARGED: tl.constexpr, DOUBLE: tl.constexpr, BINS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Count the pairs of one image's tiles: program (s, n) takes every so many tiles of image n, from s on.

    `rows` and `columns` hold the places that each one lies between, all first ones before all second ones. BINS is 0
    where the pairs are counted in the result itself.
    """
    n = tl.program_id(1).to(tl.int64)
    size = height * width
    cells = C * C
    kind: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    counts += n * (cells + 2)
    histogram = tl.zeros([BINS if BINS else 1], tl.int32)
    for tile in range(tl.program_id(0), tl.cdiv(size, BLOCK), tl.num_programs(0)):
        pixel = tl.arange(0, BLOCK).to(tl.int64) + tile * BLOCK
        inside = pixel < size
        y, x = pixel // width, pixel % width
        if LOGITS:
            if ENLARGED:
                top = tl.load(rows + y, mask=inside, other=0).to(tl.int64) * sh
                bottom = tl.load(rows + height + y, mask=inside, other=0).to(tl.int64) * sh
                left = tl.load(columns + x, mask=inside, other=0).to(tl.int64) * sw
                right = tl.load(columns + width + x, mask=inside, other=0).to(tl.int64) * sw
                down = tl.load(row_weights + y, mask=inside, other=0.0).to(kind)
                across = tl.load(column_weights + x, mask=inside, other=0.0).to(kind)
            else:
                top, left = y * sh, x * sw
                bottom, right, down, across = top, left, 0.0, 0.0
            found = largest_channel(
                values + n * sn, shift, top, bottom, left, right, down, across, inside, sc, C, ENLARGED, DOUBLE
            )
            if prediction is not None:
                place = prediction + n * size + pixel
                tl.store(place, found.to(prediction.dtype.element_ty), mask=inside)
        else:
            found = tl.load(values + n * sn + y * sh + x * sw, mask=inside, other=0).to(tl.int64)
        label = tl.load(target + n * size + pixel, mask=inside, other=0).to(tl.int64)
        valid = inside & (label != ignore_index)
        pair = tl.where((found < 0) | (found >= C), cells + 1, label * C + found)
        pair = tl.where((label < 0) | (label >= C), cells, pair)
        if BINS:
            histogram += tl.histogram(tl.where(valid, pair, cells + 2).to(tl.int32), BINS)
        else:
            tl.atomic_add(counts + pair, tl.full(pair.shape, 1, tl.int64), mask=valid, sem="relaxed")
    if BINS:
        bins = tl.arange(0, BINS)
        counted = (histogram > 0) & (bins < cells + 2)
        tl.atomic_add(counts + bins, histogram.to(tl.int64), mask=counted, sem="relaxed")


def count(
    values: Tensor,
    target: Tensor,
    shift: Tensor | None,
    size: Size,
    num_classes: int,
    ignore_index: int,
    with_prediction: bool,
) -> tuple[Tensor, Tensor]:
    """Return what `segtrain::confusion_counts` does; nothing waits for the device."""
    height, width = target.shape[-2:]
    check_extent(len(target), height * width)
    counts = torch.zeros(len(target), num_classes**2 + 2, dtype=torch.int64, device=values.device)
    is_logits = values.is_floating_point()
    prediction = torch.empty(
        target.shape if with_prediction else (0,), dtype=class_dtype(num_classes), device=values.device
    )
    if with_prediction and not is_logits:
        prediction.copy_(values)
    if counts.numel() == 0 or target.numel() == 0:
        return counts, prediction
    enlarged = is_logits and tuple(values.shape[-2:]) != size
    tables = (None,) * 4
    if enlarged:
        places = [_table(*lengths, device=values.device) for lengths in zip(values.shape[-2:], size, strict=True)]
        rows, columns = places[0][0][:, :height].contiguous(), places[1][0][:, :width].contiguous()
        tables = (rows, columns, places[0][1], places[1][1])
    bins = triton.next_power_of_2(num_classes**2 + 3)
    strides = values.stride() if is_logits else (values.stride(0), 0, *values.stride()[1:])
    grid = (_programs(height * width, len(target), values.device), len(target))
    count_kernel[grid](
        values, target.contiguous(), None if shift is None else shift.to(values.device), *tables, counts,
        prediction if with_prediction and is_logits else None, *strides, height, width, num_classes, ignore_index,
        LOGITS=is_logits, ENLARGED=enlarged, DOUBLE=values.dtype == torch.float64,
        BINS=bins if bins <= MOST_BINS else 0, BLOCK=BLOCK, num_warps=WARPS, enable_fp_fusion=True,
    )  # fmt: skip
    return counts, prediction


@lru_cache(maxsize=16)
def _table(small: int, large: int, *, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the places `[2, large]` that each one lies between, int32, and the weight of the second, float64."""
    found = taps(small, large)
    places = torch.stack([torch.from_numpy(found.first), torch.from_numpy(found.second)]).to(torch.int32)
    return places.to(device), torch.from_numpy(found.weight).to(device)


def _programs(pixels: int, images: int, device: torch.device) -> int:
    """Return how many programs share an image: what fills the device."""
    return max(min(-(-pixels // BLOCK), -(-PROGRAMS * multiprocessors(device) // images)), 1)
