"""Files inside of tar files, local or behind a URL: each read by itself, in any order, as if it were a file.

Not the sequential reader of the webdataset package: there each worker streams through its shards and shuffles within a
buffer, so that the order depends on workers, ranks and buffer, none of which may change it here; samplers need to name
a sample, epochs need to be exact, and a run that resumes in mid-epoch would read all that came before. The files are
the same: plain tar files.
"""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path, PosixPath
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from segtrain.data.extras import require
from segtrain.data.places import short_hash
from segtrain.data.samples import Texts
from segtrain.errors import ConfigError

ATTEMPTS = 3
FIRST_PAUSE_SECONDS = 0.5  # then twice that
# What tells the version of a remote file, by the names that file systems have for it, the surest first.
VERSIONS = ("ETag", "etag", "md5Hash", "generation", "mtime", "LastModified", "last_modified", "updated", "created")
# What opens URLs of a kind, where fsspec alone does not.
PACKAGES = {"http": "aiohttp", "https": "aiohttp", "s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs"}
NO_RANGES = "the server does not answer range requests, without which no sample can be read by itself"
READ_AHEAD = 2**16  # bytes that a look at headers asks for at once: members between them are passed over


@dataclass(frozen=True)
class Shard:
    """A tar file: path or URL, its size in bytes, and a number that changes with its content (local: time of change, in
    nanoseconds)."""

    location: str
    size: int
    stamp: int

    @classmethod
    def find(cls, location: str) -> Shard:
        """Ask for size and stamp; raises OSError, or ConfigError for URLs of an unknown kind."""
        if not is_url(location):
            found = os.stat(location)  # noqa: PTH116 - beside os.open
            return cls(location, found.st_size, found.st_mtime_ns)
        files, path = remote(location)
        info: Mapping[str, Any] = retried(lambda: files.info(path))
        if info.get("size") is None:
            raise OSError(errno.ENOTSUP, "the server does not tell its size")
        version = next((str(info[key]) for key in VERSIONS if info.get(key) is not None), "")
        return cls(location, int(info["size"]), int(short_hash(version), 16) >> 1)

    def open(self) -> BinaryIO:
        """The whole file as a stream that can seek, to read the headers of its members; raises OSError."""
        if not is_url(self.location):
            return Path(self.location).open("rb")
        files, path = remote(self.location)
        stream: BinaryIO = retried(lambda: files.open(path, "rb", block_size=READ_AHEAD))
        return stream

    def read(self, start: int, size: int) -> bytes:
        """`size` bytes from `start`; raises OSError, also where the file is not the one that was found."""
        if is_url(self.location):
            files, path = remote(self.location)
            data: bytes = retried(lambda: files.cat_file(path, start=start, end=start + size))
            if len(data) > size:
                raise OSError(errno.ENOTSUP, f"{NO_RANGES}: it sent {len(data)} bytes for {size}")
        else:
            data = self._read_local(start, size)
        if len(data) != size:
            raise OSError(errno.EIO, f"{len(data)} of {size} bytes could be read of the shard")
        return data

    def _read_local(self, start: int, size: int) -> bytes:
        # Opened each time, which takes microseconds: no descriptor that processes and threads would have to share.
        descriptor = os.open(self.location, os.O_RDONLY | os.O_CLOEXEC)
        try:
            now = os.fstat(descriptor)
            if (now.st_size, now.st_mtime_ns) != (self.size, self.stamp):
                raise OSError(errno.ESTALE, "the shard was changed while it was in use: start again")
            parts, place, end = [], start, start + size
            while place < end:
                part = os.pread(descriptor, end - place, place)
                if not part:
                    break
                parts.append(part)
                place += len(part)
            return parts[0] if len(parts) == 1 else b"".join(parts)
        finally:
            os.close(descriptor)


def is_url(location: str) -> bool:
    """Whether fsspec is to open this, such as s3://bucket/train.tar."""
    return "://" in location


def remote(location: str) -> tuple[Any, str]:
    """The fsspec file system of a URL (one for each process, which fsspec keeps), and the path there.

    Raises:
        ConfigError: fsspec, or its part for this kind of URL, is missing or does not exist.
    """
    core = require("fsspec.core", extra="shards", what=f"{location} is a URL")
    try:
        files, path = core.url_to_fs(location)
    except ImportError as error:
        package = PACKAGES.get(location.partition("://")[0])
        advice = "" if package is None else f": pip install {package}"
        raise ConfigError(f"data.splits: {location} takes a package that is not installed ({error}){advice}") from error
    except ValueError as error:
        raise ConfigError(f"data.splits: {location} cannot be opened ({error})") from error
    return _held(files), str(path)


