"""The cache of decoded pairs, data.cache: one memory-mapped file for all workers and ranks, on disk or in RAM."""

from __future__ import annotations

import atexit
import getpass
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import filelock
import numpy as np
from numpy.typing import NDArray

from segtrain.config.data import DataConfig
from segtrain.console import progress
from segtrain.data.images import AnyArray
from segtrain.data.pair_file import UNREADABLE, PairFile, pack_names, pair_keys, write_pairs
from segtrain.data.places import cache_folders, root_key
from segtrain.data.samples import Indices
from segtrain.data.scan_cache import signatures_of, split_key
from segtrain.data.sources import FilePairs, Pairs
from segtrain.errors import DataError
from segtrain.machine import available_memory, usable_cores

MEASURED = 24  # samples that tell the size of all
SHARED_MEMORY = Path("/dev/shm")
LARGEST_SHARE = 0.9  # of what is free: others need some, and the size is measured on few samples
THREADS = 16


class CachedPairs(Pairs):
    """The pairs of a data set as arrays in a mapped file; a forked worker inherits the map, others open it."""

    def __init__(self, pairs: FilePairs, path: Path, rows: NDArray[np.int64] | None = None) -> None:
        """Take the rows of the file at `path`, one for each sample of `pairs`; default: in their order."""
        self.samples = pairs.samples
        self.name = pairs.name
        self._pairs = pairs
        self._path = path
        self._rows = np.arange(len(pairs)) if rows is None else rows
        self._file = PairFile(path)

    def read(self, index: int, *, seed: int = 0) -> tuple[AnyArray, AnyArray]:
        """Return copies of what the files held when the cache was built; see Pairs."""
        return self._file.read(int(self._rows[index]))

    def read_target(self, index: int, *, seed: int = 0) -> AnyArray:
        """Return a copy of the target alone; see Pairs."""
        return self._file.read_target(int(self._rows[index]))

    def select(self, indices: Indices) -> CachedPairs:
        """The pairs at these indices."""
        chosen = np.asarray(indices)
        return CachedPairs(self._pairs.select(chosen), self._path, self._rows[chosen])

    def __getstate__(self) -> dict[str, object]:
        return {key: value for key, value in self.__dict__.items() if key != "_file"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._file = PairFile(self._path)


def with_cache(pairs: FilePairs, data: DataConfig, *, tell: Callable[[str], None]) -> Pairs:
    """Return the pairs as data.cache says: as they are, or from a cache, which is built or brought up to date first.

    Processes that start together build it once: the others wait. Samples whose files kept size and time of change
    are taken over from an older cache.

    Raises:
        DataError: the cache does not fit, or cannot be written; nothing of it is left behind.
        FileProblem: a sample cannot be read.
    """
    if data.cache == "none":
        return pairs
    wanted = _Wanted.of(pairs)
    path = _cache_path(pairs)
    if not wanted.is_in(path):
        _make_folder(path.parent)
        with filelock.FileLock(path.with_suffix(".lock")):
            if not wanted.is_in(path):  # another process may have built it meanwhile
                _build(pairs, path, wanted=wanted, tell=tell)
    if data.cache == "ram":
        _remove_at_exit(path)
    return CachedPairs(pairs, path)


def drop_changed(pairs: FilePairs) -> list[Path]:
    """Remove caches that do not hold what the files hold now, whatever size and time say; return their paths."""
    dropped = []
    for kind in ("ram", "disk"):
        path = _cache_path(FilePairs(pairs.samples, pairs.data.model_copy(update={"cache": kind}), split=pairs.split))
        try:
            file = PairFile(path)
        except UNREADABLE:
            continue
        if len(file) != len(pairs) or not all(_equal(file.read(row), pairs.read(row)) for row in range(len(file))):
            path.unlink(missing_ok=True)
            dropped.append(path)
    return dropped


def _equal(first: tuple[AnyArray, AnyArray], second: tuple[AnyArray, AnyArray]) -> bool:
    return all(
        one.dtype == other.dtype and np.array_equal(one, other) for one, other in zip(first, second, strict=True)
    )


def _cache_path(pairs: FilePairs) -> Path:
    size = "-{}x{}".format(*pairs.data.input_size) if pairs.data.input_size and pairs.data.decode == "reduced" else ""
    name = f"pairs-{split_key(pairs.data, pairs.split, pairs.rules)}{size}.bin"
    if pairs.data.cache == "disk":
        folders = cache_folders(pairs.data)
        return next((folder / name for folder in folders if (folder / name).exists()), folders[0] / name)
    return SHARED_MEMORY / f"segtrain-{getpass.getuser()}" / f"{root_key(pairs.data)}-{name}"


@dataclass(frozen=True, eq=False)
class _Wanted:
    """The samples that a cache is to hold, and what their files are now."""

    names: NDArray[np.uint8]
    signatures: NDArray[np.int64]

    @classmethod
    def of(cls, pairs: FilePairs) -> _Wanted:
        signatures = signatures_of(pairs.samples)
        return cls(pack_names(pairs.samples.column("name")), signatures)

    def is_in(self, path: Path) -> bool:
        try:
            return PairFile(path).index.holds(self.names, self.signatures)
        except UNREADABLE:
            return False

    def rows_of(self, older: PairFile) -> list[int | None]:
        rows = {key: row for row, key in enumerate(older.index.keys())}
        return [rows.get(key) for key in pair_keys(self.names, self.signatures)]


def _make_folder(folder: Path) -> None:
    if folder.parent == SHARED_MEMORY and not SHARED_MEMORY.is_dir():
        raise DataError(f"data.cache: ram needs {SHARED_MEMORY}, which is not there: use data.cache: disk or none")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_write(folder, error) from error


def _build(pairs: FilePairs, path: Path, *, wanted: _Wanted, tell: Callable[[str], None]) -> None:
    """Write the file; where there is an older one, its pairs whose files are unchanged are copied."""
    size = _measured_size(pairs)
    free = _free_bytes(path, kind=pairs.data.cache)
    where = "RAM" if pairs.data.cache == "ram" else "disk"
    tell(
        f"note: data.cache: {pairs.data.cache}: about {_human(size)} for split {pairs.name} "
        f"({_human(free)} free), in {path}"
    )
    if size > free * LARGEST_SHARE:
        raise DataError(
            f"data.cache: {pairs.data.cache} needs about {_human(size)} for {len(pairs)} samples in {path.parent}, and "
            f"{_human(free)} are free there, of which {LARGEST_SHARE:.0%} may be used: make room"
            + (", give more shared memory (docker run --shm-size), use data.cache: disk" if where == "RAM" else "")
            + ", or set data.cache: none"
        )
    shown = progress(f"cache {pairs.split}", len(pairs))
    try:
        with shown as advance:
            decoded = _decoded(pairs, path, wanted=wanted, advance=advance)
            write_pairs(path, decoded, names=wanted.names, signatures=wanted.signatures)
    except OSError as error:
        raise _cannot_write(path, error) from error


def _decoded(
    pairs: FilePairs, path: Path, *, wanted: _Wanted, advance: Callable[[int], None]
) -> Iterator[tuple[AnyArray, AnyArray]]:
    """All pairs in their order, a few at a time; from the older cache where the files are unchanged."""
    read: Callable[[int], tuple[AnyArray, AnyArray]] = pairs.read
    with suppress(*UNREADABLE):
        older = PairFile(path)
        read = partial(_copy_or_read, pairs, older, wanted.rows_of(older))
    threads = min(usable_cores(), THREADS)
    with ThreadPoolExecutor(threads, thread_name_prefix="cache") as pool:
        for start in range(0, len(pairs), 4 * threads):
            part = range(start, min(start + 4 * threads, len(pairs)))
            yield from pool.map(read, part)
            advance(len(part))


def _copy_or_read(pairs: FilePairs, older: PairFile, rows: list[int | None], index: int) -> tuple[AnyArray, AnyArray]:
    row = rows[index]
    return pairs.read(index) if row is None else older.read(row)


def _measured_size(pairs: FilePairs) -> int:
    """Bytes of all pairs, by the mean of a few from everywhere."""
    numbers = sorted({int(number) for number in np.linspace(0, len(pairs) - 1, MEASURED)})
    sizes = [sum(array.nbytes for array in pairs.read(number)) for number in numbers]
    return round(sum(sizes) / len(sizes) * len(pairs))


def _free_bytes(path: Path, *, kind: str) -> int:
    free = shutil.disk_usage(path.parent).free
    return min(free, available_memory()) if kind == "ram" else free


def _cannot_write(path: Path, error: OSError) -> DataError:
    return DataError(
        f"data.cache: {path} cannot be written ({error.strerror or error}): make room there, or set data.cache: none"
    )


def _human(size: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def _remove_at_exit(path: Path) -> None:
    """Give the RAM back when this process ends; others that use it keep what they have mapped."""
    atexit.register(_remove, path, os.getpid())


def _remove(path: Path, process: int) -> None:
    if os.getpid() == process:  # not in its forked workers
        with suppress(OSError):
            path.unlink()
            path.with_suffix(".lock").unlink()
