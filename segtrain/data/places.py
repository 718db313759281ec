"""The folder of a data set, and where what was worked out about it is kept: beside the data, or at the user's."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import platformdirs

from segtrain.config.data import DataConfig


def data_root(data: DataConfig) -> Path:
    """The folder of the data set."""
    return Path(data.root).expanduser()


def cache_folders(data: DataConfig) -> tuple[Path, Path]:
    """Where caches of a data set are looked for, and written where that is possible: beside it, and at the user's."""
    root = data_root(data).resolve()
    beside, users = root / ".segtrain", platformdirs.user_cache_path("segtrain") / "scans" / root_key(data)
    # Where the data are read-only, an older cache beside them must not hide the newer one of the user.
    return (beside, users) if os.access(root, os.W_OK) else (users, beside)


def root_key(data: DataConfig) -> str:
    """A short name for the folder of the data set."""
    return short_hash(str(data_root(data).resolve()))


def short_hash(text: str) -> str:
    """Sixteen hexadecimal digits that stand for a text."""
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
