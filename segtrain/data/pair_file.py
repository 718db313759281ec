"""The file of a pair cache: decoded images and targets one after another, and an index that comes last."""

from __future__ import annotations

import io
import os
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segtrain.data.images import AnyArray

MAGIC = b"segtrain pairs 1"
DTYPES = tuple(np.dtype(name) for name in ("uint8", "uint16", "int16"))
ALIGNMENT = 64
TAIL = 8 + len(MAGIC)
INDEX = ("offsets", "shapes", "dtypes", "signatures", "names")
UNREADABLE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True, eq=False)
class PairIndex:
    """Where the arrays of N pairs are: column 0 for images, column 1 for targets.

    offsets: int64 [N, 2], bytes. shapes: int32 [N, 2, 3], 0 where there is no such side. dtypes: uint8 [N, 2], number
    in DTYPES. signatures: int64 [N, 4], of the files that they were read from. names: uint8, those of the samples, each
    with a byte 0 at its end.
    """

    offsets: NDArray[np.int64]
    shapes: NDArray[np.int32]
    dtypes: NDArray[np.uint8]
    signatures: NDArray[np.int64]
    names: NDArray[np.uint8]

    def holds(self, names: NDArray[np.uint8], signatures: NDArray[np.int64]) -> bool:
        """Whether these are the pairs of these samples, in their order, as their files are now."""
        return np.array_equal(self.names, names) and np.array_equal(self.signatures, signatures)

    def keys(self) -> list[tuple[bytes, ...]]:
        """Name and signature of each pair."""
        return pair_keys(self.names, self.signatures)


def pack_names(names: Iterable[str]) -> NDArray[np.uint8]:
    """Names as the index holds them."""
    return np.frombuffer(b"".join(os.fsencode(name) + b"\0" for name in names), np.uint8)


def pair_keys(names: NDArray[np.uint8], signatures: NDArray[np.int64]) -> list[tuple[bytes, ...]]:
    """What tells a pair from all others, and from itself after a change of its files."""
    return list(zip(names.tobytes().split(b"\0")[:-1], (row.tobytes() for row in signatures), strict=True))


class PairFile:
    """A complete file of pairs, mapped into memory: all processes read the same pages."""

    def __init__(self, path: Path) -> None:
        """Open a file.

        Raises:
            OSError, ValueError and others of UNREADABLE: it is missing, cut off, or no such file.
        """
        self.path = path
        self._bytes = np.memmap(path, np.uint8, mode="r")
        tail = self._bytes[-TAIL:].tobytes()
        if len(tail) != TAIL or tail[8:] != MAGIC:
            raise ValueError(f"{path}: no complete pair cache")
        size = int.from_bytes(tail[:8], "little")
        content = self._bytes[len(self._bytes) - TAIL - size : len(self._bytes) - TAIL].tobytes()
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            self.index = PairIndex(*(arrays[name] for name in INDEX))

    def __len__(self) -> int:
        return len(self.index.offsets)

    def read(self, row: int) -> tuple[AnyArray, AnyArray]:
        """Return copies of image and target: what is mapped must not change, and transforms may write."""
        return self._array(row, 0), self._array(row, 1)

    def read_target(self, row: int) -> AnyArray:
        """Return a copy of the target alone."""
        return self._array(row, 1)

    def _array(self, row: int, side: int) -> AnyArray:
        shape = [int(length) for length in self.index.shapes[row, side] if length]
        dtype, start = DTYPES[self.index.dtypes[row, side]], int(self.index.offsets[row, side])
        size = dtype.itemsize * int(np.prod(shape))
        return np.array(self._bytes[start : start + size].view(dtype).reshape(shape))


def write_pairs(
    path: Path,
    pairs: Iterable[tuple[AnyArray, AnyArray]],
    *,
    names: NDArray[np.uint8],
    signatures: NDArray[np.int64],
) -> None:
    """Write a file whole or not at all: under another name first, which is gone when anything fails.

    Raises:
        OSError: no space left, and whatever else the disk says.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    offsets, shapes, dtypes = [], [], []
    try:
        with temporary.open("wb") as stream:
            for pair in pairs:
                offsets.append([_append(stream, array) for array in pair])
                shapes.append([_padded(array.shape) for array in pair])
                dtypes.append([DTYPES.index(array.dtype) for array in pair])
            index = io.BytesIO()
            np.savez(
                index,
                offsets=np.array(offsets, np.int64).reshape(-1, 2),
                shapes=np.array(shapes, np.int32).reshape(-1, 2, 3),
                dtypes=np.array(dtypes, np.uint8).reshape(-1, 2),
                signatures=signatures,
                names=names,
            )
            stream.write(index.getvalue())
            stream.write(len(index.getvalue()).to_bytes(8, "little") + MAGIC)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _append(stream: io.BufferedWriter, array: AnyArray) -> int:
    """Write the bytes of an array, and return where they begin."""
    start = -(-stream.tell() // ALIGNMENT) * ALIGNMENT
    stream.write(bytes(start - stream.tell()))
    stream.write(np.ascontiguousarray(array).data)
    return start


def _padded(shape: Sequence[int]) -> list[int]:
    return [*shape, *[0] * (3 - len(shape))]
