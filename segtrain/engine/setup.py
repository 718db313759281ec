"""Everything a run needs, checked and built before step 1: data, loss, model, optimizer; folder and logs last."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Mapping
from functools import partial
from textwrap import indent
from typing import Any, cast

import torch
from rich.console import Console
from torch import Tensor, nn

from segtrain.config import Config, dump_config
from segtrain.config.loss import LossConfig
from segtrain.console import say
from segtrain.data import ClassFrequencies
from segtrain.data.dataset import TrainDataset
from segtrain.data.given import MapDataset
from segtrain.data.loader import Loader, build_train_loader
from segtrain.data.sampling import TrainBatchSampler
from segtrain.engine.changes import changed_settings, rate_change
from segtrain.engine.custom_loss import TrainingLoss, as_training_loss
from segtrain.engine.device import autocast, select_device
from segtrain.engine.exposure import Exposure
from segtrain.engine.fitness import (
    accumulation_note,
    activation_note,
    check_accumulation,
    check_loss_section,
    uses_labels,
)
from segtrain.engine.folder import find_resume, holds_best, make_run_folder, run_folder
from segtrain.engine.monitor import check_metric_name
from segtrain.engine.order import build_sampler, count_realised
from segtrain.engine.profile import make_phases
from segtrain.engine.realised import save_realised
from segtrain.engine.run import Run, make_average, restore
from segtrain.engine.run_data import RunData
from segtrain.engine.state import Schedule, TrainState
from segtrain.engine.teacher import check_sight, load_teacher, size_note
from segtrain.engine.telemetry import Telemetry
from segtrain.errors import ConfigError
from segtrain.losses import SegmentationLoss, build_loss, resolve_auto
from segtrain.models import Normalize, build_model
from segtrain.optim import build_optimizer, check_schedule
from segtrain.tracking import Tracker


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

    Nothing is deleted or written before all else has been checked.
    """
    device = select_device(config.device)
    _check_settings(config, device)
    section = _loss_section(config, loss)
    check_loss_section(config, section, custom_model=model is not None)
    tell = partial(say, console, style="yellow")
    payload = find_resume(config, tell=tell)
    teacher = None if section is None else load_teacher(config, section, device=device)
    data = RunData.check(config, train_data, val_data, console=console)
    sampler = build_sampler(config, data.train_counts, data.frequencies, console)
    realised = None
    if loss is None:
        config = _resolve_loss(config, data.frequencies, console)
        realised = count_realised(config, data.train, data.frequencies, sampler, console)
        loss = _build_loss(config, data.frequencies, realised, console)
    training_loss = cast(TrainingLoss, as_training_loss(loss).to(device))
    check_accumulation(config, training_loss)
    data = data.with_maps(config, getattr(loss, "distance_classes", None), given=isinstance(train_data, TrainDataset))
    if teacher is not None:
        check_sight(teacher, data.train[0, 0]["image"].to(device))
    torch.manual_seed(config.seed)
    custom_model = None if model is None else type(model).__name__
    if model is None:
        model = _build_model(config, data.frequencies, console=console, load_weights=payload is None)
    model = _place(model, config, device)
    schedule = Schedule.from_config(config, sampler.batches_per_epoch)
    check_schedule(config.optimizer.schedule, schedule.total_steps)
    optimizer = build_optimizer(model, config.optimizer)
    scaler = torch.amp.GradScaler(device.type, enabled=config.train.precision == "fp16")
    state = TrainState()
    exposure = Exposure(config.data, data.frequencies, sampler)
    if payload is not None:
        state = restore(
            payload,
            model=model,
            optimizer=optimizer,
            scaler=scaler,
            num_samples=len(data.train),
            has_best=holds_best(config, payload, tell=tell),
            device=device,
        )
        exposure.load(payload["training"].get("exposure"), batch=schedule.position(state.step)[1])
    phases = make_phases(
        config.train.profile,
        run_folder(config),
        device=device,
        steps=range(state.step, schedule.total_steps),
        tell=partial(say, console),
    )
    folder = make_run_folder(config, fresh=payload is None)
    if realised is not None:
        save_realised(realised, config, data.train, folder=folder)
    run = Run(
        config=config,
        folder=folder,
        device=device,
        model=model,
        forward=torch.compile(model) if config.train.compile else model,
        normalize=Normalize(config.data.normalize.mean, config.data.normalize.std).to(device),
        loss=training_loss,
        teacher=teacher,
        measures_loss=section is None or uses_labels(section),
        optimizer=optimizer,
        scaler=scaler,
        ema=make_average(model, config.train.ema, payload),
        train_data=data.train,
        val_data=data.val,
        sampler=sampler,
        loader=_loader(config, data, sampler, device),
        frequencies=data.frequencies,
        exposure=exposure,
        schedule=schedule,
        state=state,
        validation_images=data.validation_images(config),
        custom_model=custom_model,
        telemetry=_telemetry(config, schedule),
        phases=phases,
        tracker=Tracker(folder, start_step=state.step, again=() if state.evaluated_step == state.step else ("val",)),
    )
    if payload is not None:
        run.restore_reports(payload)
    _announce(run, payload, console)
    return run


def _place(model: nn.Module, config: Config, device: torch.device) -> nn.Module:
    model = model.to(device)
    return model.to(memory_format=torch.channels_last) if config.train.channels_last else model


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
    has_compiler = any(shutil.which(name) for name in ("g++", "clang++"))
    if config.train.compile and device.type == "cpu" and not has_compiler:
        raise ConfigError("train.compile on a CPU needs a C++ compiler (g++ or clang++), and none is on the PATH")


def _loss_section(config: Config, loss: nn.Module | None) -> LossConfig | None:
    """Return the section of the loss that trains, None where it is yet to be chosen or not one of ours."""
    if loss is not None:
        return loss.config if isinstance(loss, SegmentationLoss) else None
    return None if config.loss == "auto" else config.loss


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


def _announce(run: Run, payload: Mapping[str, Any] | None, console: Console) -> None:
    """Print what is about to happen in a few lines."""
    config, schedule = run.config, run.schedule
    millions = sum(parameter.numel() for parameter in run.model.parameters()) / 1e6
    model = run.custom_model or f"{config.model.arch}/{config.model.encoder}"
    say(console, f"{config.name}: {model}, {millions:.2f} M parameters, on {run.device}")
    num_images = run.sampler.batch_size * schedule.accumulate
    length = f"{schedule.total_steps} steps of {num_images} images ({schedule.epoch(schedule.total_steps):.1f} epochs)"
    say(console, f"{len(run.train_data)} training and {len(run.val_data)} validation images; {length}")
    if run.teacher is not None:
        say(console, f"teacher: {run.teacher.path}")
    for note in (
        None if config.data.multi_label else activation_note(_loss_section(config, cast(nn.Module, run.loss))),
        accumulation_note(config, run.loss),
        None if run.teacher is None else size_note(run.teacher, config),
    ):
        if note is not None:
            say(console, f"note: {note}")
    if payload is None:
        return
    say(console, f"going on from step {run.state.step} of {schedule.total_steps}")
    rates = rate_change(config, payload, batches_per_epoch=schedule.batches_per_epoch)
    for change in [*changed_settings(config, payload), *([] if rates is None else [rates])]:
        say(console, f"changed since then: {change}", style="yellow")
