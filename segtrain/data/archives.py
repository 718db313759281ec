"""Unpacks archives of strangers: all of it into a new folder, or nothing; no path outside, no links, no bombs."""

from __future__ import annotations

import secrets
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from lzma import LZMAError
from pathlib import Path, PurePosixPath
from typing import IO

from segtrain.errors import DataError

CHUNK = 2**20
RATIO_COUNTS_FROM = 64 * 2**20  # small archives may unpack to anything up to this size
ZIP_STARTS = (b"PK\x03\x04", b"PK\x05\x06")
JUNK = ("__MACOSX", ".DS_Store", "Thumbs.db")
DAMAGE = (zipfile.BadZipFile, tarfile.TarError, zlib.error, LZMAError, EOFError, NotImplementedError, RuntimeError)


@dataclass(frozen=True)
class Limits:
    """What an archive may become: bytes in all, bytes for each byte of the archive, files."""

    max_bytes: int
    max_ratio: float
    max_files: int = 20_000_000


@dataclass
class Unpacked:
    """What was written so far: files and their bytes."""

    files: int = 0
    num_bytes: int = 0


@dataclass(frozen=True)
class _Member:
    """One entry of an archive. problem: why it is refused, or nothing. size: bytes that the archive says it has."""

    name: str
    is_folder: bool
    problem: str
    size: int
    open: Callable[[], IO[bytes] | None]


def unpack(archive: Path, folder: Path, *, limits: Limits, advance: Callable[[int], None]) -> Unpacked:
    """Unpack a zip or tar archive (plain, gz, bz2 or xz) into a new folder.

    Everything is written to a temporary folder beside it, which takes its name at the end: Ctrl-C, damage and a full
    disk leave nothing behind. `advance` is called with the bytes of the archive as they are read.

    Raises:
        DataError: the folder exists already, the file is no such archive or damaged, it holds paths that lead outside,
            links, devices, encrypted or repeated files, or it would become larger than `limits` allow.
    """
    if folder.exists() or folder.is_symlink():
        raise DataError(f"{folder} is there already: nothing is overwritten; name a new folder, or remove it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.parent / f".unpacking-{secrets.token_hex(8)}"
    try:
        temporary.mkdir()
        done = _unpack_all(archive, temporary, limits=limits, advance=advance)
        temporary.rename(folder)
    except OSError as error:
        reason = f"{error.strerror or error} ({error.filename or folder})"
        raise DataError(f"{archive} cannot be unpacked: {reason}; nothing was kept") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return done


def _unpack_all(archive: Path, folder: Path, *, limits: Limits, advance: Callable[[int], None]) -> Unpacked:
    done = Unpacked()
    with ExitStack() as stack:
        stream = stack.enter_context(archive.open("rb"))
        size = archive.stat().st_size
        read = 0
        try:
            for member in _members(stream, archive, stack):
                path = _checked_path(member, archive)
                if path is not None:
                    _write(member, path, folder, done=done, size=size, archive=archive, limits=limits)
                advance(stream.tell() - read if stream.tell() > read else 0)
                read = max(read, stream.tell())
        except DAMAGE as error:
            raise DataError(f"{archive} is damaged or cannot be read: {error}") from error
    if not done.files:
        raise DataError(f"{archive} holds no files")
    return done


def _members(stream: IO[bytes], archive: Path, stack: ExitStack) -> Iterator[_Member]:
    start = stream.read(4)
    stream.seek(0)
    if start in ZIP_STARTS:
        yield from _zip_members(stack.enter_context(zipfile.ZipFile(stream)))
        return
    try:
        tar = tarfile.open(fileobj=stream, mode="r:*")  # noqa: SIM115 - closed with the stack
    except tarfile.ReadError as error:
        raise DataError(f"{archive} is neither a zip nor a tar archive (plain, gz, bz2 or xz)") from error
    yield from _tar_members(stack.enter_context(tar))


def _zip_members(file: zipfile.ZipFile) -> Iterator[_Member]:
    for info in file.infolist():
        kind = stat.S_IFMT(info.external_attr >> 16)
        problem = ""
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            problem = "a link" if kind == stat.S_IFLNK else "a device"
        elif info.flag_bits & 1:
            problem = "encrypted"
        yield _Member(info.filename, info.is_dir(), problem, info.file_size, lambda info=info: file.open(info))  # type: ignore[misc]


def _tar_members(file: tarfile.TarFile) -> Iterator[_Member]:
    while (info := file.next()) is not None:
        problem = ""
        if not (info.isreg() or info.isdir()):
            problem = "a link" if info.issym() or info.islnk() else "a device"
        yield _Member(info.name, info.isdir(), problem, info.size, lambda info=info: file.extractfile(info))  # type: ignore[misc]
        file.members = []  # type: ignore[attr-defined]  # else millions of entries stay in memory
    assert file.fileobj is not None
    file.fileobj.seek(file.offset)
    if len(file.fileobj.read(tarfile.BLOCKSIZE)) < tarfile.BLOCKSIZE:  # between two members no damage shows else
        raise tarfile.ReadError("the end of the tar is missing")


def _checked_path(member: _Member, archive: Path) -> PurePosixPath | None:
    """Where a member goes, relative to the folder; None for what other systems leave in archives."""
    name = member.name.replace("\\", "/")
    parts = PurePosixPath(name).parts
    problem = member.problem
    if name.startswith("/") or (len(name) > 1 and name[1] == ":"):
        problem = "an absolute path"
    elif ".." in parts or "\0" in name:
        problem = "a path that leads outside"
    if problem:
        raise DataError(f"{archive} is refused: {member.name!r} is {problem}")
    if not parts or any(part in JUNK or part.startswith("._") for part in parts):
        return None
    return PurePosixPath(*parts)


def _write(
    member: _Member, path: PurePosixPath, folder: Path, *, done: Unpacked, size: int, archive: Path, limits: Limits
) -> None:
    target = folder / path
    if member.is_folder:
        target.mkdir(parents=True, exist_ok=True)
        return
    if target.exists():
        raise DataError(f"{archive} is refused: it holds {member.name!r} twice")
    done.files += 1
    _check_limits(archive, done.files, done.num_bytes + member.size, size=size, limits=limits)
    target.parent.mkdir(parents=True, exist_ok=True)
    source = member.open()
    assert source is not None, "links and folders are passed over"
    with source, target.open("xb") as stream:
        while chunk := source.read(CHUNK):
            done.num_bytes += len(chunk)
            # What is said of the size may be a lie.
            _check_limits(archive, done.files, done.num_bytes, size=size, limits=limits)
            stream.write(chunk)


def _check_limits(archive: Path, files: int, num_bytes: int, *, size: int, limits: Limits) -> None:
    if num_bytes > limits.max_bytes:
        raise DataError(
            f"{archive} is refused: it becomes larger than {limits.max_bytes / 2**30:.4g} GiB; raise --max-gib where "
            "that is right"
        )
    if num_bytes > max(RATIO_COUNTS_FROM, limits.max_ratio * size):
        raise DataError(
            f"{archive} is refused: it becomes more than {limits.max_ratio:g} times as large as it is, as bombs do; "
            "raise --max-ratio where that is right"
        )
    if files > limits.max_files:
        raise DataError(f"{archive} is refused: it holds more than {limits.max_files} files")
