"""Whether the Triton kernels can run on a device, and why not."""

from __future__ import annotations

import warnings
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import torch

OLDEST = (8, 0)  # compute capability: what the kernels are compiled for in the tests
OLDEST_TRITON = (3, 6)  # that was seen to compile them; it comes with the oldest torch that is supported


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
    installed = _triton_version()
    if installed is not None and installed < OLDEST_TRITON:
        found, wanted = (".".join(map(str, numbers)) for numbers in (installed, OLDEST_TRITON))
        return f"triton {found} is older than {wanted}, the oldest known to compile the kernels (pip install -U triton)"
    capability = torch.cuda.get_device_capability(index)
    if capability < OLDEST:
        return f"compute capability {capability[0]}.{capability[1]} is below {OLDEST[0]}.{OLDEST[1]}"
    return None


def _triton_version() -> tuple[int, int] | None:
    """Return major and minor version of Triton without importing it; None where its package does not say."""
    try:
        major, minor = version("triton").split(".")[:2]
        return int(major), int(minor)
    except (PackageNotFoundError, ValueError):
        return None
