"""A run: its parts, and the way of all of them into a checkpoint and back."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from segtrain.config import Config
from segtrain.data import ClassFrequencies
from segtrain.data.dataset import EvalDataset, TrainDataset
from segtrain.data.loader import Loader
from segtrain.data.sampling import TrainBatchSampler
from segtrain.distributed import gather_objects, rank, world_size
from segtrain.engine.average import WeightAverage
from segtrain.engine.buffers import Buffers
from segtrain.engine.checkpoint import FOLDER, describe_run, load_weights
from segtrain.engine.custom_loss import TrainingLoss
from segtrain.engine.exposure import Exposure
from segtrain.engine.guard import Guard
from segtrain.engine.meter import Meter
from segtrain.engine.phases import Phases
from segtrain.engine.shards import is_sharded
from segtrain.engine.state import Schedule, TrainState, rng_state, set_rng_state
from segtrain.engine.teacher import Teacher
from segtrain.engine.telemetry import Telemetry
from segtrain.engine.thresholds import TunedThresholds
from segtrain.engine.validation_images import ValidationImages
from segtrain.errors import CheckpointError
from segtrain.models import Normalize
from segtrain.optim import restore_optimizer
from segtrain.tracking import Tracker

TRAINING = ("state", "optimizer", "scaler", "num_averaged", "num_samples", "rng")


@dataclass
class Run:
    """The parts of a run; `state` says how far it has come.

    `teacher` is what a distillation term learns from: no part of the checkpoints, which hold its path alone.
    `measures_loss` is false where evaluations have no loss to measure, as distillation is all there is.
    `custom_model` is the name of the class of a model that was given in code, None for one from `config.model`.
    `thresholds` are those that the last evaluation chose on val, None without evaluate.tune_thresholds.
    `forward` is the model as a step calls it: `replicas` where there are several ranks, compiled where that is wanted.
    `buffers` are those of the model. `guard` counts the steps that were left out.
    `phases` is told what each step is at: nothing is measured until something else is put there.
    `meter` adds up what the next log line tells. `saved` is the state in last.pt: step and evaluated step.
    """

    config: Config
    folder: Path
    device: torch.device
    model: nn.Module
    forward: Callable[[Tensor], Tensor | Sequence[Tensor]]
    normalize: Normalize
    loss: TrainingLoss
    teacher: Teacher | None
    measures_loss: bool
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    ema: WeightAverage | None
    replicas: DistributedDataParallel | None
    buffers: Buffers
    train_data: TrainDataset
    val_data: EvalDataset
    sampler: TrainBatchSampler
    loader: Loader[dict[str, Tensor]]
    frequencies: ClassFrequencies
    exposure: Exposure
    schedule: Schedule
    state: TrainState
    telemetry: Telemetry | None
    tracker: Tracker
    custom_model: str | None
    validation_images: ValidationImages
    thresholds: TunedThresholds | None = None
    phases: Phases = field(default_factory=Phases)
    guard: Guard = field(default_factory=Guard)
    meter: Meter = field(default_factory=Meter)
    saved: tuple[int, int] | None = None

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

    def validation_loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss as evaluations measure it: against the labels alone, without any distillation term.

        Such a term is 0 where the logits are taken for the teacher's, too; so no teacher has to see the split.
        """
        if self.teacher is None:
            return self.loss(logits, target)
        return self.loss(logits, target, teacher_logits=logits)

    def settle(self) -> None:
        """Bring the count of steps that were left out up to date; waits for the device, and raises as `Guard.fetch`."""
        self.state.skipped_steps += self.guard.fetch(self.train_data.samples, folder=self.folder / FOLDER)

    def best_payload(self, scores: Mapping[str, float], *, support: Mapping[str, int]) -> dict[str, Any]:
        """Return what `best.pt` holds: the weights whose results count, these results, and of each class its pixels."""
        results = {"scores": dict(scores), "support": dict(support)}
        return self._description() | {"model": self.evaluated_model().state_dict()} | results

    def resume_payload(self) -> dict[str, Any]:
        """Return what `last.pt` holds: all that `restore` needs. Every rank must call it, as each gives its part."""
        own = {
            "telemetry": None if self.telemetry is None else self.telemetry.to_dict(),
            "rng": rng_state(self.device),
        }
        training: dict[str, Any] = {
            "state": self.state.to_dict(),
            "optimizer": None if is_sharded(self.model) else self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "num_averaged": 0 if self.ema is None else int(self.ema.num_averaged),
            "num_samples": len(self.train_data),
            "exposure": self.exposure.to_dict(),
            "world_size": world_size(),
            "meter": self.meter.to_dict(),
            "non_finite_in_a_row": self.guard.in_a_row,
            **own,
        }
        if world_size() > 1:
            training["ranks"] = gather_objects(own)
        if is_sharded(self.model):  # their parts are in files of their own
            return self._description() | {"model": {}, "ema": None, "training": training}
        averaged = None if self.ema is None else self.ema.module.state_dict()
        return self._description() | {"model": self.model.state_dict(), "ema": averaged, "training": training}

    def restore_reports(self, payload: Mapping[str, Any]) -> None:
        """Go on between two log lines where the checkpoint was written; an older checkpoint has nothing of that."""
        training = payload["training"]
        if training.get("meter") is not None:
            self.meter.load(training["meter"], self.device)
        self.guard.in_a_row = training.get("non_finite_in_a_row", 0)
        telemetry = part_of_rank(training).get("telemetry")
        if self.telemetry is not None and telemetry is not None:
            self.telemetry.load(telemetry, self.device)
        if payload.get("thresholds") is not None:
            self.thresholds = TunedThresholds.from_dict(payload["thresholds"])

    def _description(self) -> dict[str, Any]:
        epoch = self.schedule.epoch(self.state.step)
        position: dict[str, Any] = {"step": self.state.step, "epoch": epoch, "custom_model": self.custom_model}
        # those of an earlier step were chosen for other weights
        tuned = self.thresholds if self.thresholds is not None and self.thresholds.step == self.state.step else None
        position["thresholds"] = None if tuned is None else tuned.to_dict()
        return describe_run(self.config, self.frequencies) | position