@cache
def _held(files: Any) -> Any:
    """Keep a file system for good.

    fsspec forgets those of the process that a worker was forked from, which ends their connections; and as both share
    what the loop of that process waits for, it would wait for ever.
    """
    return files


def retried(read: Callable[[], Any]) -> Any:
    """Ask again where a server does not answer; raises OSError after the last attempt."""
    for attempt in range(ATTEMPTS):
        try:
            return read()
        except (FileNotFoundError, PermissionError):
            raise
        except _network_errors() as error:
            if attempt == ATTEMPTS - 1:
                raise OSError(errno.EIO, f"{type(error).__name__}: {error}") from error
            time.sleep(FIRST_PAUSE_SECONDS * 2**attempt)
    raise AssertionError("every attempt returns or raises")


def _network_errors() -> tuple[type[Exception], ...]:
    """What fsspec's http files raise besides OSError comes from aiohttp, which is imported if they are in use."""
    aiohttp = sys.modules.get("aiohttp")
    return (OSError,) if aiohttp is None else (OSError, aiohttp.ClientError)


class _Bytes(BytesIO):
    """Bytes that read as an unbuffered file does."""

    def readall(self) -> bytes:
        """What is left."""
        return self.read()


class Member(PosixPath):
    """A file in a shard: the path shard/name, which opens, and has size and time, as if the shard were a folder.

    So it goes wherever a sample's file goes: scan, training, caches, validation and drawing read it through `open` and
    `stat`, and messages name shard and member. It cannot be written, and paths derived from it are plain ones.
    """

    def __new__(cls, shard: Shard, name: str, start: int = 0, size: int = 0) -> Member:
        """The `size` bytes from `start` of `shard`, which there have this name."""
        return super().__new__(cls, shard.location, name)

    def __init__(self, shard: Shard, name: str, start: int = 0, size: int = 0) -> None:
        if sys.version_info >= (3, 12):
            super().__init__(shard.location, name)
        self.place = (shard, name, start, size)

    def __str__(self) -> str:
        """The path; a URL keeps both of its slashes."""
        place = getattr(self, "place", None)  # Python 3.11 makes derived paths without it
        return super().__str__() if place is None else f"{place[0].location}/{place[1]}".rstrip("/")

    def __reduce__(self) -> tuple[Any, ...]:
        place = getattr(self, "place", None)
        return (Path, (str(self),)) if place is None else (Member, place)

    @staticmethod
    def pack_column(members: Sequence[Member]) -> Members:
        """Members as a column of samples."""
        places = [member.place for member in members]
        shards = {place[0]: None for place in places}
        numbers = {shard: number for number, shard in enumerate(shards)}
        return Members(
            tuple(shards),
            np.array([numbers[place[0]] for place in places], np.int32),
            Texts.pack([place[1] for place in places], make=str),
            np.array([place[2:] for place in places], np.int64).reshape(-1, 2),
        )

    def with_segments(self, *segments: Any) -> Path:
        """Derived paths are plain ones."""
        return Path(*segments)

    def open(self, mode: str = "rb", *args: Any, **options: Any) -> BinaryIO:  # type: ignore[override]
        """The bytes of the member; raises OSError."""
        if mode != "rb":
            raise ValueError(f"{self}: members of shards are read as bytes, not in mode {mode!r}")
        shard, _, start, size = self.place
        return _Bytes(shard.read(start, size))

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        """Size of the member, and as time of change the stamp of its shard."""
        shard, _, _, size = self.place
        seconds = shard.stamp // 10**9
        return os.stat_result((0o100444, 0, 0, 1, 0, 0, size, seconds, seconds, seconds), {"st_mtime_ns": shard.stamp})


@dataclass(frozen=True, eq=False)
class Members:
    """A column of samples (see samples.py): members of shards.

    numbers: int32 [N], the place of each in `shards`. names: in their shards. spans: int64 [N, 2], start and size.
    """

    shards: tuple[Shard, ...]
    numbers: NDArray[np.int32]
    names: Texts
    spans: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int, /) -> Member:
        start, size = self.spans[index].tolist()
        return Member(self.shards[int(self.numbers[index])], self.names[index], start, size)

    def __iter__(self) -> Iterator[Member]:
        rows = zip(self.numbers.tolist(), self.names, self.spans.tolist(), strict=True)
        return (Member(self.shards[number], name, start, size) for number, name, (start, size) in rows)

    def select(self, rows: NDArray[np.int64], /) -> Members:
        """The members in these rows."""
        return Members(self.shards, self.numbers[rows], self.names.select(rows), self.spans[rows])
