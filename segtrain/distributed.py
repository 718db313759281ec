"""Processes that train one model together: what the losses need to see the batch of all ranks as one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist


def world_size() -> int:
    """Return the number of ranks of the default process group, 1 without one."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def all_reduce_sum(values: Tensor) -> Tensor:
    """Sum `values` over the ranks of the default process group, differentiably; without a group, return them.

    The backward pass sums the gradient over the ranks in turn. So where every rank makes the same loss L of the sums,
    and DDP takes the mean of the ranks' gradients, the result is the gradient of L itself: no factor is needed.

    Every rank must call it, with values of one shape and type, and every rank must run the backward pass: a rank that
    leaves out either lets the others wait until the group's time-out.

    Args:
        values: floats of any shape, on a device that the group's backend serves. Never changed.
    """
    if world_size() == 1:
        return values
    summed: Tensor = _AllReduceSum.apply(values)
    return summed


class _AllReduceSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        summed = values.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(summed, op=dist.ReduceOp.SUM)
        return summed

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return all_reduce_sum(gradients[0])
