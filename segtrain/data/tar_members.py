"""Lists the files in a tar file by one pass over its headers, and all that is wrong with it."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO, NamedTuple

from segtrain.data.problems import Kind

COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
}
CHUNK = 2**20


class Part(NamedTuple):
    """A file in a tar: its name there, and where its bytes are."""

    name: str
    start: int
    size: int


UNUSABLE = Part("", 0, 0)  # a file whose sample cannot be used; a fault tells why


class Fault(NamedTuple):
    """What is wrong with a member, or with the tar as a whole (name: "")."""

    name: str
    reason: str
    kind: Kind


@dataclass
class Tar:
    """What a tar file holds, in its order: samples by their keys, the files of each by their extensions, lower case."""

    groups: dict[str, dict[str, Part]] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)


def list_members(stream: BinaryIO, size: int) -> Tar:
    """Read the headers of a tar file of `size` bytes.

    As webdataset has it, the key of a member is its path up to the first dot of the file name, and its extension all
    that follows; names without a dot or with nothing before it belong to no sample. Folders are passed over.

    Raises:
        OSError: the stream cannot be read.
    """
    found = Tar()
    first = stream.read(8)
    stream.seek(0)
    packed = next((name for start, name in COMPRESSED.items() if first.startswith(start)), None)
    if packed is not None:
        reason = f"a {packed} file: samples are read in any order, which takes plain tar files: unpack it"
        found.faults.append(Fault("", reason, Kind.UNREADABLE))
        return found
    try:
        tar = tarfile.open(fileobj=stream, mode="r:")  # noqa: SIM115 - the caller closes the stream
        for info in _infos(tar):
            _take(found, info)
    except (tarfile.TarError, EOFError) as error:
        found.faults.append(Fault("", f"a damaged or truncated tar file ({error})", Kind.TRUNCATED))
        _drop_cut(found, size)
        return found
    _check_end(found, stream, tar.offset, size)
    return found


def _infos(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    while (info := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined]  # else all are kept: gigabytes for millions
        yield info


def _take(found: Tar, info: tarfile.TarInfo) -> None:
    name = info.name.removeprefix("./")
    if info.isdir():
        return
    if name.startswith("/") or ".." in name.split("/"):
        found.faults.append(Fault(name, "an absolute name, or one that leads outside", Kind.UNREADABLE))
        return
    folder, slash, last = name.rpartition("/")  # no Path: there are millions of members
    stem, dot, extension = last.partition(".")
    key = folder + slash + stem
    if not info.isreg() or info.issparse():
        kind = "a link" if info.issym() or info.islnk() else "no plain file"
        found.faults.append(Fault(name, f"key {key}: {kind}; shards hold the files themselves", Kind.UNREADABLE))
        found.groups.setdefault(key, {})[extension.lower()] = UNUSABLE
    elif not stem or not dot:
        return
    elif extension.lower() in found.groups.setdefault(key, {}):
        found.faults.append(Fault(name, f"key {key}: two files .{extension.lower()} in one shard", Kind.AMBIGUOUS))
        found.groups[key][extension.lower()] = UNUSABLE  # which of the two is meant, nobody knows
    else:
        found.groups[key][extension.lower()] = Part(name, info.offset_data, info.size)


def _drop_cut(found: Tar, size: int) -> None:
    """Of a tar that ends early the last member may have lost its end."""
    for key, files in found.groups.items():
        for extension, part in files.items():
            if part.start + part.size > size:
                found.faults.append(Fault(part.name, f"key {key}: truncated with the shard", Kind.TRUNCATED))
                files[extension] = UNUSABLE


def _check_end(found: Tar, stream: BinaryIO, end: int, size: int) -> None:
    """A tar ends in blocks of zeros: tarfile stops without a word where they are missing, or where more follows."""
    stream.seek(end)
    first = stream.read(512)
    if len(first) < 512:
        reason = f"truncated: it ends at byte {size} without the zeros that close a tar file"
        found.faults.append(Fault("", reason, Kind.TRUNCATED))
    elif any(first):
        reason = f"damaged: byte {end} should open the header of a member, and what follows cannot be read"
        found.faults.append(Fault("", reason, Kind.UNREADABLE))
    else:
        while chunk := stream.read(CHUNK):
            if chunk.count(0) != len(chunk):
                reason = (
                    f"more follows the end of the tar file at byte {end}, as where two were joined: keep them apart"
                )
                found.faults.append(Fault("", reason, Kind.UNREADABLE))
                return
