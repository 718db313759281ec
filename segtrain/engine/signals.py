"""A polite stop: once training steps, SIGINT, SIGTERM and SIGUSR1 set a flag, and the loop ends at a safe place."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

# SIGUSR1 is what SLURM sends on request some time before a job's end; Windows has none
HANDLED = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))
IMPATIENT = 3


class Interrupted(Exception):
    """Raised by `StopRequest.check` in work that can be left at any time, such as an evaluation."""


class StopRequest:
    """Catches SIGINT, SIGTERM and SIGUSR1 while it is entered.

    Before `hold` there is nothing to save, and a signal ends the program at once: KeyboardInterrupt for SIGINT,
    SystemExit with 143 for SIGTERM and 138 for SIGUSR1. After it a signal sets a flag, and no more: the first one that
    came is the one that counts. Only the third Ctrl-C interrupts all the same; programs may send others repeatedly.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._interrupts = 0
        self._held = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._handle) for number in HANDLED}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            if handler is not None:  # one that was not installed from Python cannot be put back from it
                signal.signal(number, handler)

    def hold(self) -> None:
        """From here on, signals only set the flag."""
        self._held = True

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self.signal is None:
            self.signal = number
        self._interrupts += number == signal.SIGINT
        if self._held and (number != signal.SIGINT or self._interrupts < IMPATIENT):
            return
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + number)

    @property
    def requested(self) -> bool:
        """Whether a signal has come."""
        return self.signal is not None

    def check(self) -> None:
        """Raise `Interrupted` once a signal has come."""
        if self.requested:
            raise Interrupted
