"""The device a run uses, and what its arithmetic needs."""

from __future__ import annotations

import torch

from segtrain.errors import ConfigError


def select_device(name: str) -> torch.device:
    """Return the device for `auto`, `cpu`, `cuda` or `cuda:<n>`.

    Raises:
        ConfigError: CUDA is asked for and is not there, or there are fewer devices.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device: {name!r} is none; choose auto, cpu, cuda or cuda:<number>") from error
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device: {name!r} is not supported; choose auto, cpu, cuda or cuda:<number>")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device: {name} was asked for, but torch finds no CUDA device here; use device=auto or cpu")
    if device.type == "cuda" and device.index is not None and device.index >= torch.cuda.device_count():
        raise ConfigError(f"device: {name} was asked for, but there are {torch.cuda.device_count()} CUDA devices")
    return device


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return the autocast context of fp32 (none), bf16 or fp16 on `device`.

    Raises:
        ConfigError: fp16 on a CPU, whose gradients cannot be scaled safely there.
    """
    if precision == "fp16" and device.type == "cpu":
        raise ConfigError("train.precision: fp16 needs a CUDA device; on a CPU use fp32 or bf16")
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype=dtype, enabled=precision != "fp32")
