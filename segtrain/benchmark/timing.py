"""Paired timing: all subjects in each round, in random order, and their ratios to the baseline of the same round."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch

WARMUP_ROUNDS = 2
MIN_ROUNDS = 3
BUSY_BYTES, BUSY_WRITES = 2**30, 20  # 5 ms at 4 TB/s: more than the launches of a loss take


@dataclass(frozen=True)
class Timing:
    """The rounds that a subject took part in, with its wall-clock and its CPU seconds (of all threads) in each."""

    rounds: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of the rounds."""

    median: float
    lower: float
    upper: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        """Summarise at least one value."""
        lower, median, upper = np.percentile(values, (25, 50, 75)).tolist()
        return cls(median=median, lower=lower, upper=upper)


def time_call(call: Callable[[], object], *, device: str) -> tuple[float, float]:
    """Return the seconds and the process's CPU seconds of one call; on CUDA the seconds between two events.

    There the device is given other work first, so that the call is in its queue before it begins, as in training, where
    the network keeps it busy: else the time of a small call would be that of Python. That work empties the cache, too.
    """
    if not device.startswith("cuda"):
        wall, cpu = time.perf_counter(), time.process_time()
        call()
        return time.perf_counter() - wall, time.process_time() - cpu
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    torch.cuda.synchronize(device)
    keep_busy(device)
    cpu = time.process_time()
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000, time.process_time() - cpu


def keep_busy(device: str) -> None:
    """Enqueue some milliseconds of writes to memory."""
    filler = _filler(device)
    for _ in range(BUSY_WRITES):
        filler.zero_()


@lru_cache(maxsize=1)
def _filler(device: str) -> torch.Tensor:
    return torch.empty(BUSY_BYTES, dtype=torch.uint8, device=device)


def time_interleaved(
    calls: Mapping[str, Callable[[], object]],
    *,
    baseline: str,
    rounds: int,
    max_seconds: float,
    device: str = "cpu",
    reset: Callable[[], None] = lambda: None,
    seed: int = 0,
) -> dict[str, Timing]:
    """Time each call once in every round, in an order drawn anew for each round.

    What drifts (clock, heat, other processes) then touches all subjects alike, and a ratio within a round is of
    neighbours in time. Warm-up rounds come first and are not kept.

    Args:
        baseline: the subject that takes part in every round.
        max_seconds: a subject that would take longer in all takes part in fewer rounds, evenly spread, 3 at least.
        reset: called before each call, outside the measured time.
    """
    order = random.Random(seed)
    slowest = dict.fromkeys(calls, 0.0)
    for _ in range(WARMUP_ROUNDS):
        for name, call in calls.items():
            reset()
            slowest[name] = time_call(call, device=device)[0]  # of the last: the first compiles and touches memory
    shares = {name: _num_rounds(seconds, rounds, max_seconds) for name, seconds in slowest.items()}
    shares[baseline] = rounds
    timings = {name: Timing() for name in calls}
    gc.collect()
    for index in range(rounds):
        names = [name for name, share in shares.items() if _takes_part(index, share, rounds)]
        order.shuffle(names)
        gc.collect(1)  # what the last round left behind; the whole heap would take longer than a small loss
        for name in names:
            reset()
            seconds, cpu_seconds = time_call(calls[name], device=device)
            timings[name].rounds.append(index)
            timings[name].seconds.append(seconds)
            timings[name].cpu_seconds.append(cpu_seconds)
    return timings


def paired_ratio(rounds: list[int], values: list[float], other_rounds: list[int], others: list[float]) -> Spread | None:
    """Return the spread of value / other over the rounds in which both took part; None where there is none.

    Rounds in which the other is 0 are left out: a coarse clock of CPU time tells that of a short call.
    """
    by_round = dict(zip(other_rounds, others, strict=True))
    ratios = [
        value / by_round[index] for index, value in zip(rounds, values, strict=True) if by_round.get(index, 0.0) > 0
    ]
    return Spread.of(ratios) if ratios else None


def _num_rounds(seconds: float, rounds: int, max_seconds: float) -> int:
    affordable = rounds if seconds * rounds <= max_seconds else int(max_seconds / seconds)
    return min(rounds, max(affordable, MIN_ROUNDS))


def _takes_part(index: int, share: int, rounds: int) -> bool:
    """Spread `share` rounds evenly over all."""
    return (index + 1) * share // rounds > index * share // rounds
