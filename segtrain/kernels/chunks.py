"""Work on logits in chunks that stay in the cache: how pixels are cut, and how a chunk is loaded and stored."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

ELEMENTS = 2**18  # of a chunk of logits: 1 MB in float32, half of a common second-level cache


class Chunk(NamedTuple):
    """A block of images, rows and columns."""

    images: slice
    rows: slice
    columns: slice


def few_rows(values: Tensor) -> Tensor:
    """View `[..., H, W]` as `[..., 1, H·W]` where the strides allow it (not a crop of a larger tensor)."""
    height, width = values.shape[-2:]
    if height == 1 or values.stride(-2) == width * values.stride(-1):
        return values.as_strided((*values.shape[:-2], 1, height * width), (*values.stride()[:-2], 0, values.stride(-1)))
    return values


def chunks(images: int, channels: int, rows: int, columns: int) -> Iterator[Chunk]:
    """Cut `[N, C, rows, columns]` into blocks of about ELEMENTS: parts of a row, whole rows, or whole images."""
    pixels = max(ELEMENTS // max(channels, 1), 64)
    width = min(columns, pixels)
    height = min(rows, max(pixels // max(width, 1), 1)) if width == columns else 1
    depth = max(pixels // max(width * height, 1), 1) if (height, width) == (rows, columns) else 1
    for image in range(0, images, depth):
        for row in range(0, rows, height):
            for column in range(0, columns, width):
                yield Chunk(
                    slice(image, min(image + depth, images)),
                    slice(row, min(row + height, rows)),
                    slice(column, min(column + width, columns)),
                )


def load(values: Tensor, chunk: Chunk, *, dtype: torch.dtype, buffer: Tensor) -> Tensor:
    """Return a chunk of `[N, C, rows, columns]` as `[B, C, p]` in `dtype`: a view where possible, else in `buffer`."""
    part = values[chunk.images, :, chunk.rows, chunk.columns]
    if part.dtype == dtype and part.stride(-1) == 1 and part.shape[-2] == 1:
        return part[:, :, 0]
    copy = shaped(buffer, part.shape)
    copy.copy_(part)
    return copy.flatten(2)


def pixels_of(values: Tensor, chunk: Chunk) -> Tensor:
    """Return a chunk of `[N, rows, columns]` as `[B, p]`."""
    return values[chunk.images, chunk.rows, chunk.columns].flatten(1)


def shaped(buffer: Tensor, shape: tuple[int, ...] | torch.Size) -> Tensor:
    """Return the start of a flat buffer in the given shape."""
    size = 1
    for length in shape:
        size *= length
    return buffer[:size].view(shape)


def buffer_for(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Return an empty flat buffer for the largest chunk of `[N, C, rows, columns]`."""
    images, channels, rows, columns = values.shape
    first = next(chunks(images, channels, rows, columns), None)
    if first is None:
        return torch.empty(0, dtype=dtype)
    sizes = [part.stop - part.start for part in first]
    return torch.empty(sizes[0] * channels * sizes[1] * sizes[2], dtype=dtype)
