"""The steps of the Jaccard loss along the errors of one class: sorted on any device, fast on a CPU, or counted."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[Any]
LARGEST_BITS = 0x7FFFFFFF  # of a float32 without its sign
HIGH, LOW = (1, 0) if sys.byteorder == "little" else (0, 1)  # halves of an int64


def class_losses(probability: Tensor, own: Tensor, valid: Tensor, *, bins: int | None) -> Tensor:
    """Return the Lovász loss of one class in each row, float64 `[R]`, 0 where the class is absent.

    Args:
        probability: float `[R, P]`; overwritten by the gradient of its row's loss in it, 0 where invalid.
        own: bool `[R, P]`: the valid pixels of the class.
        valid: bool `[R, P]`.
        bins: how many intervals to count the errors in; None sorts them.
    """
    on_cpu = probability.device.type == "cpu"
    if bins is None and not (on_cpu and probability.dtype == torch.float32 and probability.shape[1] < 2**31):
        return _sorted_losses(probability, own, valid)
    losses = []
    for row, mine, counted in zip(probability, own, valid, strict=True):
        if on_cpu and not np.count_nonzero(mine.numpy()):  # looking costs nothing on the CPU
            row.zero_()
            losses.append(torch.zeros((), dtype=torch.float64))
        elif bins is not None:
            losses.append(_binned_loss(row, mine, counted, bins))
        else:
            losses.append(torch.tensor(_packed_loss(row.numpy(), mine.numpy(), counted.numpy()), dtype=torch.float64))
    return torch.stack(losses)


def _sorted_losses(probability: Tensor, own: Tensor, valid: Tensor) -> Tensor:
    """Sort on any device and in any type, without a host sync."""
    errors = torch.where(own, 1 - probability, probability).masked_fill_(~valid, -1.0)  # ignored ones come last
    errors, order = errors.sort(dim=1, descending=True, stable=True)
    first = own.gather(1, order)
    num_own = own.sum(1, keepdim=True)
    left = (num_own - first.cumsum(1)).to(errors.dtype)  # G − F
    union = (num_own + (valid.gather(1, order) & ~first).cumsum(1)).to(errors.dtype)  # G + B
    # J_i − J_{i−1} without cancellation: 1 / (G + B) for a pixel of the class, else (G − F) / ((G + B) (G + B − 1))
    steps = torch.where(first, 1.0, left / (union - 1)) / union
    steps.masked_fill_((errors == -1.0) | (num_own == 0), 0.0)
    probability.scatter_(1, order, torch.where(first, -steps, steps))
    return errors.masked_fill_(num_own == 0, 0.0).mul_(steps).sum(1, dtype=torch.float64)


def _packed_loss(probability: Array, own: Array, valid: Array) -> float:
    """Sort the errors of one row, float32 `[P]`, each packed with its position into an int64.

    numpy sorts such values (SIMD) in a tenth of the time that torch takes to sort with positions, and much else here
    that hangs on a mask is several times faster in numpy. Pixels below the smallest error of the class's own are
    left out: their steps are 0.
    """
    errors = np.abs(own.view(np.uint8) - probability)
    lowest = errors[own].min()
    index = np.flatnonzero(~(errors < lowest) & valid)  # in this form, NaN stays in and shows
    packed = np.empty(len(index), np.int64)
    halves = packed.view(np.int32).reshape(-1, 2)
    np.subtract(LARGEST_BITS, errors.take(index).view(np.int32), out=halves[:, HIGH])  # ordered as the floats are
    halves[:, LOW] = index
    packed.sort()
    errors = np.subtract(LARGEST_BITS, halves[:, HIGH]).view(np.float32)
    order = halves[:, LOW].astype(np.int64)
    mine = np.flatnonzero(own.take(order))
    num_own = len(mine)
    # F, the class's own pixels up to each: k from the k-th of them to the next
    seen = np.repeat(np.arange(num_own + 1, dtype=np.int32), np.diff(mine, prepend=0, append=len(order)))
    union = np.arange(num_own + 1, num_own + 1 + len(order), dtype=np.int32)
    union -= seen
    wide = union.astype(np.float32)
    steps = (num_own - seen).astype(np.float32)
    below = wide - 1
    steps[mine] = below[mine] = 1.0
    steps /= below
    steps /= wide
    loss = float((errors * steps).sum(dtype=np.float64))
    steps[mine] *= -1
    probability.fill(0.0)
    probability[order] = steps
    return loss


def _binned_loss(probability: Tensor, own: Tensor, valid: Tensor, bins: int) -> Tensor:
    """Count the errors of one row, float `[P]`, in equal intervals, largest first; share out the steps of each."""
    mine = own.to(probability.dtype)
    errors = (mine - probability).abs_()
    # place 0 is for what is ignored, then come the intervals for other pixels, then those for the class's own
    place = (1 - errors).mul_(bins).nan_to_num_(0.0).clamp_(0, bins - 1).int()
    place.add_(own.int(), alpha=bins).add_(1).mul_(valid.int())
    counts = _counts(place, 2 * bins + 1)
    others, owned = counts[1 : bins + 1], counts[bins + 1 :]
    num_own = owned.sum()
    # added up as whole numbers: of floats CUDA has no deterministic way
    after = (others.cumsum(0) + num_own).double()  # G + B at the lower end of each interval, `before` at the upper end
    before = after - others
    left = (num_own - owned.cumsum(0)).double() + owned.double() / 2  # G − F, in the mean of both ends
    steps = torch.cat([after.new_zeros(1), left / (before * after), (1 / before + 1 / after) / 2])
    steps = torch.where(num_own > 0, steps, 0.0).to(probability.dtype).index_select(0, place)
    loss = (errors * steps).sum(dtype=torch.float64)
    if probability.is_cuda or loss.isnan():  # 0 times the NaN of an ignored pixel
        loss = (torch.where(valid, errors, 0.0) * steps).sum(dtype=torch.float64)
    torch.mul(steps, mine.mul_(-2).add_(1), out=probability)
    return loss


def _counts(values: Tensor, number: int) -> Tensor:
    """Count the values 0 to number − 1, without a host sync on CUDA."""
    if not values.is_cuda:
        return torch.bincount(values, minlength=number)
    ones = torch.ones_like(values, dtype=torch.int64)
    return torch.zeros(number, dtype=torch.int64, device=values.device).index_add_(0, values, ones)
