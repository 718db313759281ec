"""Everything a run needs, made and checked before step 1: data, frequencies, loss, model, optimizer, position."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from textwrap import indent
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from segtrain.config import Config, config_to_dict, dump_config
from segtrain.console import say
from segtrain.data import ClassFrequencies
from segtrain.data.dataset import EvalDataset, TrainDataset
from segtrain.data.frequencies import check_split
from segtrain.data.loader import Loader, build_train_loader
from segtrain.data.sampling import TrainBatchSampler
from segtrain.engine.checkpoint import FOLDER, load_weights
from segtrain.engine.custom_loss import TrainingLoss, as_training_loss
from segtrain.engine.device import autocast, select_device
from segtrain.engine.folder import open_run_folder, run_folder, save_config
from segtrain.engine.monitor import check_metric_name
from segtrain.engine.state import Schedule, TrainState, average_model, set_rng_state
from segtrain.engine.validation_images import ValidationImages, choose_samples
from segtrain.errors import ConfigError
from segtrain.losses import build_loss, resolve_auto
from segtrain.metrics import tail_classes
from segtrain.models import Normalize, build_model
from segtrain.optim import build_optimizer, check_schedule, restore_optimizer
from segtrain.tracking import Tracker


@dataclass
class Run:
    """The parts of a run; `state` says how far it has come."""

    config: Config
    folder: Path
    device: torch.device
    model: nn.Module
    forward: Callable[[Tensor], Tensor]
    normalize: Normalize
    loss: TrainingLoss
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    ema: AveragedModel | None
    train_data: TrainDataset
    val_data: EvalDataset
    sampler: TrainBatchSampler
    loader: Loader[dict[str, Tensor]]
    frequencies: ClassFrequencies
    schedule: Schedule
    state: TrainState
    tracker: Tracker
    validation_images: ValidationImages

    @property
    def last_path(self) -> Path:
        """The checkpoint to go on from."""
        return self.folder / FOLDER / "last.pt"

    @property
    def best_path(self) -> Path:
        """The checkpoint to use."""
        return self.folder / FOLDER / "best.pt"

    def evaluated_model(self) -> nn.Module:
        """Return the model whose results count: the averaged one where there is one."""
        return self.model if self.ema is None else self.ema.module

    def hparams(self) -> dict[str, Any]:
        """Return the configuration as flat `key.path: value` pairs."""
        return _flatten(config_to_dict(self.config))


def prepare(
    config: Config,
    *,
    model: nn.Module | None,
    loss: nn.Module | None,
    train_data: TrainDataset | None,
    val_data: EvalDataset | None,
    console: Console,
) -> Run:
    """Build a run and bring it to the position of its checkpoint; see `segtrain.engine.train` for the arguments."""
    device = select_device(config.device)
    autocast(device, config.train.precision)
    check_metric_name(config)
    _check_compiler(config, device)
    data = _Data.check(config, train_data, val_data, console)
    frequencies = data.frequencies
    if loss is None:
        config = _resolve_loss(config, frequencies, console)
    payload = open_run_folder(config)
    torch.manual_seed(config.seed)
    num_classes = len(config.data.classes)
    if model is None:
        model = build_model(config.model, num_classes, frequencies=frequencies, load_weights=payload is None)
        for line in getattr(model, "init_report", ()):
            say(console, f"weights: {line}")
    model = model.to(device)
    if config.train.channels_last:
        model = model.to(memory_format=torch.channels_last)
    loss = as_training_loss(loss or _build_loss(config, frequencies, console)).to(device)
    sampler = TrainBatchSampler(len(data.train), config.train.batch_size, seed=config.seed)
    schedule = Schedule.from_config(config, sampler.batches_per_epoch)
    check_schedule(config.optimizer.schedule, schedule.total_steps)
    optimizer = build_optimizer(model, config.optimizer)
    ema = None if config.train.ema is None else average_model(model, config.train.ema)
    state = TrainState()
    run = Run(
        config=config,
        folder=run_folder(config),
        device=device,
        model=model,
        forward=torch.compile(model) if config.train.compile else model,
        normalize=Normalize(config.data.normalize.mean, config.data.normalize.std).to(device),
        loss=cast(TrainingLoss, loss),
        optimizer=optimizer,
        scaler=torch.amp.GradScaler(device.type, enabled=config.train.precision == "fp16"),
        ema=ema,
        train_data=data.train,
        val_data=data.val,
        sampler=sampler,
        loader=build_train_loader(data.train, sampler, workers=config.data.workers, pin_memory=device.type == "cuda"),
        frequencies=frequencies,
        schedule=schedule,
        state=state,
        tracker=Tracker(run_folder(config), start_step=0 if payload is None else payload["step"]),
        validation_images=data.validation_images(config),
    )
    if payload is not None:
        _restore(run, payload)
        say(console, f"going on from step {run.state.step} of {schedule.total_steps}")
    save_config(config)
    _announce(run, console)
    return run


def _check_compiler(config: Config, device: torch.device) -> None:
    if (
        config.train.compile
        and device.type == "cpu"
        and shutil.which("g++") is None
        and shutil.which("clang++") is None
    ):
        raise ConfigError("train.compile on a CPU needs a C++ compiler (g++ or clang++), and none is on the PATH")


@dataclass(frozen=True)
class _Data:
    train: TrainDataset
    val: EvalDataset
    frequencies: ClassFrequencies
    val_counts: NDArray[np.int64]

    @classmethod
    def check(cls, config: Config, train: TrainDataset | None, val: EvalDataset | None, console: Console) -> _Data:
        """Check both splits whole, and count the classes in them; data that was given takes its place."""
        scans = {split: check_split(config.data, split) for split in ("train", "val")}
        for split, scan in scans.items():
            if scan.problems:
                text = f"warning: {len(scan.problems)} bad samples of {split} are left out"
                say(console, text, style="yellow")
        return cls(
            train=train or TrainDataset(scans["train"].samples, config.data),
            val=val or EvalDataset(scans["val"].samples, config.data),
            frequencies=scans["train"].frequencies,
            val_counts=scans["val"].counts,
        )

    def validation_images(self, config: Config) -> ValidationImages:
        """Choose the samples that TensorBoard shows."""
        rare = tail_classes(self.frequencies.pixels, config.evaluate.tail_fraction)
        names = [sample.name for sample in self.val.samples]
        return ValidationImages(
            config, names, choose_samples(self.val_counts, rare, config.train.validation_samples), rare
        )


def _resolve_loss(config: Config, frequencies: ClassFrequencies, console: Console) -> Config:
    """Replace `loss: auto` by the section that it stands for, and print that."""
    if config.loss != "auto":
        return config
    section = resolve_auto(frequencies)
    say(console, "loss: auto stands for\n\nloss:")
    say(console, indent(dump_config(section), "  "))
    return config.model_copy(update={"loss": section})


def _build_loss(config: Config, frequencies: ClassFrequencies, console: Console) -> nn.Module:
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
        )
    for warning in caught:
        say(console, f"warning: {warning.message}", style="yellow")
    say(console, loss.describe())
    if config.train.accumulate > 1 and loss.inexact_under_accumulation:
        say(console, f"note: {loss.inexact_under_accumulation}")
    return loss


def _restore(run: Run, payload: dict[str, Any]) -> None:
    """Bring every part of the run to where the checkpoint was written."""
    training = payload["training"]
    load_weights(run.model, payload["model"], run.last_path)
    restore_optimizer(run.optimizer, training["optimizer"])
    run.scaler.load_state_dict(training["scaler"])
    run.state = TrainState.from_dict(training["state"])
    if run.ema is not None and payload["ema"] is not None:
        load_weights(run.ema.module, payload["ema"], run.last_path)
        run.ema.n_averaged.fill_(training["num_averaged"])
    set_rng_state(training["rng"], run.device)


def _announce(run: Run, console: Console) -> None:
    """Print what is about to happen in a few lines."""
    config, schedule = run.config, run.schedule
    millions = sum(parameter.numel() for parameter in run.model.parameters()) / 1e6
    model = f"{config.model.arch}/{config.model.encoder}, {millions:.2f} M parameters"
    say(console, f"{config.name}: {model}, on {run.device}")
    num_images = config.train.batch_size * schedule.accumulate
    length = f"{schedule.total_steps} steps of {num_images} images ({schedule.epoch(schedule.total_steps):.1f} epochs)"
    say(console, f"{len(run.train_data)} training and {len(run.val_data)} validation images; {length}")


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        flat |= _flatten(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return flat
