"""Work on logits in chunks that stay in the cache: how pixels are cut, and how a chunk is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

SMALLEST = 2**16  # elements of a chunk of logits: more calls cost more than the cache gives back
LARGEST = 5 * 2**18  # the same for each thread: what threads wait for each other is paid by the call
PARTS = 8  # but no more than this part of the whole: chunks are what is held beside the gradient


class Chunk(NamedTuple):
    """A block of images, rows and columns."""

    images: slice
    rows: slice
    columns: slice


def few_rows(values: Tensor) -> Tensor:
    """View `[..., H, W]` as `[..., 1, H·W]` where the strides allow it (not a crop of a larger tensor).

    An expanded tensor stays as it is: what `empty_like` makes of it may have rows that do not join.
    """
    height, width = values.shape[-2:]
    if 0 in values.stride():
        return values
    if height == 1 or values.stride(-2) == width * values.stride(-1):
        return values.as_strided((*values.shape[:-2], 1, height * width), (*values.stride()[:-2], 0, values.stride(-1)))
    return values


def chunks(
    images: int, channels: int, rows: int, columns: int, *, parts: int = PARTS, largest: int | None = None
) -> Iterator[Chunk]:
    """Cut `[N, C, rows, columns]` into blocks: parts of a row, whole rows, or whole images.

    A block has about 1/parts of all elements, at least SMALLEST and at most `largest` (by default LARGEST for each
    thread: so the last bits of a sum may depend on the number of threads). Those of an image or a row are of about one
    size.
    """
    largest = LARGEST * torch.get_num_threads() if largest is None else largest
    elements = min(max(images * channels * rows * columns // parts, SMALLEST), largest)
    pixels = max(elements // max(channels, 1), 64)
    width = _even(columns, pixels)
    height = _even(rows, max(pixels // width, 1)) if width == columns else 1
    depth = max(pixels // (width * height), 1) if (height, width) == (rows, columns) else 1
    for image in range(0, images, depth):
        for row in range(0, rows, height):
            for column in range(0, columns, width):
                yield Chunk(
                    slice(image, min(image + depth, images)),
                    slice(row, min(row + height, rows)),
                    slice(column, min(column + width, columns)),
                )


def _even(length: int, longest: int) -> int:
    """Return into parts of which length to cut, so that none is longer than `longest` and all are about as long."""
    return max(-(-length // max(-(-length // longest), 1)), 1)


def load(values: Tensor, chunk: Chunk, *, dtype: torch.dtype, out: Tensor) -> Tensor:
    """Return a chunk of `[N, C, rows, columns]` as `[B, C, p]` in `dtype`: a view where possible, else in `out`."""
    part = values[chunk.images, :, chunk.rows, chunk.columns]
    if is_plain(part, dtype):
        return part[:, :, 0]
    out.view(part.shape).copy_(part)
    return out


def is_plain(part: Tensor, dtype: torch.dtype) -> bool:
    """Whether a chunk `[B, C, rows, columns]` is a run of neighbouring pixels for each class, in this type."""
    return part.dtype == dtype and part.shape[-2] == 1 and part.stride(-1) == 1


def pixels_of(values: Tensor, chunk: Chunk) -> Tensor:
    """Return a chunk of `[N, rows, columns]` as `[B, p]`."""
    return values[chunk.images, chunk.rows, chunk.columns].flatten(1)
