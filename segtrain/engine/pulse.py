"""What the ranks agree on once a step: whether a signal stops the run, and whether it is time to save."""

from __future__ import annotations

import time
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Self

import torch
from torch import distributed as dist

from segtrain.distributed import rank, world_size
from segtrain.engine.signals import Interrupted, StopRequest

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

SECONDS_BETWEEN_LOOKS = 1.0
STOP_KEY = "segtrain/stop"


class Pulse:
    """Asks at the beginning of a step and hears at its end, so that all ranks stop and save after the same one.

    The question is a sum of two numbers on the CPUs, by gloo even where gradients go by NCCL, and is on its way while
    the step is made: nobody waits for a device, and hardly for each other. A signal that comes in a step is acted on
    after the next one at the latest; in one process, after the very step.
    """

    def __init__(self, stop: StopRequest, *, save_every_seconds: float, timeout_seconds: float) -> None:
        self._stop = stop
        self._save_every = save_every_seconds
        self._group = _own_group(timeout_seconds) if world_size() > 1 else None
        self._flags = torch.zeros(2, dtype=torch.int64)
        self._work: dist.Work | None = None
        self._looked = 0.0
        self._signal = 0
        self._save = False
        self.saved()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._group is not None and error is None:  # else others may be waiting in it, or gone
            dist.destroy_process_group(self._group)

    def saved(self) -> None:
        """Count the time to the next save from now on."""
        self._saved = time.monotonic()

    def begin(self) -> None:
        """Ask all ranks, as a step begins."""
        if self._group is None:
            return
        self._flags = torch.tensor([self._stop.signal or 0, int(rank() == 0 and self._is_late())])
        self._work = dist.all_reduce(self._flags, op=dist.ReduceOp.MAX, group=self._group, async_op=True)

    def end(self) -> None:
        """Hear what all said, as the step is over."""
        if self._group is None:
            self._save = self._is_late()
            return
        assert self._work is not None
        self._work.wait()
        self._signal, self._save = int(self._flags[0]), bool(self._flags[1])

    @property
    def stops(self) -> bool:
        """Whether all are to stop here."""
        return self._stop.requested if self._group is None else self._signal > 0

    @property
    def save_is_due(self) -> bool:
        """Whether all are to save here."""
        return self._save

    def check(self) -> None:
        """Raise `Interrupted` once a signal has come to any rank; in an evaluation, where ranks go at their own pace.

        Word from others is looked for once a second, and it is the end of the evaluation that makes all agree.
        """
        if self._stop.requested:
            self._leave_word()
            raise Interrupted
        if self._group is None or time.monotonic() - self._looked < SECONDS_BETWEEN_LOOKS:
            return
        self._looked = time.monotonic()
        if self._store().check([STOP_KEY]):
            raise Interrupted

    def signal(self) -> int | None:
        """Return the signal that stopped the run, once all have left it; every rank must ask."""
        number = self._stop.signal or 0
        if self._group is not None:
            flag = torch.tensor([max(number, self._signal)])
            dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=self._group)
            number = int(flag)
        return number or None

    def _is_late(self) -> bool:
        return time.monotonic() - self._saved >= self._save_every

    def _leave_word(self) -> None:
        if self._group is not None:
            self._store().set(STOP_KEY, "")

    def _store(self) -> Store:
        assert self._group is not None
        return self._group.get_group_store()


def _own_group(timeout_seconds: float) -> dist.ProcessGroup:
    """A group of all ranks for numbers on the CPU, whatever the default group serves."""
    group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_seconds))
    assert isinstance(group, dist.ProcessGroup)
    return group
