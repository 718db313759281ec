"""The learning rate range test: a rate that rises from step to step, and what the loss makes of it."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from segtrain.config import Config
from segtrain.config.optimizer import ConstantSchedule
from segtrain.distributed import launched_size
from segtrain.engine.advance import windows
from segtrain.engine.run import Run
from segtrain.engine.setup import prepare
from segtrain.engine.step import make_step
from segtrain.errors import ConfigError, SegtrainError

SMOOTHING = 0.8
DIVERGED = 4.0  # times the smallest smoothed loss
MIN_STEPS = 10

Array = NDArray[np.float64]


@dataclass(frozen=True)
class RangeTest:
    """What a sweep found.

    Attributes:
        lrs: the rate of each step made, rising. losses: the loss before each, as it came.
        smoothed: its mean over the steps around, nearer ones more; NaN where it is not finite.
        diverged: whether the sweep was ended by its loss, and not by its last step.
        steepest: the rate at which the smoothed loss falls fastest: the suggestion. tenth: a tenth of the rate at its
            minimum. Both None where the loss never fell.
    """

    lrs: tuple[float, ...]
    losses: tuple[float, ...]
    smoothed: tuple[float, ...]
    diverged: bool
    steepest: float | None
    tenth: float | None


def find_lr(
    config: Config,
    *,
    steps: int = 100,
    lowest: float = 1e-7,
    highest: float = 10.0,
    tell: Callable[[int], None] = lambda step: None,
) -> RangeTest:
    """Train as a run would, with a rate that rises from `lowest` to `highest` (Smith 2017, section 3.3).

    Every step is one of training's own: batches, augmentation, accumulation, precision, clipping. The rate of step k is
    lowest · (highest / lowest)^(k / (steps − 1)); `optimizer.encoder_lr` keeps its ratio to `optimizer.lr`. The test
    ends where the smoothed loss is above 4 times its smallest value, or is not finite. It starts from the weights that
    a run would start from, writes nothing but temporary files, and leaves checkpoints and run folders alone.

    Args:
        tell: called with the number of steps done after each.

    Raises:
        ConfigError: fewer than 10 steps, rates that do not rise, torchrun, or what `train` would refuse.
        DataError, CheckpointError: as `train` would.
    """
    if launched_size() > 1:
        raise ConfigError(
            "find-lr is one process: start it without torchrun, with the batches of all ranks in accumulate"
        )
    if steps < MIN_STEPS:
        raise ConfigError(f"a range test of {steps} steps tells nothing: give {MIN_STEPS} or more, such as 100")
    if not 0 < lowest < highest:
        raise ConfigError(f"rates from {lowest:g} to {highest:g} do not rise: give 0 < lowest < highest")
    with tempfile.TemporaryDirectory(prefix="segtrain-find-lr-") as folder:
        run = prepare(
            _scratch(config, steps=steps, output=folder),
            model=None,
            loss=None,
            train_data=None,
            val_data=None,
            console=Console(quiet=True),
        )
        with run.tracker, closing(run.loader):
            return sweep(_loss_of_step(run), rates(steps, lowest, highest), tell=tell)


def rates(steps: int, lowest: float, highest: float) -> list[float]:
    """Return `steps` rates in equal ratios, both ends among them."""
    values: list[float] = np.geomspace(lowest, highest, steps).tolist()
    return values


def sweep(
    loss_at: Callable[[float], float], lrs: Sequence[float], *, tell: Callable[[int], None] = lambda step: None
) -> RangeTest:
    """Call `loss_at` with each rate in turn until the loss diverges; return what was found.

    loss_at: makes one step with the rate, and returns the loss that the step started from.
    """
    losses: list[float] = []
    best = math.inf
    mean = RunningMean()
    diverged = False
    for step, lr in enumerate(lrs, start=1):
        losses.append(loss_at(lr))
        value = mean.add(losses[-1])
        tell(step)
        best = min(best, value)
        # of a negative loss a multiple says nothing: that is left to the user's eye
        diverged = not math.isfinite(losses[-1]) or (best > 0 and value > DIVERGED * best)
        if diverged:
            break
    smoothed = smooth(np.array(losses))
    made = np.array(lrs[: len(losses)])
    steepest, tenth = suggestions(made, smoothed)
    return RangeTest(tuple(made.tolist()), tuple(losses), tuple(smoothed.tolist()), diverged, steepest, tenth)


class RunningMean:
    """An exponential mean, corrected for its start at 0 as Adam corrects its means (Kingma & Ba 2015, section 3)."""

    def __init__(self) -> None:
        self._mean = 0.0
        self._steps = 0

    def add(self, value: float) -> float:
        """Take in a value; return the mean."""
        self._steps += 1
        self._mean = SMOOTHING * self._mean + (1 - SMOOTHING) * value
        return self._mean / (1 - SMOOTHING**self._steps)


def smooth(losses: Array) -> Array:
    """Return the mean of the running means from the left and from the right, float64 `[K]`; NaN where not finite.

    The one from the left alone lags behind, and with it every rate that is read from the curve. What diverges at the
    end would be in all means from the right: losses count for no more than the largest one up to the smallest.
    """
    finite = np.isfinite(losses)
    values = losses[finite].tolist()
    if values:
        values = np.minimum(values, max(values[: values.index(min(values)) + 1])).tolist()
    left, right = RunningMean(), RunningMean()
    forward = [left.add(value) for value in values]
    backward = [right.add(value) for value in reversed(values)][::-1]
    result = np.full(len(losses), np.nan)
    result[finite] = (np.array(forward) + np.array(backward)) / 2
    return result


def suggestions(lrs: Array, smoothed: Array) -> tuple[float | None, float | None]:
    """Return the rate of the steepest fall before the minimum, and a tenth of the rate at the minimum.

    The first tenth of the steps is left out: there the mean is of a few batches. None, None where the loss is smallest
    in these.
    """
    finite = np.isfinite(smoothed)
    lrs, smoothed = lrs[finite], smoothed[finite]
    start = max(len(smoothed) // 10, 1)
    if len(smoothed) < start + 3:
        return None, None
    smallest = int(smoothed.argmin())
    if smallest <= start:
        return None, None
    slopes = np.gradient(smoothed, np.log(lrs))[start : smallest + 1]
    return float(lrs[start + int(slopes.argmin())]), float(lrs[smallest]) / 10


def _scratch(config: Config, *, steps: int, output: str) -> Config:
    """The same settings for a few steps in a folder of their own, the rate left to the sweep."""
    changes: dict[str, Any] = {"epochs": None, "steps": steps, "resume": "none", "profile": False, "telemetry": False}
    schedule = ConstantSchedule(name="constant")
    return config.model_copy(
        update={
            "output": output,
            "train": config.train.model_copy(update=changes),
            "optimizer": config.optimizer.model_copy(update={"schedule": schedule}),
        }
    )


def _loss_of_step(run: Run) -> Callable[[float], float]:
    data = windows(run)
    base = run.config.optimizer.lr
    ratios = [group["initial_lr"] / base for group in run.optimizer.param_groups]

    def loss_at(lr: float) -> float:
        for group, ratio in zip(run.optimizer.param_groups, ratios, strict=True):
            group["initial_lr"] = lr * ratio
        return float(make_step(run, next(data))["loss"])

    return loss_at


def explain(result: RangeTest, config: Config) -> list[str]:
    """Return what was found and what to do with it, in lines.

    Raises:
        SegtrainError: the loss never fell, so that there is nothing to suggest.
    """
    steps, highest = len(result.lrs), result.lrs[-1]
    if result.tenth is None or result.steepest is None:
        raise SegtrainError(
            f"the loss never fell in {steps} steps from {result.lrs[0]:.1e} to {highest:.1e}: start lower (--lowest), "
            "take more steps (--steps), or look at data and loss"
        )
    end = "diverged at a rate of" if result.diverged else "had not diverged by a rate of"
    return [
        f"{steps} steps; the loss {end} {highest:.1e}",
        f"suggested: optimizer.lr={result.steepest:.1e}, where the loss fell fastest (the file has "
        f"{config.optimizer.lr:g})",
        f"note: a tenth of the rate with the smallest loss is {result.tenth:.1e}: near the other one where the loss "
        "rises again soon, too high where it stays low for long, as it does with AdamW",
    ]
