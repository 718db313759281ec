"""A polite stop: once training steps, SIGINT and SIGTERM set a flag, and the loop ends at a safe place."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

HANDLED = (signal.SIGINT, signal.SIGTERM)
IMPATIENT = 3


class Interrupted(Exception):
    """Raised by `StopRequest.check` in work that can be left at any time, such as an evaluation."""


class StopRequest:
    """Catches SIGINT and SIGTERM while it is entered.

    Before `hold` there is nothing to save, and a signal ends the program at once: KeyboardInterrupt for SIGINT,
    SystemExit with 143 for SIGTERM. After it a signal sets a flag; the third one interrupts all the same.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._times = 0
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
            signal.signal(number, handler)

    def hold(self) -> None:
        """From here on, signals only set the flag."""
        self._held = True

    def _handle(self, number: int, _: FrameType | None) -> None:
        self.signal = number
        self._times += 1
        if self._held and self._times < IMPATIENT:
            return
        if number == signal.SIGTERM:
            raise SystemExit(128 + number)
        raise KeyboardInterrupt

    @property
    def requested(self) -> bool:
        """Whether a signal has come."""
        return self.signal is not None

    def check(self) -> None:
        """Raise `Interrupted` once a signal has come."""
        if self.requested:
            raise Interrupted
