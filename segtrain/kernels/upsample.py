"""Bilinear upsampling of coarse logits in strips of rows, and its adjoint: full-size logits never exist."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

STRIP, CUDA_STRIP = 2**20, 2**25  # elements of a strip of full-size logits
BLOCK = 64  # columns made by one product: wider ones multiply more zeros, narrower ones are more calls
Size = tuple[int, int]


@dataclass(frozen=True, eq=False)
class CoarseLogits:
    """Logits below the size of the image, as a head makes them before it would enlarge them.

    They stand for the top left part `crop` (height, width) of their bilinear upsampling (corners not aligned) to
    `size`: a model that needs a multiple of its stride pads the image, and what lies beyond the image is left out.
    """

    values: Tensor  # float [N, C, h, w]
    size: Size
    crop: Size

    @property
    def shape(self) -> torch.Size:
        """Of the logits that these stand for."""
        return torch.Size((*self.values.shape[:2], *self.crop))

    @property
    def dtype(self) -> torch.dtype:
        """Of the coarse values."""
        return self.values.dtype

    @property
    def device(self) -> torch.device:
        """Where the values are."""
        return self.values.device

    def full(self) -> Tensor:
        """Return the logits `[N, C, *crop]`, differentiable; float16 and bfloat16 become float32."""
        values = self.values.to(torch.promote_types(self.values.dtype, torch.float32))
        if values.shape[-2:] != torch.Size(self.size):
            with torch.autocast(values.device.type, enabled=False):
                values = interpolate(values, size=self.size, mode="bilinear", align_corners=False)
        return values[..., : self.crop[0], : self.crop[1]]

    def image(self, index: int) -> CoarseLogits:
        """Return those of one image, as a batch of it alone."""
        return CoarseLogits(self.values[index : index + 1], self.size, self.crop)

    def detach(self) -> CoarseLogits:
        """Return them without their graph."""
        return CoarseLogits(self.values.detach(), self.size, self.crop)


class Strip(NamedTuple):
    """Images and rows of the full size that are worked on at once."""

    images: slice
    rows: slice


def strips(coarse: Tensor, crop: Size) -> Iterator[Strip]:
    """Cut the `[N, C, *crop]` that coarse logits `[N, C, h, w]` stand for into strips of about equal work."""
    images, channels = coarse.shape[:2]
    height, width = crop
    elements = CUDA_STRIP if coarse.is_cuda else STRIP
    rows = min(max(elements // max(channels * width, 1), 1), height)
    depth = max(elements // max(channels * width * rows, 1), 1) if rows == height else 1
    for image in range(0, images, depth):
        for row in range(0, height, max(rows, 1)):
            yield Strip(slice(image, min(image + depth, images)), slice(row, min(row + rows, height)))


def enlarge(coarse: Tensor, strip: Strip, *, size: Size, width: int) -> Tensor:
    """Return the strip `[n, C, r, width]` of the upsampling of coarse logits `[N, C, h, w]` to `size`.

    float32 for float16 and bfloat16 logits, else their own type. To rounding it is what `interpolate` makes; along the
    rows the interpolation is a product with a narrow band matrix, block by block, which is some four times faster on a
    CPU, and whose adjoint adds in a fixed order on every device.
    """
    part = coarse[strip.images]
    dtype = torch.promote_types(part.dtype, torch.float32)
    rows = taps(part.shape[2], size[0]).part(strip.rows)
    weight = _tensor(rows.weight, part.device, dtype).view(-1, 1)
    upper = part.index_select(2, _tensor(rows.first, part.device)).to(dtype)
    lower = part.index_select(2, _tensor(rows.second, part.device)).to(dtype)
    lines = torch.lerp(upper, lower, weight).contiguous()
    result = torch.empty(*lines.shape[:3], width, dtype=dtype, device=part.device)
    flat, out = lines.view(-1, part.shape[3]), result.view(-1, width)
    for begin in range(0, width, BLOCK):
        block = _block(part.shape[3], size[1], begin, min(begin + BLOCK, width))
        matrix = _tensor(block.matrix, part.device, dtype)
        torch.mm(flat[:, block.source], matrix, out=out[:, begin : begin + BLOCK])
    return result


def add_adjoint(grad: Tensor, strip: Strip, *, size: Size, out: Tensor) -> None:
    """Add what the gradient `[n, C, r, width]` of a strip means for the coarse logits to `out` `[N, C, h, w]`."""
    height, width = out.shape[2:]
    flat = grad.reshape(-1, grad.shape[3])
    lines = torch.zeros(len(flat), width, dtype=grad.dtype, device=grad.device)
    for begin in range(0, grad.shape[3], BLOCK):
        block = _block(width, size[1], begin, min(begin + BLOCK, grad.shape[3]))
        matrix = _tensor(block.matrix, grad.device, grad.dtype)
        lines[:, block.source].addmm_(flat[:, begin : begin + BLOCK], matrix.T)
    across = _block(height, size[0], strip.rows.start, strip.rows.stop)
    matrix = _tensor(across.matrix, grad.device, grad.dtype)
    out[strip.images, :, across.source] += torch.matmul(matrix, lines.view(*grad.shape[:3], width))


@dataclass(frozen=True, eq=False)
class Taps:
    """For each place of the large axis the two of the small one that it lies between, and the weight of the second."""

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    weight: NDArray[np.float64]

    def part(self, places: slice) -> Taps:
        """Return those of some places of the large axis."""
        return Taps(self.first[places], self.second[places], self.weight[places])


@lru_cache(maxsize=64)
def taps(small: int, large: int) -> Taps:
    """Return where the places of an axis of length `large` lie on one of length `small`: corners not aligned."""
    place = np.maximum((np.arange(large) + 0.5) * (small / large) - 0.5, 0.0)
    first = np.minimum(place.astype(np.int64), small - 1)
    return Taps(first, np.minimum(first + 1, small - 1), place - first)


class _Block(NamedTuple):
    """The places `source` of the small axis that a run of the large one is made of, and the weights `[source, run]`."""

    source: slice
    matrix: NDArray[np.float64]


@lru_cache(maxsize=1024)
def _block(small: int, large: int, begin: int, end: int) -> _Block:
    near = taps(small, large).part(slice(begin, end))
    low, high = int(near.first[0]), int(near.second[-1]) + 1
    matrix = np.zeros((high - low, end - begin))
    run = np.arange(end - begin)
    np.add.at(matrix, (near.first - low, run), 1 - near.weight)
    np.add.at(matrix, (near.second - low, run), near.weight)
    return _Block(slice(low, high), matrix)


def _tensor(values: NDArray[Any], device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).to(device, dtype, non_blocking=True)
