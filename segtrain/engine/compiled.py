"""train.compile: the model as torch.compile makes it, and what each mode needs."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from segtrain.config import Config
from segtrain.errors import ConfigError

GRAPHS = "reduce-overhead"


def check_compile(config: Config, device: torch.device) -> None:
    """Refuse a mode that cannot work here, or would do nothing.

    Raises:
        ConfigError: no C++ compiler for a CPU, or reduce-overhead there.
    """
    mode = config.train.compile_mode
    if mode is None or device.type != "cpu":
        return
    if not any(shutil.which(name) for name in ("g++", "clang++")):
        raise ConfigError("train.compile on a CPU needs a C++ compiler (g++ or clang++), and none is on the PATH")
    if mode == GRAPHS:
        raise ConfigError(
            "train.compile: reduce-overhead records CUDA graphs, and the device is a CPU, where it is default under "
            "another name: use train.compile: default"
        )


def compile_model(model: nn.Module, config: Config) -> Callable[..., Any]:
    """Return what training calls: the model itself, or compiled in the mode that `train.compile` names.

    In CUDA graphs the logits lie where the next call puts its own. Every call is told to torch as a new step, so that
    it reuses that place without looking for what is still in use: a batch's logits are read by loss and telemetry, and
    its backward pass is run, before the next batch is seen.
    """
    mode = config.train.compile_mode
    if mode is None:
        return model
    compiled: Callable[..., Any] = torch.compile(model, mode=mode)
    if mode == "default":
        return compiled

    def call(images: torch.Tensor) -> Any:
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        return compiled(images)

    return call
