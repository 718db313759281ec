"""train.deterministic: equal bits from equal runs, for the time of a training and no longer."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from segtrain.errors import ConfigError, SegtrainError

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
WORKSPACES = (":4096:8", ":16:8")
UNKNOWN = "does not have a deterministic implementation"


@contextmanager
def deterministic_algorithms(*, device: torch.device) -> Iterator[None]:
    """Have torch use deterministic algorithms alone; what was set before is set again afterwards, whatever happens.

    Raises:
        ConfigError: on CUDA without the environment variable that cuBLAS reads when it starts.
        SegtrainError: an operation that has no deterministic algorithm on this device; torch's message names it.
    """
    check_environment(device)
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn = torch.backends.cudnn
    flags = cudnn.deterministic, cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    except RuntimeError as error:
        if UNKNOWN not in str(error):
            raise
        raise SegtrainError(
            f"train.deterministic: {str(error).partition(', but you set')[0]} on {device.type}: use another model or "
            "loss term, train on the CPU, or set train.deterministic: false"
        ) from error
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
        cudnn.deterministic, cudnn.benchmark = flags


def check_environment(device: torch.device) -> None:
    """Refuse a CUDA device whose matrix products may differ from run to run.

    Raises:
        ConfigError: the variable is not one of cuBLAS's two reproducible settings. It is read when CUDA starts, and
            so is the user's to set.
    """
    found = os.environ.get(WORKSPACE)
    if device.type != "cuda" or found in WORKSPACES:
        return
    raise ConfigError(
        f"train.deterministic on a GPU needs {WORKSPACE}={WORKSPACES[0]} in the environment before the program starts "
        f"(found {'nothing' if found is None else repr(found)}; {WORKSPACES[1]} takes less memory and more time): "
        f"{WORKSPACE}={WORKSPACES[0]} python tools/train.py ..."
    )
