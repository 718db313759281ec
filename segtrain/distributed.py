"""Processes that train one model together: what the losses need to see the batch of all ranks as one."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import uuid4

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch import distributed as dist

from segtrain.errors import ConfigError

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

Gathered = TypeVar("Gathered")
TIMEOUT_SECONDS = 600.0
LAUNCHED = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def world_size() -> int:
    """Return the number of ranks of the default process group, 1 without one."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this process in the default process group, 0 without one."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def launched_size() -> int:
    """Return how many processes torchrun started, 1 without it: known before they have joined."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def launched_rank() -> int:
    """Return which of the processes that torchrun started this one is, 0 without it."""
    return int(os.environ.get("RANK", "0")) if launched_size() > 1 else 0


def local_rank() -> int:
    """Return which of the processes on this machine this one is: the number of its CUDA device."""
    return int(os.environ.get("LOCAL_RANK", "0"))


@contextmanager
def joined_ranks(*, cuda: bool = False, timeout_seconds: float = TIMEOUT_SECONDS) -> Iterator[None]:
    """Join the processes that torchrun started; without torchrun, or where they have joined already, do nothing.

    Tensors on CPUs go by gloo, and with `cuda` those on CUDA devices by NCCL. A rank that waits longer than
    `timeout_seconds` for another gives up.

    Raises:
        ConfigError: WORLD_SIZE says that there are several processes, and what else torchrun sets is missing.
    """
    if dist.is_initialized() or launched_size() == 1:
        yield
        return
    missing = [name for name in LAUNCHED if name not in os.environ]
    if missing:
        raise ConfigError(
            f"WORLD_SIZE is {launched_size()} in the environment, and {', '.join(missing)} not set: start the "
            "processes with torchrun (see docs/distributed.md), or unset WORLD_SIZE for one process"
        )
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    dist.init_process_group(backend, timeout=timedelta(seconds=timeout_seconds), **_own_round(timeout_seconds))
    try:
        yield
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def may_restart() -> bool:
    """Return whether torchrun starts the ranks anew where one of them ends with an error (--max-restarts)."""
    return launched_size() > 1 and int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0


def _own_round(timeout_seconds: float) -> dict[str, Any]:
    """Return where the ranks join, as arguments of init_process_group: by default where torch has them join.

    torchrun keeps one store over its restarts, and in it what the ranks of an earlier start said of themselves: one
    that reads an address there before it is written anew waits for a rank that is gone. So each start gets a place of
    its own in the store, whose name the first rank draws. It tells each other rank by a word which that has drawn:
    nobody of an earlier start can have answered that. (How often torchrun has restarted its ranks would not do: each
    machine has a count of its own.)
    """
    if not may_restart() or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != str(True):
        return {}
    # here, as torch can be built without them
    from torch._C._distributed_c10d import PrefixStore, TCPStore

    address, port, own_rank = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), int(os.environ["RANK"])
    tcp = TCPStore(address, port, is_master=False, timeout=timedelta(seconds=timeout_seconds))
    store, word = PrefixStore("segtrain/rounds", tcp), uuid4().hex
    if own_rank == 0:
        _tell_name(store, word, timeout_seconds=timeout_seconds)
        name = word
    else:
        store.set(f"hello/{own_rank}", word)
        name = store.get(f"welcome/{word}").decode()
        store.set(f"heard/{name}/{own_rank}", "")
    return {"store": PrefixStore(name, store), "rank": own_rank, "world_size": launched_size()}


def _tell_name(store: Store, name: str, *, timeout_seconds: float) -> None:
    """Answer every rank that says hello, until all have heard the name."""
    deadline = time.monotonic() + timeout_seconds
    missing = list(range(1, launched_size()))
    while missing:
        for number in missing:
            if store.check([f"hello/{number}"]):
                store.set(f"welcome/{store.get(f'hello/{number}').decode()}", name)
        missing = [number for number in missing if not store.check([f"heard/{name}/{number}"])]
        if time.monotonic() > deadline:
            raise dist.DistStoreError(f"ranks {missing} have not joined within {timeout_seconds:g} seconds")
        time.sleep(0.05)


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


def mean_over_ranks(values: Tensor) -> Tensor:
    """Return the mean of floats over the ranks, on their device, in float64 and back: of equal values just these."""
    if world_size() == 1:
        return values
    device = "cuda" if dist.get_backend() == "nccl" else values.device
    summed = values.detach().to(device, torch.float64, copy=True, memory_format=torch.contiguous_format)
    dist.all_reduce(summed, op=dist.ReduceOp.SUM)
    return (summed / world_size()).to(values.device, values.dtype)


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
