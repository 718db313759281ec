"""Batches from worker processes: how they start, stop, die and report."""

from __future__ import annotations

import atexit
import multiprocessing
import signal
import sys
import threading
import warnings
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.process import BaseProcess
from typing import Any, Generic, Protocol, TypeVar

import cv2
import torch
from torch.utils.data import DataLoader

from segtrain.data.batches import fill_batch
from segtrain.data.dataset import EvalDataset, Item, TrainDataset
from segtrain.data.sampling import TrainBatchSampler
from segtrain.errors import DataError

Batch = TypeVar("Batch")
Read = Callable[[Sequence[Any]], Iterator[Any]]


class BatchSampler(Protocol):
    """Yields the keys of one batch after another."""

    def __iter__(self) -> Iterator[list[Any]]: ...
    def __len__(self) -> int: ...


class Readable(Sized, Protocol):
    """A data set with a name for messages."""

    name: str

    def __getitem__(self, key: Any, /) -> Item: ...


def build_train_loader(
    dataset: TrainDataset, sampler: TrainBatchSampler, *, workers: int, pin_memory: bool = False, prefetch: int = 2
) -> Loader[dict[str, torch.Tensor]]:
    """Batches {image [N, C, H, W], channels last, target [N, H, W], index [N]} for the rest of the sampler's epoch.

    With `distance_classes` of the data set also {distances [N, K, H, W]}.

    Workers live as long as the loader, and each reads `prefetch` batches ahead; `set_position` of the sampler before
    each epoch says what comes.
    """
    return Loader(
        dataset,
        sampler,
        collate=fill_batch,
        workers=workers,
        pin_memory=pin_memory,
        prefetch=prefetch,
        read=dataset.each if type(dataset).__getitem__ is TrainDataset.__getitem__ else partial(_arrays_of, dataset),
    )


def _arrays_of(dataset: TrainDataset, keys: Iterable[tuple[int, int]]) -> Iterator[Item]:
    """What `TrainDataset.each` gives, of a subclass that makes its items in a way of its own."""
    for key in keys:
        item = dataset[key]
        yield {**item, "image": item["image"].permute(1, 2, 0)}


def build_eval_loader(
    dataset: EvalDataset, *, batch_size: int, workers: int, indices: Sequence[int] | None = None
) -> Loader[list[Item]]:
    """Batches as lists of items, as targets may differ in size; in the order of the data set, or of `indices` in it."""
    indices = range(len(dataset)) if indices is None else indices
    batches = [list(indices[start : start + batch_size]) for start in range(0, len(indices), batch_size)]
    return Loader(dataset, batches, collate=list, workers=workers, pin_memory=False)


@dataclass(frozen=True)
class _Failure:
    """A DataError on its way out of a worker: torch would bury its message in a traceback."""

    message: str


class _Reading(Collection[Any]):
    """The items of a batch, each read as it is asked for."""

    def __init__(self, read: Read, keys: Sequence[Any]) -> None:
        self._read = read
        self._keys = keys

    def __len__(self) -> int:
        return len(self._keys)

    def __iter__(self) -> Iterator[Any]:
        return self._read(self._keys)

    def __contains__(self, item: object) -> bool:
        return any(one is item for one in self)


class _Batches:
    """The data set as torch sees it: of the keys of a batch it gives what reads them."""

    def __init__(self, read: Read) -> None:
        self.read = read

    def __getitems__(self, keys: list[Any]) -> _Reading:
        return _Reading(self.read, keys)


class _Guarded:
    """Reads and collates a batch, where a DataError becomes a value; picklable, for contexts that need it."""

    def __init__(self, collate: Callable[[Any], Any]) -> None:
        self.collate = collate

    def __call__(self, items: Any) -> Any:
        try:
            return self.collate(items)
        except DataError as error:
            return _Failure(str(error))


class _Recorded:
    """A batch sampler that remembers the batches that workers were asked for and have not returned."""

    def __init__(self, batches: BatchSampler | Sequence[list[Any]]) -> None:
        self.batches = batches
        self.pending: deque[list[Any]] = deque()

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[Any]]:
        self.pending.clear()
        for batch in self.batches:
            self.pending.append(batch)
            yield batch


