"""Remembers what the scan counted: one file for each split and set of rules, beside the data or in the user's cache."""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
import zlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import platformdirs
from numpy.typing import NDArray

from segtrain.config.data import DataConfig
from segtrain.data.formats import Sample, data_root
from segtrain.data.masks import LabelRules
from segtrain.errors import SegtrainError
from segtrain.files import write_whole

CACHE_VERSION = 2  # raise it when the scan counts or checks in another way
UNREADABLE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)

Signature = tuple[int, int, int, int]


@dataclass(frozen=True)
class Entry:
    """A good sample as it was scanned: sizes and times of both files, int64 [C + 1] counts."""

    signature: Signature
    counts: NDArray[np.int64]


def signature_of(sample: Sample) -> Signature | None:
    """Size in bytes and time of change in nanoseconds of image and mask; None if one is not there."""
    if sample.mask is None:
        return None
    try:
        image, mask = sample.image.stat(), sample.mask.stat()
    except OSError:
        return None
    return image.st_size, image.st_mtime_ns, mask.st_size, mask.st_mtime_ns


class ScanCache:
    """The cache file of one split under one set of rules."""

    def __init__(self, data: DataConfig, split: str, *, rules: LabelRules) -> None:
        root = data_root(data).resolve()
        self._file = f"scan-{_key(data, split, rules)}.npz"
        self._num_counts = rules.num_classes + 1
        beside = root / ".segtrain"
        users = platformdirs.user_cache_path("segtrain") / "scans" / _hash(str(root))
        # Where the data are read-only, an older cache beside them must not hide the newer one of the user.
        self._folders = (beside, users) if os.access(root, os.W_OK) else (users, beside)

    def load(self) -> dict[str, Entry]:
        """Entries by the names of the samples; a damaged file counts as none."""
        for folder in self._folders:
            with suppress(*UNREADABLE):
                return self._read(folder / self._file)
        return {}

    def _read(self, path: Path) -> dict[str, Entry]:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            names, signatures = arrays["names"], arrays["signatures"].astype(np.int64)
            counts = arrays["counts"].astype(np.int64)
        num = len(names)
        if (signatures.shape, counts.shape) != ((num, 4), (num, self._num_counts)):
            raise ValueError(f"{path}: arrays disagree")
        rows = zip(names.tolist(), signatures.tolist(), counts, strict=True)
        return {name: Entry(tuple(signature), row) for name, signature, row in rows}

    def save(self, entries: dict[str, Entry]) -> Path | None:
        """Write all entries at once; returns the file, or None where neither folder can be written."""
        arrays = {
            "names": np.array(list(entries), dtype=np.str_),
            "signatures": np.array([entry.signature for entry in entries.values()], np.int64).reshape(-1, 4),
            "counts": np.array([entry.counts for entry in entries.values()], np.int64).reshape(-1, self._num_counts),
        }
        content = io.BytesIO()
        np.savez(content, **arrays)  # type: ignore[arg-type]
        for folder in self._folders:
            with suppress(SegtrainError):  # read-only or full: the next run scans again
                write_whole(folder / self._file, content.getvalue())
                return folder / self._file
        return None


def _key(data: DataConfig, split: str, rules: LabelRules) -> str:
    """What an entry depends on besides its files."""
    mapping = sorted(rules.mapping.items()) if rules.mapping is not None else None
    place = [data.layout, data.images, data.masks, data.splits[split]]
    checks = [data.max_pixels, len(data.normalize.mean)]
    return _hash(json.dumps([CACHE_VERSION, place, rules.num_classes, rules.ignore_index, mapping, checks]))


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
