"""How the kernels for CPUs are compiled: by Numba, when first called, and kept on disk for later processes."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from numba import config, njit

from segtrain.errors import SegtrainError

# Exact but for a · b + c, which may be rounded once; a division by 0 is inf or NaN, and no error.
OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": {"contract"}}
exact: Any = njit(**OPTIONS)
# The same, and sums in any order: the only ones that vectorise.
reordered: Any = njit(**(OPTIONS | {"fastmath": {"contract", "reassoc", "nsz"}}))


class Kernel:
    """A compiled function, which takes what it was compiled for from the disk.

    Numba keeps code beside the source, or in the user's cache, and knows by the text of one file whether it is stale:
    here it hears of all files of the kernels. Where nothing can be written, every process compiles anew.
    """

    def __init__(self, build: Callable[[str], Callable[..., Any]]) -> None:
        if getattr(config, "DISABLE_JIT", 0):  # set by Numba's own reading of the environment
            raise SegtrainError(
                "NUMBA_DISABLE_JIT is set: the losses on a CPU run by what Numba compiles. Unset it, "
                "or use segtrain.losses.plain_sums, which needs no compiler"
            )
        self._function = build(_sources())
        try:
            self._compiled = njit(cache=True, **OPTIONS)(self._function)
        except RuntimeError:  # no folder to write to
            self._compiled = exact(self._function)

    def __call__(self, *args: Any) -> Any:
        try:
            return self._compiled(*args)
        except (OSError, EOFError, pickle.UnpicklingError):  # a full disk, or damage to what is kept
            self._compiled = exact(self._function)
            return self._compiled(*args)


@cache
def _sources() -> str:
    """Return what changes with any source of the kernels for CPUs."""
    files = sorted(Path(__file__).parent.glob("numba_*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
