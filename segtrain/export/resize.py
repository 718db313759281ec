"""Resizing inside an exported graph, for images of any size: what OpenCV does before training, as tensor operations."""

from __future__ import annotations

import torch
from torch import Tensor


def resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize images [N, C, h, w] to `size` (height, width): pixel areas where both sides shrink, else bilinear.

    The same as `segtrain.data.steps.resize_image` but for its rounding: a value may differ by one. One product with a
    matrix of weights along each axis; which of the two ways is taken is decided inside the graph.

    Returns:
        float32 [N, C, *size], whole numbers.
    """
    height, width = images.shape[-2:]
    shrinks = torch.logical_and(_scalar(height, images) >= size[0], _scalar(width, images) >= size[1])
    rows, columns = (
        torch.where(shrinks, _areas(length, target, images), _neighbours(length, target, images))
        for length, target in ((height, size[0]), (width, size[1]))
    )
    return torch.matmul(torch.matmul(rows, images.to(torch.float32)), columns.transpose(0, 1)).round()


def _scalar(value: int, like: Tensor) -> Tensor:
    return torch.full((1, 1), value, dtype=torch.int64, device=like.device)


def _places(count: int, like: Tensor) -> Tensor:
    return torch.arange(count, dtype=torch.int64, device=like.device)


def _areas(length: int, size: int, like: Tensor) -> Tensor:
    """Weights [size, length]: which share of a large pixel each small one covers; in whole numbers up to the end."""
    large, small = _places(size, like)[:, None], _places(length, like)[None, :]
    end = torch.minimum((large + 1) * length, (small + 1) * size)
    begin = torch.maximum(large * length, small * size)
    return (end - begin).clamp(min=0).to(torch.float32) / length


def _neighbours(length: int, size: int, like: Tensor) -> Tensor:
    """Weights [size, length] of linear interpolation between the middles of the pixels, corners not aligned."""
    large, small = _places(size, like)[:, None], _places(length, like)[None, :]
    # in units of 1 / (2 size), so that they are whole numbers
    middle = ((2 * large + 1) * length - size).clamp(min=0)
    middle = torch.minimum(middle, _scalar(length, like) * (2 * size) - 2 * size)
    distance = (middle - small * (2 * size)).abs().to(torch.float32) / (2 * size)
    return (1 - distance).clamp(min=0)
