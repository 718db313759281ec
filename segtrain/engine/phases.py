"""Where the time of a step goes: seconds by phase, added up while a profile or a benchmark asks for them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal

import torch

Phase = Literal["to_device", "forward", "loss", "backward", "optimizer"]

# In the order of a step. data_wait is waiting for the loader; rest is all that is under no other name.
PHASES = ("data_wait", "to_device", "forward", "loss", "backward", "optimizer", "rest")
_NOTHING: AbstractContextManager[None] = nullcontext()


class Phases:
    """Takes no time down, and costs none: what a run has until something is to be measured."""

    def of(self, phase: Phase) -> AbstractContextManager[None]:
        """Return the context in which a phase of the step is to run."""
        return _NOTHING

    def begin_step(self) -> None:
        """Say that a step begins, with waiting for its data."""

    def end_step(self, *, waited: float) -> None:
        """Say that the step is over, for the data of which the loop waited so many seconds."""

    def close(self) -> None:
        """Say that no step follows."""


class PhaseClock(Phases):
    """Adds up the seconds of each phase, and waits for the device at both ends of each: for measured steps alone.

    Phases do not hold one another, and what runs between two steps (evaluations, saves) counts nowhere.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.num_steps = 0
        self._seconds: dict[str, float] = dict.fromkeys(PHASES, 0.0)
        self._total = 0.0
        self._began = self.now()

    def of(self, phase: Phase) -> AbstractContextManager[None]:
        """Return the context that takes down the seconds of a phase."""
        return self._timed(phase)

    def begin_step(self) -> None:
        """Start the clock of a step."""
        self._began = self.now()

    def end_step(self, *, waited: float) -> None:
        """Take in the step that began last, in which the loop waited so many seconds for data."""
        self._seconds["data_wait"] += waited
        self._total += self.now() - self._began
        self.num_steps += 1

    def seconds(self) -> dict[str, float]:
        """Return the mean seconds of each phase in a step, in the order of PHASES; all 0 before the first step."""
        steps = max(self.num_steps, 1)
        named = sum(self._seconds.values())
        return {name: value / steps for name, value in self._seconds.items()} | {
            "rest": max(self._total - named, 0.0) / steps
        }

    @contextmanager
    def _timed(self, phase: Phase) -> Iterator[None]:
        began = self.now()
        try:
            with torch.profiler.record_function(f"step/{phase}"):
                yield
        finally:
            self._seconds[phase] += self.now() - began

    def now(self) -> float:
        """Return seconds of a clock, once the device has done all it was asked for."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()
