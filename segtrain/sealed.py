"""Zip files that notice any damage: a checksum of all that is in them stands in their comment."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

MARK = b"segtrain sha256 "
COMMENT_BYTES = len(MARK) + 2 * hashlib.sha256().digest_size
START_MARK = b"PK\x03\x04"
END_MARK = b"PK\x05\x06"  # of the last record of a zip file, whose last two bytes are the length of the comment
END_BYTES = 22
LONGEST_COMMENT = 2**16 - 1
CHUNK_BYTES = 2**20


class _Digesting:
    """Hands on what is written, and adds it to a checksum: nothing has to be read again."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.digest = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        return self._stream.write(data)

    def flush(self) -> None:
        self._stream.flush()


def write_sealed(stream: BinaryIO, write: Callable[[BinaryIO], object]) -> None:
    """Have `write` write a zip file without a comment to a stream, and seal it; other tools read it as before.

    Raises:
        OSError: the stream cannot be written, and what `write` raises.
    """
    digesting = _Digesting(stream)
    write(digesting)  # type: ignore[arg-type]  # it writes and flushes, which is all that torch.save asks for
    comment = MARK + digesting.digest.hexdigest().encode()
    stream.seek(-2, os.SEEK_END)
    stream.write(len(comment).to_bytes(2, "little") + comment)


def is_whole(path: Path) -> bool:
    """Whether a file is as `write_sealed` left it; a file that it has not written passes, as far as can be told.

    Raises:
        OSError: the file cannot be read.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        is_zip = stream.read(len(START_MARK)) == START_MARK
        stream.seek(max(0, size - END_BYTES - LONGEST_COMMENT))
        tail = stream.read()
        comment = tail[-COMMENT_BYTES:]
        if not comment.startswith(MARK):
            return not is_zip or _ends_as_others(tail)
        stream.seek(0)
        found = _digest(stream, size - COMMENT_BYTES - 2)
        length = int.from_bytes(stream.read(2), "little")
    return length == COMMENT_BYTES and comment.removeprefix(MARK) == found.encode()


def _ends_as_others(tail: bytes) -> bool:
    """Whether a zip file has an end, with a comment as long as it says, and none that was the seal of ours."""
    end = tail.rfind(END_MARK)
    rest = tail[end + END_BYTES :]
    length = int.from_bytes(tail[end + END_BYTES - 2 : end + END_BYTES], "little")
    return end >= 0 and len(rest) == length and not any(word in rest for word in MARK.split())


def _digest(stream: BinaryIO, num_bytes: int) -> str:
    """Of the next bytes and, after them, of the length of a comment that was not there yet."""
    digest = hashlib.sha256()
    while num_bytes:
        chunk = stream.read(min(CHUNK_BYTES, num_bytes))
        if not chunk:
            break
        digest.update(chunk)
        num_bytes -= len(chunk)
    digest.update(bytes(2))
    return digest.hexdigest()
