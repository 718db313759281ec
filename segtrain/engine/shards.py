"""A model whose parameters are spread over the ranks (FSDP2): how it is cut, made whole for a while, and filled."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from segtrain.config import Config
from segtrain.distributed import world_size
from segtrain.engine.ranks import broadcast_weights, from_first
from segtrain.errors import ConfigError

UNIT_SHARE = 0.05


def check_sharding(config: Config) -> None:
    """Refuse what does not go with train.parallel: fsdp.

    Raises:
        ConfigError: names all of it.
    """
    if config.train.parallel != "fsdp":
        return
    if world_size() == 1:
        raise ConfigError(
            "train.parallel: fsdp spreads a model over several ranks, and this is one process: start it with torchrun "
            "(see docs/distributed.md), or drop it"
        )
    train = config.train
    wrong = {
        "train.compile": train.compile_mode is not None,
        "train.channels_last, as torch shards contiguous parameters alone": train.channels_last,
        "train.exact_accumulation": train.exact_accumulation,
        "train.precision: fp16, whose loss scale would be each rank's own; use bf16": train.precision == "fp16",
        "optimizer.name: sgd, whose fused form torch does not have for sharded weights; use adamw": (
            config.optimizer.name != "adamw"
        ),
        "loss.fused_upsample": config.fused_upsample,
    }
    found = [name for name, holds in wrong.items() if holds]
    if found:
        raise ConfigError(f"train.parallel: fsdp does not go with {'; nor with '.join(found)}. Change that, or use ddp")


def shard(model: nn.Module, device: torch.device) -> None:
    """Spread the parameters of a model over all ranks, in place; buffers stay whole on each.

    What is gathered at a time for a forward or backward pass is a unit: the smallest modules that hold a twentieth of
    all parameters beyond those of the units in them; what is left over is the model's own unit. Every rank must call it
    with equal weights.
    """
    mesh = init_device_mesh(device.type, (world_size(),))
    least = UNIT_SHARE * sum(parameter.numel() for parameter in model.parameters())
    for unit in _units(model, least)[0]:
        if unit is not model:
            fully_shard(unit, mesh=mesh)
    fully_shard(model, mesh=mesh)


def _units(module: nn.Module, least: float) -> tuple[list[nn.Module], int]:
    """Return the units in a module, inner ones first, and the number of parameters that are left over in it."""
    units: list[nn.Module] = []
    rest = sum(parameter.numel() for parameter in module.parameters(recurse=False))
    if rest:
        # a module with parameters of its own may use those of its children without calling them
        rest = sum(parameter.numel() for parameter in module.parameters())
    else:
        for child in module.children():
            inner, left = _units(child, least)
            units += inner
            rest += left
    # containers may be walked through instead of called
    is_container = isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict)
    if rest < least or is_container:
        return units, rest
    return [*units, module], 0


def is_sharded(model: nn.Module) -> bool:
    """Whether `shard` has spread the model."""
    return isinstance(model, FSDPModule)


def local(value: Tensor) -> Tensor:
    """Return this rank's part of a tensor: all of it where it is not spread over the ranks."""
    part: Tensor = value.to_local() if isinstance(value, DTensor) else value
    return part


def whole(value: Tensor) -> Tensor:
    """Return the whole of a tensor that is spread over the ranks, each of which must ask."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def sharded_tensors(
    model: nn.Module, optimizer: torch.optim.Optimizer, averaged: nn.Module | None
) -> dict[str, Tensor]:
    """Return all tensors of a sharded run by name, those that are spread as such: to be written, or to be filled."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    if averaged is not None:
        tensors |= {f"ema.{name}": value for name, value in averaged.state_dict().items()}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{name}.{key}"] = value
    return tensors


def make_moments(model: nn.Module, optimizer: torch.optim.Optimizer, sizes: Mapping[str, tuple[int, ...]]) -> None:
    """Make the optimizer's state, of zeros, as the names and sizes of a checkpoint's tensors say: to be filled."""
    for name, parameter in model.named_parameters():
        prefix = f"optimizer.{name}."
        for key, size in ((key.removeprefix(prefix), size) for key, size in sizes.items() if key.startswith(prefix)):
            if "." in key:
                continue  # of a parameter whose name goes on
            like = parameter.detach()
            is_alike = size == tuple(like.shape)
            value = torch.zeros_like(like) if is_alike else torch.zeros(size, device=like.device)
            optimizer.state[parameter][key] = value


@contextmanager
def gathered(model: nn.Module) -> Iterator[nn.Module]:
    """Have the whole model on each rank for a while, to be called there without the others; every rank must enter it.

    A model that is not sharded stays as it is.
    """
    units = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for unit in units:
        unit.set_reshard_after_forward(False, recurse=False)
        unit.unshard()
    try:
        yield model
    finally:
        for unit in units:
            unit.reshard()
            unit.set_reshard_after_forward(unit is not model, recurse=False)


def whole_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return the whole weights on the first rank, of a sharded model nothing on the others; every rank must call it."""
    if not is_sharded(model):
        return model.state_dict()
    found = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    return cast(dict[str, Tensor], found)


def give_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Give all ranks the first one's weights: those in its model or, of a sharded one, its `weights` if it has any."""
    if not is_sharded(model):
        broadcast_weights(model)
        return
    if not from_first(bool(weights)):
        return
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(model, dict(weights), options=options)
