"""What changes while a run goes on: position, best result, random numbers."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
import torch

from segtrain.config import Config


@dataclass
class TrainState:
    """Counters of a run; everything else about its position follows from them.

    Attributes:
        step: optimizer steps done. The batches read are `step × accumulate`, which gives epoch and position.
        evaluated_step: step of the last finished evaluation.
        best_value, best_step: best value of `train.best_metric` so far, NaN before the first.
        gain_value, evaluations_without_gain: for early stopping: the value of the last gain that was large enough, and
            the evaluations since then.
        evaluations: how many there have been.
        skipped_steps: steps left out because the loss or the gradient was not finite.
        best_iou: highest IoU seen so far for each class name.
        warned: classes that were already named in a warning.
    """

    step: int = 0
    evaluated_step: int = -1
    best_value: float = math.nan
    best_step: int = -1
    gain_value: float = math.nan
    evaluations_without_gain: int = 0
    evaluations: int = 0
    skipped_steps: int = 0
    best_iou: dict[str, float] = field(default_factory=dict)
    warned: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for a checkpoint."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainState:
        """Rebuild the state from `to_dict`; a counter that an earlier version did not keep starts at its default."""
        return cls(**{entry.name: values[entry.name] for entry in fields(cls) if entry.name in values})


@dataclass(frozen=True)
class Schedule:
    """How epochs, batches and optimizer steps of a run map onto each other."""

    batches_per_epoch: int
    accumulate: int
    total_steps: int
    evaluate_every: int
    evaluate_unit: str

    @classmethod
    def from_config(cls, config: Config, batches_per_epoch: int) -> Schedule:
        """Derive the schedule; a run has at least one step."""
        train = config.train
        if train.steps is not None:
            total = train.steps
        else:
            assert train.epochs is not None
            total = max(1, train.epochs * batches_per_epoch // train.accumulate)
        return cls(batches_per_epoch, train.accumulate, total, train.evaluate_every, train.evaluate_unit)

    def position(self, step: int) -> tuple[int, int]:
        """Return (epoch, batch within it) at which the step after `step` starts reading."""
        return divmod(step * self.accumulate, self.batches_per_epoch)

    def epoch(self, step: int) -> float:
        """Return the epochs read after `step` steps."""
        return step * self.accumulate / self.batches_per_epoch

    def evaluation_due(self, step: int) -> bool:
        """Return whether an evaluation follows step number `step`."""
        if step == 0:
            return False
        if step >= self.total_steps:
            return True
        if self.evaluate_unit == "steps":
            return step % self.evaluate_every == 0
        whole = self.position(step)[0] // self.evaluate_every
        return whole > self.position(step - 1)[0] // self.evaluate_every


def rng_state(device: torch.device) -> dict[str, Any]:
    """Return the random states of torch on the CPU and on `device`, of Python and of numpy, as plain values.

    Ours needs torch's alone; a model, a loss or a data set that was given in code may draw from any of them.
    """
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)  # noqa: NPY002 - it is their generator
    state: dict[str, Any] = {
        "cpu": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": (str(name), torch.from_numpy(np.asarray(keys, np.int64)), int(position), int(has_gauss), float(gauss)),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_rng_state(state: Mapping[str, Any], device: torch.device) -> None:
    """Restore what `rng_state` returned; a CUDA state is skipped on a machine without CUDA."""
    torch.set_rng_state(state["cpu"])
    if "python" in state:  # an older checkpoint holds torch's alone
        random.setstate(state["python"])
        name, keys, *rest = state["numpy"]
        np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
