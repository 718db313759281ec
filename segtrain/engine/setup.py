"""Everything a run needs, checked and built before step 1: data, loss, model, optimizer; folder and logs last."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from segtrain.config import Config, dump_config
from segtrain.console import held, say
from segtrain.data import ClassFrequencies
from segtrain.data.dataset import TrainDataset
from segtrain.data.given import MapDataset
from segtrain.data.loader import Loader, build_train_loader
from segtrain.data.sampling import TrainBatchSampler
from segtrain.distributed import rank
from segtrain.engine.announce import announce
from segtrain.engine.average import WeightAverage, shard_model
from segtrain.engine.buffers import Buffers
from segtrain.engine.compiled import check_compile, compile_model
from segtrain.engine.custom_loss import TrainingLoss
from segtrain.engine.device import autocast
from segtrain.engine.exposure import Exposure
from segtrain.engine.fitness import check_accumulation, check_loss_section, uses_labels
from segtrain.engine.folder import find_resume, flat_settings, holds_best, make_run_folder, run_folder
from segtrain.engine.monitor import check_metric_name
from segtrain.engine.order import build_sampler
from segtrain.engine.parts import loss_section, make_loss, make_model, make_replicas, seed_rank, training_loss
from segtrain.engine.profile import make_phases
from segtrain.engine.ranks import agreed, check_alike, from_first, rank_device
from segtrain.engine.realised import save_realised
from segtrain.engine.run import Run, make_average, restore
from segtrain.engine.run_data import RunData
from segtrain.engine.shard_files import read_shards
from segtrain.engine.shards import check_sharding, is_sharded
from segtrain.engine.state import Schedule, TrainState
from segtrain.engine.teacher import Teacher, check_sight, load_teacher
from segtrain.engine.telemetry import Telemetry
from segtrain.models import Normalize
from segtrain.optim import build_optimizer, check_schedule
from segtrain.tracking import SilentTracker, Tracker

# what may differ between the machines of a run
OWN_TO_A_MACHINE = ("data.root", "data.workers", "data.cache", "data.prefetch", "output", "train.rank_timeout_seconds")


def prepare(
    config: Config,
    *,
    model: nn.Module | None,
    loss: nn.Module | None,
    train_data: MapDataset | None,
    val_data: MapDataset | None,
    console: Console,
) -> Run:
    """Build a run and bring it to the position of its checkpoint; see `segtrain.engine.train` for the arguments.

    Nothing is deleted or written before all else has been checked; nothing is printed before either.
    """
    with held(console):
        say(console, f"{config.name}: what differs from the defaults\n\n{dump_config(config)}")
        return _prepare(config, model=model, loss=loss, train_data=train_data, val_data=val_data, console=console)


def _prepare(
    config: Config,
    *,
    model: nn.Module | None,
    loss: nn.Module | None,
    train_data: MapDataset | None,
    val_data: MapDataset | None,
    console: Console,
) -> Run:
    device = rank_device(config.device)
    _check_settings(config, device)
    check_loss_section(config, loss_section(config, loss), custom_model=model is not None)
    tell = partial(say, console, style="yellow")
    payload = find_resume(config, tell=tell)
    task = _task(config, loss, train_data, val_data, device=device, payload=payload, console=console)
    custom_model = None if model is None else type(model).__name__
    model = make_model(task.config, model, task.data, device=device, console=console, fresh=payload is None)
    learner = _learner(task.config, model, device, payload=payload, num_samples=len(task.data.train), tell=tell)
    run = _assemble(task, learner, device=device, payload=payload, custom_model=custom_model, console=console)
    if payload is not None:
        run.restore_reports(payload)
    announce(run, payload, console)
    return run


@dataclass(frozen=True)
class _Task:
    """What is to be learnt: from which data in which order, and by which loss; `config` has no `loss: auto` left."""

    config: Config
    data: RunData
    sampler: TrainBatchSampler
    loss: TrainingLoss
    teacher: Teacher | None
    measures_loss: bool
    realised: ClassFrequencies | None


def _task(
    config: Config,
    loss: nn.Module | None,
    train_data: MapDataset | None,
    val_data: MapDataset | None,
    *,
    device: torch.device,
    payload: Mapping[str, Any] | None,
    console: Console,
) -> _Task:
    """Check and count the data, and make the loss that they call for."""
    section = loss_section(config, loss)
    teacher = None if section is None else load_teacher(config, section, device=device)
    data = RunData.check(config, train_data, val_data, console=console)
    _check_ranks(config, data, payload)
    sampler = build_sampler(config, data.train_counts, data.frequencies, console)
    config, loss, realised = make_loss(config, loss, data, sampler, console)
    loop_loss = training_loss(loss, device)
    check_accumulation(config, loop_loss)
    data = data.with_maps(config, getattr(loss, "distance_classes", None), given=isinstance(train_data, TrainDataset))
    if teacher is not None:
        check_sight(teacher, data.train[0, 0]["image"].to(device))
    measures_loss = section is None or uses_labels(section)
    return _Task(config, data, sampler, loop_loss, teacher, measures_loss, realised)


def _assemble(
    task: _Task,
    learner: _Learner,
    *,
    device: torch.device,
    payload: Mapping[str, Any] | None,
    custom_model: str | None,
    console: Console,
) -> Run:
    """Put the run together, and make its folder: the first thing that is written."""
    config, data, sampler = task.config, task.data, task.sampler
    schedule = Schedule.from_config(config, sampler.batches_per_epoch)
    check_schedule(config.optimizer.schedule, schedule.total_steps)
    exposure = Exposure(config.data, data.frequencies, sampler)
    if payload is not None:
        exposure.load(payload["training"].get("exposure"), batch=schedule.position(learner.state.step)[1])
    phases = make_phases(
        config.train.profile,
        run_folder(config),
        device=device,
        steps=range(learner.state.step, schedule.total_steps),
        tell=partial(say, console),
    )
    folder = _make_folder(config, data, task.realised, fresh=payload is None)
    return Run(
        config=config,
        folder=folder,
        device=device,
        normalize=Normalize(config.data.normalize.mean, config.data.normalize.std).to(device),
        loss=task.loss,
        teacher=task.teacher,
        measures_loss=task.measures_loss,
        train_data=data.train,
        val_data=data.val,
        sampler=sampler,
        loader=_loader(config, data, sampler, device),
        frequencies=data.frequencies,
        exposure=exposure,
        schedule=schedule,
        validation_images=data.validation_images(config),
        custom_model=custom_model,
        telemetry=_telemetry(config, schedule),
        phases=phases,
        tracker=_tracker(folder, learner.state),
        **vars(learner),
    )


@dataclass(frozen=True)
class _Learner:
    """What learns, as fields of Run."""

    model: nn.Module
    replicas: DistributedDataParallel | None
    forward: Callable[[Tensor], Tensor | Sequence[Tensor]]
    buffers: Buffers
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    ema: WeightAverage | None
    state: TrainState


def _learner(
    config: Config,
    model: nn.Module,
    device: torch.device,
    *,
    payload: Mapping[str, Any] | None,
    num_samples: int,
    tell: Callable[[str], object],
) -> _Learner:
    """Make the optimizer and all that holds a state, alike on all ranks, as in the checkpoint where there is one."""
    average = shard_model(model, config.train.ema, device) if config.train.parallel == "fsdp" else None
    optimizer = build_optimizer(model, config.optimizer)
    scaler = torch.amp.GradScaler(device.type, enabled=config.train.precision == "fp16")
    seed_rank(config.seed, step=0 if payload is None else payload["step"])
    state = TrainState()
    if payload is not None:
        state = restore(
            payload,
            model=model,
            optimizer=optimizer,
            scaler=scaler,
            num_samples=num_samples,
            has_best=from_first(holds_best(config, payload, tell=tell)),
            device=device,
        )
    model.train()  # as it stays: an evaluation puts back what it finds
    if not is_sharded(model):
        average = make_average(model, config.train.ema, payload)
    elif payload is not None:
        read_shards(payload, model, optimizer, average)
    replicas = None if is_sharded(model) else make_replicas(model)
    called = model if replicas is None else replicas
    return _Learner(
        model=model,
        replicas=replicas,
        forward=compile_model(called, config),
        buffers=Buffers(model),
        optimizer=optimizer,
        scaler=scaler,
        ema=average,
        state=state,
    )


def _check_ranks(config: Config, data: RunData, payload: Mapping[str, Any] | None) -> None:
    """Refuse ranks that would do different things; what lies elsewhere on another machine may."""
    settings = {key: value for key, value in flat_settings(config).items() if key not in OWN_TO_A_MACHINE}
    found = {
        "the number of training images": len(data.train),
        "the number of validation images": len(data.val),
        "the step of the checkpoint to go on from": None if payload is None else payload["step"],
    }
    check_alike(found | settings)


def _make_folder(config: Config, data: RunData, realised: ClassFrequencies | None, *, fresh: bool) -> Path:
    """Make the run's folder on the first rank, now that all have looked at what it held."""
    with agreed():
        if rank() == 0:
            folder = make_run_folder(config, fresh=fresh)
            if realised is not None:
                save_realised(realised, config, data.train, folder=folder)
    return run_folder(config)


def _tracker(folder: Path, state: TrainState) -> Tracker:
    if rank() != 0:
        return SilentTracker()
    return Tracker(folder, start_step=state.step, again=() if state.evaluated_step == state.step else ("val",))


def _loader(
    config: Config, data: RunData, sampler: TrainBatchSampler, device: torch.device
) -> Loader[dict[str, Tensor]]:
    return build_train_loader(
        data.train,
        sampler,
        workers=config.data.workers,
        pin_memory=device.type == "cuda",
        prefetch=config.data.prefetch,
    )


def _telemetry(config: Config, schedule: Schedule) -> Telemetry | None:
    if not config.train.telemetry:
        return None
    every, total_steps = config.train.log_every, schedule.total_steps
    names, ignore_index = config.data.class_names, config.data.ignore_index
    return Telemetry(names, ignore_index=ignore_index, every=every, total_steps=total_steps)


def _check_settings(config: Config, device: torch.device) -> None:
    """Refuse what can be known to fail before any data is read."""
    autocast(device, config.train.precision)
    check_metric_name(config)
    check_compile(config, device)
    check_sharding(config)