def restore(
    payload: Mapping[str, Any],
    *,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    num_samples: int,
    has_best: bool,
    device: torch.device,
) -> TrainState:
    """Bring model, optimizer, loss scale and random numbers to where the checkpoint was written; return the counters.

    Of a sharded model and its optimizer the tensors are read elsewhere.

    Without a best.pt in the folder (`has_best`) the search for the best result begins anew.

    Raises:
        CheckpointError: the checkpoint belongs to another model, optimizer or number of training samples.
    """
    path = Path("last.pt")
    training = payload["training"]
    missing = [key for key in TRAINING if key not in training]
    if missing:
        raise CheckpointError(f"the checkpoint is not whole: training.{', training.'.join(missing)} is missing in it")
    if training["num_samples"] != num_samples:
        raise CheckpointError(
            f"cannot go on: the training data has {num_samples} samples, and had {training['num_samples']} when the "
            "run was stopped. Restore the data, or start a new run (name=...) from its weights with model.init_from"
        )
    if not is_sharded(model):
        load_weights(model, payload["model"], path=path)
        restore_optimizer(optimizer, training["optimizer"])
    if scaler.is_enabled() and training["scaler"]:
        scaler.load_state_dict(training["scaler"])
    part = part_of_rank(training)
    if "rng" in part:
        set_rng_state(part["rng"], device)
    state = TrainState.from_dict(training["state"])
    if not has_best:
        state.best_step, state.best_value = -1, math.nan
    return state


def part_of_rank(training: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what a checkpoint holds of this rank alone; empty where there were more or fewer ranks then."""
    parts = training.get("ranks", [training])
    return parts[rank()] if len(parts) == world_size() else {}


def make_average(model: nn.Module, decay: float | None, payload: Mapping[str, Any] | None) -> WeightAverage | None:
    """Return the averaged model where there is a decay: as in the checkpoint, or else starting from `model`."""
    if decay is None:
        return None
    averaged = WeightAverage(model, decay)
    if payload is not None and payload["ema"] is not None:
        load_weights(averaged.module, payload["ema"], path=Path("last.pt"))
        averaged.num_averaged.fill_(payload["training"]["num_averaged"])
    return averaged
