"""The profile of a few steps: a trace by torch's profiler, and a summary of where the time went by phase."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from segtrain.config.schema import ProfileConfig
from segtrain.distributed import rank
from segtrain.engine.phases import PHASES, Phase, PhaseClock, Phases
from segtrain.errors import ConfigError
from segtrain.files import write_whole

FOLDER = "profile"
TRACE, SUMMARY, TEXT = "trace.json.gz", "summary.json", "summary.txt"
LABELS = {
    "data_wait": "waiting for data",
    "to_device": "to device, normalise",
    "forward": "forward",
    "loss": "loss",
    "backward": "backward",
    "optimizer": "guard, optimizer",
    "rest": "rest",
}
NUM_OPERATORS = 15


class StepProfile(Phases):
    """Lets `wait` steps pass, lets the profiler run through `warmup` more, takes down `active`, writes, and is silent.

    Args:
        section: how many steps of each kind.
        folder: of the run; the files go to `profile` in it.
        device: on which the run computes.
        tell: called once with the summary.
    """

    def __init__(
        self, section: ProfileConfig, folder: Path, *, device: torch.device, tell: Callable[[str], None]
    ) -> None:
        self._section = section
        self._folder = folder / FOLDER
        self._device = device
        self._tell = tell
        self._steps = 0
        self._phases = Phases()
        self._profiler: profile | None = None

    def of(self, phase: Phase) -> AbstractContextManager[None]:
        """Return the context of a phase: a clock in the active steps, nothing in all others."""
        return self._phases.of(phase)

    def begin_step(self) -> None:
        """Start profiler and clock where it is their step."""
        section = self._section
        if self._steps == section.wait:
            self._profiler = _profiler(section, self._device, self._write)
            self._profiler.start()
        if self._steps == section.wait + section.warmup:
            self._phases = PhaseClock(self._device)
        self._phases.begin_step()

    def end_step(self, *, waited: float) -> None:
        """Take in the step; after the last active one the files are written."""
        self._steps += 1
        self._phases.end_step(waited=waited)
        if self._profiler is None:
            return
        self._profiler.step()
        if self._steps == self._section.wait + self._section.warmup + self._section.active:
            self.close()

    def close(self) -> None:
        """Stop; a profile that is not whole is not written."""
        if self._profiler is not None:
            self._profiler.on_trace_ready = None
            self._profiler.stop()
        self._profiler, self._phases = None, Phases()

    def _write(self, profiler: profile) -> None:
        assert isinstance(self._phases, PhaseClock)
        seconds = self._phases.seconds()
        summary = {"device": str(self._device), "steps": self._phases.num_steps, "seconds": seconds}
        self._folder.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(self._folder / TRACE))
        text = summary_text(seconds, steps=self._phases.num_steps)
        operators = _operator_table(profiler, self._device)
        write_whole(self._folder / SUMMARY, (json.dumps(summary, indent=1) + "\n").encode())
        write_whole(self._folder / TEXT, f"{text}\n\n{operators}\n".encode())
        self._tell(f"{text}\ntrace and operators: {self._folder}")


def make_phases(
    section: ProfileConfig | bool,
    folder: Path,
    *,
    device: torch.device,
    steps: range,
    tell: Callable[[str], None],
) -> Phases:
    """Return the profile that `train.profile` asks for, or what costs nothing; `steps` are those still to be made.

    Raises:
        ConfigError: the whole training has too few steps for it.
    """
    if section is False or rank() != 0:
        return Phases()
    section = ProfileConfig() if section is True else section
    needed = section.wait + section.warmup + section.active
    if steps.stop < needed:
        raise ConfigError(
            f"train.profile needs {needed} steps (wait {section.wait}, warmup {section.warmup}, active "
            f"{section.active}), and the training has {steps.stop}: lower them, train longer, or set "
            "train.profile: false"
        )
    if len(steps) < needed:
        tell(f"note: train.profile needs {needed} steps, and {len(steps)} are left: nothing is profiled")
        return Phases()
    return StepProfile(section, folder, device=device, tell=tell)


def summary_text(seconds: dict[str, float], *, steps: int) -> str:
    """Return a line for each phase: its milliseconds in a step, and its share; `seconds` are of one step."""
    whole = sum(seconds.values())
    head = f"profile: {1000 * whole:.1f} ms a step, mean of {steps}; the clocks' and the profiler's own time is in it"
    width = max(map(len, LABELS.values()))
    rows = [
        f"  {LABELS[name]:<{width}}  {1000 * seconds[name]:>9.2f} ms  {100 * seconds[name] / max(whole, 1e-12):>5.1f} %"
        for name in PHASES
    ]
    return "\n".join([head, *rows])


def _profiler(section: ProfileConfig, device: torch.device, ready: Callable[[Any], None]) -> profile:
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    steps = schedule(wait=0, warmup=section.warmup, active=section.active, repeat=1)
    # without acc_events torch warns that it forgets the events of earlier cycles, of which there is one
    return profile(activities=activities, schedule=steps, on_trace_ready=ready, acc_events=True)


def _operator_table(profiler: profile, device: torch.device) -> str:
    order = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"
    table: str = profiler.key_averages().table(sort_by=order, row_limit=NUM_OPERATORS, max_name_column_width=60)
    return table
