"""The parts of a run that compute: the loss, and the model on its device and on all ranks."""

from __future__ import annotations

import inspect
import warnings
from textwrap import indent
from typing import Any, cast

import numpy as np
import torch
from rich.console import Console
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from segtrain.config import Config, dump_config
from segtrain.config.loss import LossConfig
from segtrain.console import say
from segtrain.data import ClassFrequencies
from segtrain.data.sampling import TrainBatchSampler
from segtrain.distributed import rank, world_size
from segtrain.engine.custom_loss import TrainingLoss, as_training_loss
from segtrain.engine.order import count_realised
from segtrain.engine.run_data import RunData
from segtrain.errors import ConfigError
from segtrain.losses import SegmentationLoss, build_loss, resolve_auto
from segtrain.models import build_model


def loss_section(config: Config, loss: nn.Module | None) -> LossConfig | None:
    """Return the section of the loss that trains, None where it is yet to be chosen or not one of ours."""
    if loss is not None:
        return loss.config if isinstance(loss, SegmentationLoss) else None
    return None if config.loss == "auto" else config.loss


def make_loss(
    config: Config, given: nn.Module | None, data: RunData, sampler: TrainBatchSampler, console: Console
) -> tuple[Config, nn.Module, ClassFrequencies | None]:
    """Return the configuration with `loss: auto` resolved, the loss, and the realised frequencies where it needs them.

    Raises:
        ConfigError: a loss given in code that cannot be told of other ranks.
    """
    if given is not None:
        terms: Any = getattr(given, "terms", None)
        if world_size() > 1 and terms is not None and "reduce" not in inspect.signature(terms).parameters:
            raise ConfigError(
                "the loss given in code has terms(...) without the argument reduce, by which it would sum its "
                "statistics over the ranks: add it, or give a plain loss(logits, target), whose mean over them is taken"
            )
        return config, given, None
    config = _resolve_loss(config, data.frequencies, console)
    realised = count_realised(config, data.train, data.frequencies, sampler, console)
    return config, _build_loss(config, data.frequencies, realised, console), realised


def training_loss(loss: nn.Module, device: torch.device) -> TrainingLoss:
    """Return the loss as the loop sees it, on its device."""
    return cast(TrainingLoss, as_training_loss(loss).to(device))


def _resolve_loss(config: Config, frequencies: ClassFrequencies, console: Console) -> Config:
    """Replace `loss: auto` by the section that it stands for, and print that."""
    if config.loss != "auto":
        return config
    section = resolve_auto(frequencies)
    say(console, "loss: auto stands for\n\nloss:")
    say(console, indent(dump_config(section), "  "))
    return config.model_copy(update={"loss": section})


def _build_loss(
    config: Config, frequencies: ClassFrequencies, realised: ClassFrequencies | None, console: Console
) -> nn.Module:
    assert config.loss != "auto"
    data = config.data
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loss = build_loss(
            config.loss,
            num_classes=len(data.classes),
            ignore_index=data.ignore_index,
            frequencies=frequencies,
            class_names=data.class_names,
            realised=realised,
        )
    for warning in caught:
        say(console, f"warning: {warning.message}", style="yellow")
    say(console, loss.describe())
    return loss


def make_model(
    config: Config, given: nn.Module | None, data: RunData, *, device: torch.device, console: Console, fresh: bool
) -> nn.Module:
    """Return the model on its device, in its memory format; the weights are a function of the seed.

    Raises:
        ConfigError: train.sync_batchnorm where it cannot work.
    """
    torch.manual_seed(config.seed)
    model = given
    if model is None:
        model = _build_model(config, data.frequencies, console=console, load_weights=fresh)
    if config.train.sync_batchnorm and world_size() > 1:
        model = _with_common_batchnorm(model, device)
    model = model.to(device)
    return model.to(memory_format=torch.channels_last) if config.train.channels_last else model


def _build_model(config: Config, frequencies: ClassFrequencies, *, console: Console, load_weights: bool) -> nn.Module:
    model = build_model(
        config.model,
        len(config.data.classes),
        frequencies=frequencies,
        load_weights=load_weights,
        coarse=config.fused_upsample,
    )
    for line in model.init_report:
        say(console, f"weights: {line}")
    return model


def _with_common_batchnorm(model: nn.Module, device: torch.device) -> nn.Module:
    """BatchNorm over the batches of all ranks; over those of one rank it is that anyway."""
    if device.type != "cuda":
        raise ConfigError("train.sync_batchnorm needs CUDA devices: torch has it for them alone; drop it, or use CUDA")
    if not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
        raise ConfigError("train.sync_batchnorm changes nothing: the model has no BatchNorm; drop it")
    common: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    return common


def make_replicas(model: nn.Module) -> DistributedDataParallel | None:
    """Give all ranks the first one's weights, and return the model whose backward pass takes the mean of the gradients.

    None for a process alone. Buffers are kept alike by `segtrain.engine.buffers`, once a step.
    """
    if world_size() == 1:
        return None
    device = next(model.parameters()).device
    known = inspect.signature(DistributedDataParallel.__init__).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # as torch 2.10 calls it
    buffers: dict[str, Any] = {name: False}
    return DistributedDataParallel(
        model,
        device_ids=[device] if device.type == "cuda" else None,
        gradient_as_bucket_view=True,
        **buffers,
    )


def seed_rank(seed: int, *, step: int) -> None:
    """Seed torch for what each of several ranks draws by itself, such as dropout: a function of seed, rank and step."""
    if world_size() > 1:
        drawn = np.random.SeedSequence([seed, rank(), step]).generate_state(1, np.uint64)
        torch.manual_seed(int(drawn[0] >> np.uint64(1)))
