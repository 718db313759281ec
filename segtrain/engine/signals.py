"""A polite stop: SIGINT and SIGTERM set a flag, and the loop ends at a safe place."""

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
    """Catches SIGINT and SIGTERM while it is entered; the third one in a row interrupts at once."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._times = 0
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

    def _handle(self, number: int, _: FrameType | None) -> None:
        self.signal = number
        self._times += 1
        if self._times >= IMPATIENT:
            raise KeyboardInterrupt

    @property
    def requested(self) -> bool:
        """Whether a signal has come."""
        return self.signal is not None

    def check(self) -> None:
        """Raise `Interrupted` once a signal has come."""
        if self.requested:
            raise Interrupted
