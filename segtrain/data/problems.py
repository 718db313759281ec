"""What can be wrong with a file of a data set: its path, the reason in words, and its kind for those who group them."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from segtrain.errors import DataError


class Kind(StrEnum):
    """What sort of problem a file has; the value is the key in JSON."""

    MISSING = "missing"
    AMBIGUOUS = "ambiguous"
    UNREADABLE = "unreadable"
    TRUNCATED = "truncated"
    MISNAMED = "misnamed"
    ROTATED = "rotated"
    TOO_LARGE = "too_large"
    PIXEL_TYPE = "pixel_type"
    SIZE_MISMATCH = "size_mismatch"
    UNKNOWN_VALUES = "unknown_values"


class Problem(NamedTuple):
    """A file that cannot be used.

    values: with UNKNOWN_VALUES, how often each raw value occurs in the mask: int64 [2, K], values above their pixels.
    """

    path: Path
    reason: str
    kind: Kind
    values: NDArray[np.int64] | None = None


class FileProblem(DataError):
    """One file cannot be used, for a reason of its own."""

    def __init__(
        self, path: Path, reason: str, kind: Kind = Kind.UNREADABLE, *, values: NDArray[np.int64] | None = None
    ) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason
        self.kind = kind
        self.values = values

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"

    @property
    def problem(self) -> Problem:
        """The same as a plain value."""
        return Problem(self.path, self.reason, self.kind, self.values)
