"""Optimizers with parameter groups, and the schedule of the learning rate."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from segtrain.config.optimizer import AdamW, ConstantSchedule, CosineSchedule, OptimizerConfig, ScheduleConfig
from segtrain.errors import CheckpointError, ConfigError


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Build the optimizer over the trainable parameters of a model, in named groups.

    The groups are `encoder/decay`, `encoder/no_decay`, `decoder/decay` and `decoder/no_decay`, as far as they are
    not empty. Biases and parameters of at most one dimension (norm layers) get no weight decay unless
    `decay_norm_and_bias` is set. A model without `encoder_parameters()` is all decoder.

    Fused: one launch for many parameters, and a step can be left out without asking the device (`found_inf`).

    Raises:
        ConfigError: no parameter can be trained, or `encoder_lr` is set and no encoder parameter can.
    """
    groups = _groups(model, config)
    if not groups:
        raise ConfigError("no parameter is left to train: everything is frozen; shorten model.freeze")
    if config.encoder_lr is not None and not any(group["name"].startswith("encoder/") for group in groups):
        raise ConfigError("optimizer.encoder_lr is set, but no encoder parameter is trained: drop it or model.freeze")
    if isinstance(config, AdamW):
        return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay, fused=True)
    if config.nesterov and config.momentum == 0:
        raise ConfigError("optimizer.nesterov needs a momentum above 0: set optimizer.momentum, or drop nesterov")
    optimizer = torch.optim.SGD(
        groups,
        lr=config.lr,
        momentum=config.momentum,
        nesterov=config.nesterov,
        weight_decay=config.weight_decay,
        fused=True,
    )
    # a first step that is left out would leave the buffer unset: torch makes it uninitialised, and fills it in the step
    for parameter in (parameter for group in groups for parameter in group["params"] if config.momentum):
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter, requires_grad=False)
    return optimizer


def check_schedule(schedule: ScheduleConfig, total_steps: int) -> None:
    """Raise ConfigError where the warm-up leaves no step of the training."""
    if schedule.warmup_steps >= total_steps:
        raise ConfigError(
            f"optimizer.schedule.warmup_steps is {schedule.warmup_steps} and the training has {total_steps} steps: "
            "give fewer warm-up steps, or train longer"
        )


def set_learning_rate(
    optimizer: torch.optim.Optimizer, schedule: ScheduleConfig, *, step: int, total_steps: int
) -> None:
    """Set the learning rate of each group for optimizer step `step`: its `initial_lr` × `lr_factor`.

    It follows from the step alone, so that there is no scheduler state to save, and a resumed run uses the
    configuration that it was given.
    """
    factor = lr_factor(schedule, step, total_steps)
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor


def restore_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load the moments of a `state_dict`, while lr, weight decay and the like stay as configured now.

    Raises:
        CheckpointError: the state belongs to other parameter groups.
    """
    own = optimizer.state_dict()["param_groups"]
    sizes = [[(group.get("name"), len(group["params"])) for group in groups] for groups in (own, state["param_groups"])]
    if sizes[0] != sizes[1]:
        raise CheckpointError(
            f"the checkpoint's optimizer has the parameter groups {sizes[1]}, the model {sizes[0]}: restore "
            "model.freeze and optimizer, or start a new run from its weights with model.init_from"
        )
    optimizer.load_state_dict({"state": state["state"], "param_groups": own})


def lr_factor(schedule: ScheduleConfig, step: int, total_steps: int) -> float:
    """Factor of the learning rate for optimizer step `step` (0 is the first) of `total_steps`.

    With w warm-up steps it rises linearly: (step + 1) / (w + 1), so that step w is the first with factor 1. From
    there, with progress t = (step − w) / (total_steps − w): poly is m + (1 − m) (1 − t)^power, cosine is
    m + (1 − m) (1 + cos πt) / 2 (Loshchilov & Hutter 2017, equation 5), with m = min_factor. At and after the end
    it is m, never less.
    """
    warmup = schedule.warmup_steps
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if isinstance(schedule, ConstantSchedule):
        return 1.0
    progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
    if isinstance(schedule, CosineSchedule):
        shape = (1 + math.cos(math.pi * progress)) / 2
    else:
        shape = (1 - progress) ** schedule.power
    return schedule.min_factor + (1 - schedule.min_factor) * shape


def _groups(model: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    encoder_parameters = getattr(model, "encoder_parameters", None)
    in_encoder = {id(parameter) for parameter in encoder_parameters()} if encoder_parameters is not None else set()
    groups: dict[str, dict[str, Any]] = {}
    for part, lr in (("encoder", config.encoder_lr or config.lr), ("decoder", config.lr)):
        groups[f"{part}/decay"] = {"params": [], "lr": lr, "initial_lr": lr, "weight_decay": config.weight_decay}
        groups[f"{part}/no_decay"] = {"params": [], "lr": lr, "initial_lr": lr, "weight_decay": 0.0}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        part = "encoder" if id(parameter) in in_encoder else "decoder"
        is_exempt = parameter.ndim <= 1 or name.rpartition(".")[2] == "bias"
        kind = "no_decay" if is_exempt and not config.decay_norm_and_bias else "decay"
        groups[f"{part}/{kind}"]["params"].append(parameter)
    return [{"name": name, **group} for name, group in groups.items() if group["params"]]
