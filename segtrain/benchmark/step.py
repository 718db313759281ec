"""Measures what a training step of the engine costs beside a bare loop, and where the time of a step goes."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import cycle, islice
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from segtrain.benchmark.environment import describe_environment
from segtrain.benchmark.threads import torch_threads
from segtrain.benchmark.timing import Timing, paired_ratio, time_interleaved
from segtrain.config import Config
from segtrain.config.optimizer import AdamW, ConstantSchedule
from segtrain.engine.advance import advance, log_step, windows
from segtrain.engine.compiled import compile_model
from segtrain.engine.device import autocast
from segtrain.engine.phases import PhaseClock
from segtrain.engine.run import Run
from segtrain.engine.setup import prepare
from segtrain.errors import ConfigError
from segtrain.optim import build_optimizer

BARE, OURS = "bare", "engine"
LABELS = {BARE: "bare loop: to device, forward, loss, backward, optimizer", OURS: "a step of the engine"}
AT_MOST = 1.03  # times the bare loop
NUM_BATCHES = 4  # read beforehand, and used in turns
PHASE_STEPS = 20

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class StepSettings:
    """What is measured: `steps` steps in a row, `rounds` times; threads of torch (None leaves them)."""

    config: Config
    rounds: int
    steps: int
    threads: int | None = None


def benchmark_step(settings: StepSettings, *, tell: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """Measure, and return everything in JSON types.

    Both subjects get the same batches, read beforehand, and start from the same weights; each round times `steps` steps
    of each in random order. Ours does all that the training loop does between two evaluations: guards, telemetry, the
    count of the classes seen, the meter, and a line of log every `train.log_every` steps.

    Raises:
        ConfigError: a setting that the bare loop has nothing like.
    """
    _refuse(settings.config)
    with torch_threads(settings.threads), tempfile.TemporaryDirectory(prefix="segtrain-benchmark-") as folder:
        run = prepare(
            _endless(settings.config, output=folder),
            model=None,
            loss=None,
            train_data=None,
            val_data=None,
            console=Console(quiet=True),
        )
        environment = describe_environment(str(run.device))
        cuda = torch.cuda.device(run.device) if run.device.type == "cuda" else nullcontext()
        with cuda, closing(run.loader), run.tracker:
            return {"benchmark": "step", "environment": environment, **_measure(run, settings, tell)}


def _measure(run: Run, settings: StepSettings, tell: Callable[[str], None]) -> dict[str, Any]:
    batches = [window[0] for window in islice(windows(run), NUM_BATCHES)]
    ours, bare = _Engine(run, batches), _Bare(run, batches)
    case = _case(run, batches[0], settings)
    tell(f"{case['title']}: {settings.rounds} rounds of {settings.steps} steps")
    calls = {BARE: partial(_repeat, bare.step, settings.steps), OURS: partial(_repeat, ours.step, settings.steps)}
    timings = time_interleaved(
        calls, baseline=BARE, rounds=settings.rounds, max_seconds=float("inf"), device=str(run.device)
    )
    difference = _difference(run.model, bare.model)
    tell(f"{PHASE_STEPS} steps with a clock in each phase")
    return {
        "case": case,
        "rounds": settings.rounds,
        "at_most": AT_MOST,
        "rows": [_row(name, timings, steps=settings.steps) for name in calls],
        "largest_difference": difference,
        "phases": _phases(run),
    }


def _repeat(step: Callable[[], None], times: int) -> None:
    for _ in range(times):
        step()


class _Engine:
    """Ours: the steps of a run, on batches that are at hand."""

    def __init__(self, run: Run, batches: list[Batch]) -> None:
        self.run = run
        self.batches = cycle(batches)

    def step(self) -> None:
        _step(self.run, [next(self.batches)], waited=0.0)


class _Bare:
    """The loop that one would write down: nothing is guarded, counted, clipped, or logged."""

    def __init__(self, run: Run, batches: list[Batch]) -> None:
        self.batches = cycle(batches)
        self.device = run.device
        self.precision = run.config.train.precision
        self.memory_format = torch.channels_last if run.config.train.channels_last else torch.contiguous_format
        self.model = copy.deepcopy(run.model).train()
        self.forward = compile_model(self.model, run.config)
        self.normalize = run.normalize
        self.loss = run.loss
        self.optimizer = build_optimizer(self.model, run.config.optimizer)

    def step(self) -> None:
        batch = next(self.batches)
        images = self.normalize(batch["image"].to(self.device, non_blocking=True), self.memory_format)
        target = batch["target"].to(self.device, non_blocking=True)
        more = {"distances": batch["distances"].to(self.device)} if "distances" in batch else {}
        with autocast(self.device, self.precision):
            logits = self.forward(images)
        loss = self.loss(logits, target, **more)
        torch.autograd.backward(loss)
        self.optimizer.step()
        self.optimizer.zero_grad()


def _step(run: Run, window: list[Batch], *, waited: float) -> None:
    advance(run, window, waited=waited)
    if run.state.step % run.config.train.log_every == 0:
        log_step(run)


def _phases(run: Run) -> dict[str, float]:
    """Return the mean seconds of each phase of a step, batches read by the run's own loader."""
    data = windows(run)
    run.phases = clock = PhaseClock(run.device)
    for _ in range(PHASE_STEPS):
        clock.begin_step()
        began = clock.now()
        window = next(data)
        waited = clock.now() - began
        _step(run, window, waited=waited)
        clock.end_step(waited=waited)
    return clock.seconds()


