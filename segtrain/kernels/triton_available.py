"""Whether the Triton kernels can run on a device, and why not."""

from __future__ import annotations

import warnings
from functools import cache
from importlib.util import find_spec

import torch

OLDEST = (8, 0)  # compute capability: what the kernels are compiled for in the tests


def triton_reason(device: torch.device) -> str | None:
    """Say why no Triton kernel runs on `device`, or None where they do; nothing is imported and nothing waits."""
    if device.type != "cuda":
        return f"Triton kernels run on CUDA devices, not on {device.type}"
    return _reason(device.index if device.index is not None else torch.cuda.current_device())


@cache
def warn_of_fallback(reason: str) -> None:
    """Warn, once in a process for each reason, that slower operators stand in for the Triton kernels."""
    warnings.warn(f"no fused kernels on this GPU, slower operators stand in: {reason}", RuntimeWarning, stacklevel=3)


@cache
def _reason(index: int) -> str | None:
    if torch.version.hip is not None:
        return "the kernels are written and tested for CUDA, not for ROCm"
    if find_spec("triton") is None:
        return "triton is not installed (pip install triton)"
    capability = torch.cuda.get_device_capability(index)
    if capability < OLDEST:
        return f"compute capability {capability[0]}.{capability[1]} is below {OLDEST[0]}.{OLDEST[1]}"
    return None