class Loader(Generic[Batch]):
    """Iterates over the batches of a data set; raises DataError for bad files and for dead workers."""

    def __init__(
        self,
        dataset: Readable,
        batches: BatchSampler | Sequence[list[Any]],
        *,
        collate: Callable[[Any], Batch],
        workers: int,
        pin_memory: bool,
        prefetch: int = 2,
        context: str | None = None,
        read: Read | None = None,
    ) -> None:
        """Load `batches` of keys; `read` gives the items of some keys, by default dataset[key] of each."""
        self.dataset = dataset
        self._recorded = _Recorded(batches)
        self._iterator: Any = None
        self._kill_workers = partial(_kill, [])
        self._read = _Batches(partial(map, dataset.__getitem__) if read is None else read)
        self._collate = _Guarded(collate)
        self._pin_memory = pin_memory
        self._loader = None if workers == 0 else self._with_workers(workers, prefetch=prefetch, context=context)

    def _with_workers(self, workers: int, *, prefetch: int, context: str | None) -> DataLoader[Any]:
        with _quiet():
            return DataLoader(
                self._read,  # type: ignore[arg-type]
                batch_sampler=self._recorded,
                num_workers=workers,
                collate_fn=self._collate,
                worker_init_fn=prepare_worker,
                persistent_workers=True,
                prefetch_factor=prefetch,
                multiprocessing_context=context or start_method(),
                pin_memory=self._pin_memory,
                generator=torch.Generator(),  # else each epoch takes a number from the global generator
            )

    def __len__(self) -> int:
        return len(self._recorded)

    def __iter__(self) -> Iterator[Batch]:
        for batch in self._here() if self._loader is None else self._of_workers(self._loader):
            if isinstance(batch, _Failure):
                raise DataError(batch.message)
            yield batch
            del batch  # while the next is made

    def _here(self) -> Iterator[Any]:
        """Batches made in this process; torch's loader would do the same with more around it."""
        for keys in self._recorded.batches:
            batch = self._collate(self._read.__getitems__(keys))
            if self._pin_memory and isinstance(batch, dict):
                batch = {name: tensor.pin_memory() for name, tensor in batch.items()}
            yield batch
            del batch  # while the next is made

    def _of_workers(self, loader: DataLoader[Any]) -> Iterator[Any]:
        with _quiet(), _own_child_handler():
            self._iterator = iter(loader)
        self._end_workers_at_exit()
        while True:
            try:
                batch = next(self._iterator)
            except StopIteration:
                return
            except RuntimeError as error:
                if not _tells_of_a_death(error):
                    raise
                raise self._worker_died(error) from error
            self._recorded.pending.popleft()
            yield batch
            del batch  # while the next is made

    def close(self) -> None:
        """End the workers now, with force if they are stuck."""
        self._iterator = None
        if self._loader is not None:
            self._loader._iterator = None  # asks the workers to end, and waits for some seconds
        atexit.unregister(self._kill_workers)
        self._kill_workers()

    def _end_workers_at_exit(self) -> None:
        """Else a program that ends in mid-epoch waits for ever: Python sends its children SIGTERM and waits."""
        workers = list(getattr(self._iterator, "_workers", ()))
        if workers != self._kill_workers.args[0]:
            atexit.unregister(self._kill_workers)
            self._kill_workers = partial(_kill, workers)
            atexit.register(self._kill_workers)

    def _worker_died(self, error: RuntimeError) -> DataError:
        keys = [key for batch in self._recorded.pending for key in batch]
        indices = [key[0] if isinstance(key, tuple) else key for key in keys]
        return DataError(
            f"a worker of the data loader died while it read samples {min(indices)} to {max(indices)} of split "
            f"{self.dataset.name}: {error}. Often memory ran out (RAM or /dev/shm): try data.workers: 0, which "
            "shows the cause, or a smaller batch"
        )


def start_method() -> str | None:
    """How workers start: fork on Linux, elsewhere what Python does.

    fork takes milliseconds, where forkserver and spawn take seconds of importing torch and albumentations (and
    a SIGTERM to the process group kills the fork server, and workers with it, before a last step can finish).
    Its danger are threads and locks that the child does not inherit: our workers use one thread (see
    prepare_worker), touch neither CUDA nor the console, and everything sent to them can be pickled, so that
    the other methods work where fork is missing.
    """
    return "fork" if sys.platform == "linux" and "fork" in multiprocessing.get_all_start_methods() else None


def prepare_worker(worker: int) -> None:
    """Make a worker leave signals to the main process, which ends it, and use one thread."""
    for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
        if hasattr(signal, name):  # Windows has no SIGUSR1
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


def _tells_of_a_death(error: RuntimeError) -> bool:
    """Whether torch reports a dead worker; an error raised in a living one opens with "Caught ..." instead."""
    first, _, _ = str(error).partition("\n")
    return "exited unexpectedly" in first or "is killed by signal" in first


def _kill(workers: Sequence[BaseProcess]) -> None:
    for worker in workers:
        if worker.is_alive():
            worker.kill()
            worker.join()


@contextmanager
def _quiet() -> Iterator[None]:
    """No warnings about fork with threads (see start_method) and about more workers than cores (the user's choice)."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*multi-threaded.*fork", category=DeprecationWarning)
        warnings.filterwarnings("ignore", message="This DataLoader will create", category=UserWarning)
        yield


@contextmanager
def _own_child_handler() -> Iterator[None]:
    """Undo torch's SIGCHLD handler, which raises in whatever line runs when a worker dies, say in a save.

    Dead workers are noticed all the same, when their batch is waited for.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGCHLD"):
        yield
        return
    previous = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, previous)
