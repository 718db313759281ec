"""Files written whole or not at all: a run that is stopped, or a full disk, leaves no half files."""

from __future__ import annotations

import csv
import io
import json
import os
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from segtrain.errors import SegtrainError


def write_whole(path: Path, content: bytes) -> None:
    """Write a file, and the folders above it where they are missing; an older file of that name is replaced.

    Raises:
        SegtrainError: the file cannot be written; nothing of it is left behind, and an older one stays as it was.
    """
    # Not derived from the name of the file, which may be as long as names can be.
    temporary = path.parent / f".writing-{os.getpid()}-{threading.get_ident()}.tmp"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise SegtrainError(
            f"{path} cannot be written ({error.strerror or error}): make room there, or write to another folder"
        ) from error


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON in UTF-8, whole or not at all; see write_whole.

    Raises:
        ValueError: NaN or infinity, which JSON does not know: say null for what is undefined.
    """
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    # File names that are no UTF-8 hold lone surrogates, whose escapes are those of JSON.
    write_whole(path, text.encode("utf-8", "backslashreplace"))


def write_csv(path: Path, rows: Iterable[Sequence[object]]) -> None:
    """Write rows as CSV in UTF-8, whole or not at all; see write_whole."""
    buffer = io.StringIO(newline="")
    csv.writer(buffer).writerows(rows)
    write_whole(path, buffer.getvalue().encode("utf-8", "backslashreplace"))
