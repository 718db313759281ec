"""Remembers what the scan counted: one file for each split and set of rules, beside the data or in the user's cache."""

from __future__ import annotations

import io
import json
import os
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segtrain.config.data import DataConfig
from segtrain.data.formats import Sample, mask_reader
from segtrain.data.formats.long_lists import Spans
from segtrain.data.labels import MultiLabelRules
from segtrain.data.masks import LabelRules
from segtrain.data.places import cache_folders, short_hash
from segtrain.data.samples import Column, Samples, Texts
from segtrain.errors import SegtrainError
from segtrain.files import write_whole

CACHE_VERSION = 3  # raise it when the scan counts or checks in another way
UNREADABLE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)

Signature = tuple[int, int, int, int]
NO_SIGNATURE: Signature = (-1, -1, -1, -1)


@dataclass(frozen=True, eq=False)
class Known:
    """Good samples as they were scanned: their names, signatures int64 [N, 4], and counts int64 [N, K]."""

    names: Column
    signatures: NDArray[np.int64]
    counts: NDArray[np.int64]

    @classmethod
    def nothing(cls, num_counts: int) -> Known:
        """No sample yet."""
        return cls(Texts.pack([], make=str), np.zeros((0, 4), np.int64), np.zeros((0, num_counts), np.int64))

    @property
    def num_counts(self) -> int:
        """K, the number of counts of a sample."""
        return int(self.counts.shape[1])

    def rows(self, samples: Sequence[Sample]) -> NDArray[np.int64]:
        """The row of each of these samples, -1 for those that are new: int64 [len(samples)]."""
        if not len(self.names):
            return np.full(len(samples), -1, np.int64)
        names = list(Samples.pack(samples).column("name"))
        mine = list(self.names)
        if names == mine:  # as nearly always
            return np.arange(len(names))
        numbers = {name: row for row, name in enumerate(mine)}
        return np.array([numbers.get(name, -1) for name in names], np.int64)


def signature_of(sample: Sample) -> Signature:
    """Size in bytes and time of change in nanoseconds of image and mask; NO_SIGNATURE if one is not there."""
    if sample.mask is None:
        return NO_SIGNATURE
    try:
        if sample.files is not None:
            return _signature_of_files(sample.image, sample.files)
        image, mask = sample.image.stat(), sample.mask.stat()
    except OSError:
        return NO_SIGNATURE
    return image.st_size, image.st_mtime_ns, mask.st_size, mask.st_mtime_ns


def signatures_of(samples: Samples[Sample]) -> NDArray[np.int64]:
    """The signatures of samples, int64 [N, 4]; where images and masks are plain files, no record is made of any."""
    texts = [_plain_paths(samples.column(name)) for name in ("image", "mask")]
    if len(samples) and None not in texts and not any(files is not None for files in samples.column("files")):
        found = [_signature_of_pair(image, mask) for image, mask in zip(*texts, strict=True)]
    else:
        found = [signature_of(sample) for sample in samples]
    return np.array(found, np.int64).reshape(-1, 4)


def _plain_paths(column: Column) -> Iterator[str] | None:
    """The paths of a column as texts; None for others than files in folders."""
    return column.texts() if isinstance(column, Texts | Spans) and column.make is Path else None


def _signature_of_pair(image: str, mask: str) -> Signature:
    try:
        one, other = os.stat(image), os.stat(mask)  # noqa: PTH116 - of texts: a Path for each takes as long again
    except OSError:
        return NO_SIGNATURE
    return one.st_size, one.st_mtime_ns, other.st_size, other.st_mtime_ns


def _signature_of_files(image: Path, files: Sequence[str]) -> Signature:
    """The same where each class has a mask file: their total size, and a number that stands for all sizes and times."""
    found = image.stat()
    masks = [(number, Path(file).stat()) for number, file in enumerate(files) if file]
    text = json.dumps([(number, mask.st_size, mask.st_mtime_ns) for number, mask in masks])
    total = sum(mask.st_size for _, mask in masks)
    return found.st_size, found.st_mtime_ns, total, int(short_hash(text), 16) >> 1


class RowCache:
    """A cache file of one row of counts for each sample, beside the data or in the user's cache."""

    def __init__(self, data: DataConfig, file: str, *, num_counts: int) -> None:
        self._file = file
        self._num_counts = num_counts
        self._folders = cache_folders(data)

    def load(self) -> Known:
        """What earlier scans saw; a damaged file counts as nothing."""
        for folder in self._folders:
            with suppress(*UNREADABLE):
                return self._read(folder / self._file)
        return self.nothing()

    def nothing(self) -> Known:
        """What is known before any scan."""
        return Known.nothing(self._num_counts)

    def _read(self, path: Path) -> Known:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            prefix, rest, ends = arrays["name_prefix"].tobytes(), arrays["name_rest"], arrays["name_ends"]
            signatures = arrays["signatures"].astype(np.int64)
            counts = arrays["counts"].astype(np.int64)
        num = len(ends)
        if (signatures.shape, counts.shape) != ((num, 4), (num, self._num_counts)):
            raise ValueError(f"{path}: arrays disagree")
        if (rest.dtype, ends.dtype) != (np.uint8, np.int64) or (num and ends[-1] != len(rest)):
            raise ValueError(f"{path}: the names are damaged")
        return Known(Texts(prefix, rest, ends, str), signatures, counts)

    def save(self, names: Sequence[str], signatures: NDArray[np.int64], counts: NDArray[np.int64]) -> Path | None:
        """Write good samples, all at once; returns the file, or None where neither folder can be written."""
        texts = Texts.pack(names, make=str)
        arrays = {
            "name_prefix": np.frombuffer(texts.prefix, np.uint8),
            "name_rest": texts.rest,
            "name_ends": texts.ends,
            "signatures": signatures,
            "counts": _narrowed(counts),
        }
        content = io.BytesIO()
        np.savez(content, **arrays)  # type: ignore[arg-type]
        for folder in self._folders:
            with suppress(SegtrainError):  # read-only or full: the next run scans again
                write_whole(folder / self._file, content.getvalue())
                return folder / self._file
        return None


class ScanCache(RowCache):
    """The cache file of one split under one set of rules."""

    def __init__(self, data: DataConfig, split: str, *, rules: LabelRules | MultiLabelRules) -> None:
        super().__init__(data, f"scan-{split_key(data, split, rules)}.npz", num_counts=rules.num_counts)


def _narrowed(counts: NDArray[np.int64]) -> NDArray[Any]:
    """The same numbers in uint32, where they fit: half of the file."""
    return counts.astype(np.uint32) if not counts.size or counts.max() < 2**32 else counts


def split_key(data: DataConfig, split: str, rules: LabelRules | MultiLabelRules) -> str:
    """A short name for all that targets and counts of a split depend on besides its files."""
    mapping = sorted(rules.mapping.items()) if rules.mapping is not None else None
    place = [data.layout_key(), data.splits[split], repr(mask_reader(data))]
    checks = [data.max_pixels, len(data.normalize.mean), rules.num_counts]
    return short_hash(json.dumps([CACHE_VERSION, place, rules.num_classes, rules.ignore_index, mapping, checks]))
