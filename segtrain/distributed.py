"""Processes that train one model together: what the losses need to see the batch of all ranks as one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch import distributed as dist

Gathered = TypeVar("Gathered")


def world_size() -> int:
    """Return the number of ranks of the default process group, 1 without one."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this process in the default process group, 0 without one."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


@contextmanager
def joined_ranks() -> Iterator[None]:
    """Join the processes that torchrun started, for commands whose work on CPUs is shared; without torchrun nothing."""
    if dist.is_initialized() or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    dist.init_process_group("gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def sum_over_ranks(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Sum whole numbers, int64 of one shape on all ranks, over the ranks; exact, and without a gradient."""
    if world_size() == 1:
        return values
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"  # NCCL sums on its own device alone
    summed = torch.from_numpy(np.ascontiguousarray(values)).to(device, copy=True)
    dist.all_reduce(summed, op=dist.ReduceOp.SUM)
    return summed.cpu().numpy()


def gather_objects(value: Gathered) -> list[Gathered]:
    """Return what each rank gave, in the order of the ranks; small values that can be pickled."""
    if world_size() == 1:
        return [value]
    found: list[Any] = [None] * world_size()
    dist.all_gather_object(found, value)
    return found


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
