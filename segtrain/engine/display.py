"""What training shows in the terminal: a live line where there is one, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from segtrain.console import SECONDS_BETWEEN_PLAIN_LINES, say

COLUMNS_FOR_PARTS = 120


class TrainDisplay:
    """Shows steps, epoch, loss parts, images per second, the share of waiting for data, and the time left."""

    def __init__(self, console: Console, *, total_steps: int, step: int) -> None:
        self.console = console
        self.total_steps = total_steps
        self._progress: Progress | None = None
        self._task = TaskID(0)
        self._start_step = step
        self._start = self._last_line = time.monotonic()
        if console.is_terminal:
            columns = (BarColumn(bar_width=10), TextColumn("{task.description}"), TimeRemainingColumn(compact=True))
            self._progress = Progress(*columns, console=console, transient=True)
            self._task = self._progress.add_task("starting", total=total_steps, completed=step)

    def __enter__(self) -> Self:
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def update(self, step: int, epoch: float, values: Mapping[str, float]) -> None:
        """Show the state after `step`; `values` hold the loss parts, images_per_second and data_wait (0 to 1)."""
        parts = " ".join(f"{name[5:]} {value:.3f}" for name, value in values.items() if name.startswith("loss_"))
        speed = f"{values['images_per_second']:.0f} img/s wait {values['data_wait']:.0%}"
        head, loss = f"step {step}/{self.total_steps} epoch {epoch:.1f}", f"loss {values['loss']:.3f}"
        text = f"{head} {loss} ({parts}) {speed}" if parts else f"{head} {loss} {speed}"
        if self._progress is not None and self.console.width < COLUMNS_FOR_PARTS:
            text = f"{head} {loss} {speed}"
        if self._progress is not None:
            self._progress.update(self._task, completed=step, description=text)
        elif time.monotonic() - self._last_line >= SECONDS_BETWEEN_PLAIN_LINES:
            self._last_line = time.monotonic()
            self.say(f"{text} ETA {self._remaining(step)}")

    def say(self, text: str, *, style: str | None = None) -> None:
        """Print a lasting line above the live one."""
        say(self.console, text, style=style)

    def _remaining(self, step: int) -> str:
        done = step - self._start_step
        seconds = (time.monotonic() - self._start) / max(done, 1) * (self.total_steps - step)
        return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
