"""Memory for a gradient as large as the logits, in large pages where the system has them."""

from __future__ import annotations

import mmap

import torch
from torch import Tensor

WORTH_IT = 2**25  # bytes; below it the allocator hands out memory that has been touched before


def empty_like(values: Tensor) -> Tensor:
    """Return an uninitialised tensor of the type, shape and layout of `values`, on the CPU.

    The first touch of each page of fresh memory costs more than what is then written to it, and a large tensor's memory
    is always fresh: in pages of 2 MB instead of 4 KB that cost is all but gone.
    """
    result = torch.empty_like(values, device="meta")
    num_bytes = result.numel() * result.element_size()
    if num_bytes < WORTH_IT or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty_like(values)
    try:
        memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory.madvise(mmap.MADV_HUGEPAGE)
    except OSError:  # a kernel built without large pages, or no memory left: the allocator has words for that
        return torch.empty_like(values)
    flat = torch.frombuffer(memory, dtype=values.dtype)
    return flat.as_strided(result.shape, result.stride())