def _refuse(config: Config) -> None:
    train = config.train
    found = {
        "train.accumulate above 1": train.accumulate > 1,
        "train.precision: fp16": train.precision == "fp16",
        "a distillation term": config.loss != "auto" and any(term.name == "distillation" for term in config.loss.terms),
    }
    told = [name for name, there in found.items() if there]
    if told:
        raise ConfigError(f"`benchmark step` has no bare loop for {' and '.join(told)}: measure without, by overrides")


def _endless(config: Config, *, output: str) -> Config:
    """The same settings with a rate that stays, no end, and a folder of its own."""
    train = config.train.model_copy(update={"epochs": None, "steps": 10**9, "resume": "none", "profile": False})
    schedule = ConstantSchedule(name="constant")
    optimizer = config.optimizer.model_copy(update={"schedule": schedule})
    return config.model_copy(update={"train": train, "optimizer": optimizer, "output": output})


def _case(run: Run, batch: Batch, settings: StepSettings) -> dict[str, Any]:
    config, images = run.config, batch["image"]
    count, _, height, width = images.shape
    layout = "channels_last" if config.train.channels_last else "nchw"
    millions = sum(parameter.numel() for parameter in run.model.parameters()) / 1e6
    name = f"{config.model.arch}/{config.model.encoder}"
    return {
        "title": (
            f"{config.name}: {name}, {millions:.2f} M parameters, {count} images of {height}×{width}, "
            f"{len(config.data.classes)} classes, {config.train.precision} {layout}, {run.device}"
        ),
        "steps": settings.steps,
        "log_every": config.train.log_every,
        "compile": config.train.compile,
        "optimizer": "AdamW" if isinstance(config.optimizer, AdamW) else "SGD",
        "workers": config.data.workers,
    }


def _row(name: str, timings: dict[str, Timing], *, steps: int) -> dict[str, Any]:
    timing, base = timings[name], timings[BARE]
    time = paired_ratio(timing.rounds, timing.seconds, base.rounds, base.seconds)
    cpu_time = paired_ratio(timing.rounds, timing.cpu_seconds, base.rounds, base.cpu_seconds)
    each = replace(
        timing,
        seconds=[seconds / steps for seconds in timing.seconds],
        cpu_seconds=[seconds / steps for seconds in timing.cpu_seconds],
    )
    assert time is not None
    return {
        "name": name,
        "label": LABELS[name],
        "time": asdict(time),
        "cpu_time": None if cpu_time is None else asdict(cpu_time),
        **asdict(each),
    }


def _difference(model: nn.Module, other: nn.Module) -> float:
    """Largest difference between two weights: 0 where both subjects made the very same steps."""
    pairs = zip(model.parameters(), other.parameters(), strict=True)
    return max(float((mine.detach() - theirs.detach()).abs().max()) for mine, theirs in pairs)
