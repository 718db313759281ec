"""Skeletons of maps and masks by repeated erosion and opening, with a backward pass that keeps nothing but the map."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

Shifts = tuple[tuple[int, int], ...]
CROSS: Shifts = ((1, 1), (0, 1), (1, 0), (1, 2), (2, 1))  # rows and columns into the padded map: (1, 1) is the pixel
COLUMN: Shifts = ((1, 1), (0, 1), (2, 1))
ROW: Shifts = ((1, 1), (1, 0), (1, 2))


def soft_skeleton(maps: Tensor, *, iterations: int) -> Tensor:
    """Return the soft skeleton (Shit 2021, Alg. 1) of float maps `[..., H, W]` in [0, 1], in their shape.

    What an opening (erosion over the four neighbours, then dilation over 3 × 3 pixels) takes away from the map and from
    each of its erosions, joined as a ∪ b = a + (1 − a) b. Nothing lies outside the image: its border does not erode.
    Once differentiable; of equal values in a window the first takes the gradient.
    """
    skeleton: Tensor = _SoftSkeleton.apply(maps, iterations)
    return skeleton


def mask_skeleton(mask: Tensor, *, iterations: int) -> Tensor:
    """Return the same of a bool mask `[..., H, W]`, which is a mask as well."""
    maps, skeleton = mask.view(torch.uint8), torch.zeros(mask.shape, dtype=torch.uint8, device=mask.device)
    for _ in range(iterations + 1):
        eroded = _erode(maps)
        skeleton |= maps & ~_dilate(eroded)
        maps = eroded
    return skeleton.bool()


class _SoftSkeleton(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, maps: Tensor, iterations: int) -> Tensor:
        ctx.save_for_backward(maps)
        ctx.iterations = iterations
        skeleton = torch.zeros_like(maps)
        for _ in range(iterations + 1):
            eroded = _erode(maps)
            skeleton += (maps - _dilate(eroded)).relu_().mul_(1 - skeleton)
            maps = eroded
        return skeleton

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (maps,) = ctx.saved_tensors
        eroded, rests, free = [maps], [], [torch.ones_like(maps)]  # free: 1 − the skeleton before each step
        for _ in range(ctx.iterations + 1):
            eroded.append(_erode(eroded[-1]))
            rests.append((eroded[-2] - _dilate(eroded[-1])).relu_())
            free.append(free[-1] * (1 - rests[-1]))
        # S = 1 − Π (1 − r_j): the slope in r_j is the product of the other factors, gathered from behind
        behind, to_eroded = grad, torch.zeros_like(maps)
        for step in reversed(range(ctx.iterations + 1)):
            to_rest = behind * free[step] * rests[step].sign()  # relu: nothing where the opening took nothing away
            behind = behind * (1 - rests[step])
            to_eroded -= _undo_dilate(to_rest, eroded[step + 1])
            to_eroded = to_rest + _hand_back(to_eroded, eroded[step], eroded[step + 1], CROSS, torch.inf)
        return to_eroded, None


def _erode(maps: Tensor) -> Tensor:
    """Return the minimum over the pixel and its four neighbours."""
    return _extreme(maps, CROSS, torch.minimum, 1 if maps.dtype == torch.uint8 else torch.inf)


def _dilate(maps: Tensor) -> Tensor:
    """Return the maximum over 3 × 3 pixels."""
    outside = 0 if maps.dtype == torch.uint8 else -torch.inf
    return _extreme(_extreme(maps, COLUMN, torch.maximum, outside), ROW, torch.maximum, outside)


def _undo_dilate(grad: Tensor, maps: Tensor) -> Tensor:
    columns = _extreme(maps, COLUMN, torch.maximum, -torch.inf)
    grad = _hand_back(grad, columns, _extreme(columns, ROW, torch.maximum, -torch.inf), ROW, -torch.inf)
    return _hand_back(grad, maps, columns, COLUMN, -torch.inf)


def _extreme(maps: Tensor, shifts: Shifts, pick: Callable[[Tensor, Tensor], Tensor], outside: float) -> Tensor:
    """Return the extreme of the shifted maps: on a CPU several times faster than pooling."""
    padded = pad(maps, (1, 1, 1, 1), value=outside)
    return reduce(pick, (_window(padded, shift) for shift in shifts))


def _hand_back(grad: Tensor, maps: Tensor, extreme: Tensor, shifts: Shifts, outside: float) -> Tensor:
    """Give the gradient of each extreme to the first of the shifted pixels that is equal to it."""
    padded = pad(maps, (1, 1, 1, 1), value=outside)
    received, left = torch.zeros_like(padded), grad.clone()
    for shift in shifts:
        part = left * (_window(padded, shift) == extreme)
        _window(received, shift).add_(part)
        left -= part
    return _window(received, (1, 1))


def _window(padded: Tensor, shift: tuple[int, int]) -> Tensor:
    """Return the view `[..., H, W]` of a padded map that starts at the shift."""
    height, width = padded.shape[-2] - 2, padded.shape[-1] - 2
    return padded[..., shift[0] : shift[0] + height, shift[1] : shift[1] + width]
