"""What memory allows: the speed of a plain copy in the same run, and how far above its limit a time lies."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import torch

from segtrain.benchmark.timing import time_call

COPIES, WARMUP = 7, 2
SMALLEST = 2**28  # bytes: less would stay in a cache, and a copy of it tell of that
LARGEST = 2**32


def copy_bytes_per_second(num_bytes: int, *, device: str) -> float:
    """Return the bytes read and written per second by copies of about so many bytes: the median of seven."""
    elements = min(max(num_bytes, SMALLEST), LARGEST) // 4
    source = torch.ones(elements, dtype=torch.float32, device=device)
    result = torch.empty_like(source)
    seconds = [time_call(lambda: result.copy_(source), device=device)[0] for _ in range(WARMUP + COPIES)]
    return 2 * 4 * elements / statistics.median(seconds[WARMUP:])


def limit_ratio(seconds: Sequence[float], num_bytes: int, *, bytes_per_second: float) -> float | None:
    """Return the median time over what moving `num_bytes` takes at that speed; None without times."""
    if not seconds:
        return None
    return statistics.median(seconds) / (num_bytes / bytes_per_second)
