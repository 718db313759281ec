"""Looks at every sample of a split, in threads and on all ranks, into arrays; or remembers what an earlier scan saw."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from segtrain.data.formats import Sample
from segtrain.data.problems import Problem
from segtrain.data.samples import Samples
from segtrain.data.scan_cache import NO_SIGNATURE, Known, signatures_of
from segtrain.distributed import gather_objects, rank, sum_over_ranks, world_size
from segtrain.errors import DataError
from segtrain.machine import usable_cores

Counts = NDArray[np.int64]
SMALL_SET = 64  # below this many samples, threads cost more than they save
MAX_WORKERS = 16
LARGEST_PART = 64  # samples of one task of a thread: a task for each would cost a kilobyte each, all at once


class Inspect(Protocol):
    """Counts the mask of a sample, int64 [K], and lists what is wrong with its files; threads share it."""

    def __call__(self, sample: Sample, /) -> tuple[Counts, list[Problem]]: ...


@dataclass(frozen=True, eq=False)
class Looks:
    """What is known of each sample, in their order.

    counts: int64 [N, K], zeros where there are problems. signatures: int64 [N, 4], see signature_of.
    good: bool [N], without a problem. remembered: bool [N], taken from an earlier scan.
    """

    counts: Counts
    signatures: Counts
    good: NDArray[np.bool_]
    remembered: NDArray[np.bool_]
    problems: list[Problem]

    @classmethod
    def empty(cls, num_samples: int, num_counts: int) -> Looks:
        """Nothing known yet of any sample."""
        counts, signatures = np.zeros((num_samples, num_counts), np.int64), np.zeros((num_samples, 4), np.int64)
        return cls(counts, signatures, np.zeros(num_samples, np.bool_), np.zeros(num_samples, np.bool_), [])


def look_at_all(
    inspect: Inspect,
    samples: Sequence[Sample],
    *,
    known: Known,
    workers: int | None,
    advance: Callable[[int], None],
) -> Looks:
    """Look at all samples, each rank of the process group at its share, and every rank gets all that was found.

    Threads, not processes: nearly all the time passes in OpenCV, which lets other threads run meanwhile. They
    start at once, where a process would first import everything, and work in notebooks and scripts alike.

    Raises:
        DataError: the ranks do not see the same samples.
    """
    samples = Samples.pack(samples)
    _check_agreement(samples)
    looks = Looks.empty(len(samples), known.num_counts)
    # one sample after another goes to one rank after another: files of a kind often lie together
    mine = np.arange(rank(), len(samples), world_size())
    look = _Look(inspect, samples, known=known, rows=known.rows(samples), looks=looks)
    threads = _num_workers(workers, len(mine))
    size = min(LARGEST_PART, max(1, len(mine) // (8 * threads)))
    parts = [mine[start : start + size] for start in range(0, len(mine), size)]
    problems: list[list[Problem]] = []
    if threads <= 1:
        for part in parts:
            problems.append(look(part))
            advance(len(part))
    else:
        pool = ThreadPoolExecutor(threads, thread_name_prefix="scan")
        try:
            for part, found in zip(parts, pool.map(look, parts), strict=True):
                problems.append(found)
                advance(len(part))
        finally:
            pool.shutdown(cancel_futures=True)  # Ctrl-C does not wait for the rest
    looks.problems.extend(chain.from_iterable(problems))
    return of_all_ranks(looks)


class _Look:
    """Looks at some samples, or remembers them, and writes their rows."""

    def __init__(self, inspect: Inspect, samples: Samples[Sample], *, known: Known, rows: Counts, looks: Looks) -> None:
        self._inspect = inspect
        self._samples = samples
        self._known = known
        self._rows = rows
        self._looks = looks

    def __call__(self, part: Counts) -> list[Problem]:
        looks, problems = self._looks, []
        # before reading: a file that changes meanwhile is read again next time
        signatures = signatures_of(self._samples.select(part))
        looks.signatures[part] = signatures
        same = self._remembered(self._rows[part], signatures)
        looks.counts[part[same]] = self._known.counts[self._rows[part[same]]]
        looks.good[part[same]] = looks.remembered[part[same]] = True
        for index in part[~same].tolist():
            counts, found = self._inspect(self._samples[index])
            looks.good[index] = not found
            if found:
                problems.extend(found)
            else:
                looks.counts[index] = counts
        return problems

    def _remembered(self, rows: Counts, signatures: Counts) -> NDArray[np.bool_]:
        """Whether each sample stands in one of the known rows as it is now, bool [len(rows)]; -1: in none."""
        if not len(self._known.names):
            return np.zeros(len(rows), np.bool_)
        as_before = (self._known.signatures[rows] == signatures).all(axis=1)
        return np.asarray(as_before & (rows >= 0) & (signatures != NO_SIGNATURE).any(axis=1))


def _check_agreement(samples: Sequence[Sample]) -> None:
    """Refuse to share the work where ranks list other samples: their rows would be added up all the same."""
    if world_size() == 1:
        return
    ends = (samples[0].name, samples[-1].name) if len(samples) else ("", "")
    seen = gather_objects((len(samples), *ends))
    if len(set(seen)) > 1:
        told = "; ".join(
            f"rank {number}: {count} ({first} to {last})" for number, (count, first, last) in enumerate(seen)
        )
        raise DataError(f"the ranks see different samples, so data.root is not the same folder for all: {told}")


def of_all_ranks(looks: Looks) -> Looks:
    """Put the shares of the ranks together: one sum, as each wrote the rows of its own alone."""
    if world_size() == 1:
        return looks
    flags = np.stack([looks.good, looks.remembered], axis=1).astype(np.int64)
    width = looks.counts.shape[1]
    summed = sum_over_ranks(np.concatenate([looks.counts, looks.signatures, flags], axis=1))
    good = summed[:, -2].astype(np.bool_)
    # only where some rank found any: problems are texts, which no sum takes
    problems = looks.problems if good.all() else list(chain.from_iterable(gather_objects(looks.problems)))
    return Looks(summed[:, :width], summed[:, width:-2], good, summed[:, -1].astype(np.bool_), problems)


def _num_workers(workers: int | None, num_samples: int) -> int:
    if workers is not None:
        return workers
    return 1 if num_samples < SMALL_SET else min(usable_cores(), MAX_WORKERS)
