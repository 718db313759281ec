"""Plain lists of image and mask files, read as one array of bytes: a million lines without a Python object each."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from dataclasses import fields as fields_of
from itertools import chain
from os.path import isfile  # of texts: a Path for each of thousands of files takes longer than the look at them
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segtrain.data.formats.base import Sample
from segtrain.data.headers import SUFFIXES
from segtrain.data.samples import Column, Constant, Samples

Bytes = NDArray[np.uint8]
Places = NDArray[np.integer[Any]]

UNCHECKED = 100_000  # lines from which on the files are not looked for: the scan opens them anyway
SEPARATORS = b"\t, "
WITH_CARE = (b"#", b"//", b"./", b"\\")  # comments, and paths that have a shorter form
MOST_BLANKS = 16  # around a separator
# What Python takes for blanks or ends of lines in UTF-8, besides those of ASCII.
FURTHER_BLANKS = re.compile(rb"\xc2[\x85\xa0]|\xe1\x9a\x80|\xe2\x80[\x80-\x8a\xa8\xa9\xaf]|\xe2\x81\x9f|\xe3\x80\x80")
NEWLINE, BLANK, SLASH, DOT = b"\n /."


@dataclass(frozen=True, eq=False)
class Spans:
    """A column of samples (see samples.py): texts or paths that are `prefix` and data[starts[i]:ends[i]].

    data: uint8, shared by the columns of a list. starts, ends: int32 or int64 [N].
    """

    prefix: bytes
    data: Bytes
    starts: Places
    ends: Places
    make: Callable[[str], Any]

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int, /) -> Any:
        part = self.data[int(self.starts[index]) : int(self.ends[index])]
        return self.make(os.fsdecode(self.prefix + part.tobytes()))

    def __iter__(self) -> Iterator[Any]:
        return map(self.make, self.texts())

    def texts(self) -> Iterator[str]:
        """The texts, of paths too: a Path for each of a million files takes seconds."""
        if not len(self):
            return
        low, prefix = int(self.starts.min()), self.prefix
        data = self.data[low : int(self.ends.max())].tobytes()
        for start, end in zip((self.starts - low).tolist(), (self.ends - low).tolist(), strict=True):
            yield os.fsdecode(prefix + data[start:end])

    def select(self, rows: NDArray[np.int64], /) -> Spans:
        """The texts in these rows; the bytes stay one array."""
        return Spans(self.prefix, self.data, self.starts[rows], self.ends[rows], self.make)


def read_plain_list(content: bytes, *, folder: Path) -> Samples[Sample] | None:
    """The samples of a list of plain lines; None for others, which want a look at each line.

    A plain list has one image and one mask in every line, one separator throughout, no comments, and no sample twice.
    All its files exist; with UNCHECKED lines and more that is left to the scan, which reports each that does not.
    """
    content = content.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n")
    if not content or not _is_plain(content):
        return None
    data = np.frombuffer(content if content.endswith(b"\n") else content + b"\n", np.uint8)
    fields = _split(data)
    if fields is None:
        return None
    images, masks = fields
    stems = _without_suffix(data, *images)
    if stems is None:
        return None
    names = (images[0] + (data[images[0]] == SLASH), stems)
    image, mask = _paths(data, images, folder), _paths(data, masks, folder)
    if image is None or mask is None or _repeats(data, *names):
        return None
    if len(image) < UNCHECKED and not all(map(isfile, chain(image.texts(), mask.texts()))):
        return None
    columns: dict[str, Column] = {"name": Spans(b"", data, *names, make=str), "image": image, "mask": mask}
    for entry in fields_of(Sample):
        columns.setdefault(entry.name, Constant(entry.default, len(image)))
    return Samples(Sample, columns)


def _is_plain(content: bytes) -> bool:
    """Whether it is text in UTF-8, with no marks that want care, and no blanks but those of ASCII."""
    if any(mark in content for mark in WITH_CARE):
        return False
    if content.isascii():
        return True
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return sys.getfilesystemencoding() == "utf-8" and FURTHER_BLANKS.search(content) is None


def _split(data: Bytes) -> tuple[tuple[Places, Places], tuple[Places, Places]] | None:
    """Where images and masks start and end; None where the first separator that occurs is not once in each line."""
    kind = np.int32 if len(data) < 2**31 else np.int64
    controls = np.flatnonzero(data < BLANK)  # a quick look: few bytes are tabs or ends of lines
    marks = data[controls]
    newlines = controls[marks == NEWLINE].astype(kind)
    separator = next((mark for mark in SEPARATORS if (marks == mark).any() or (mark >= BLANK and mark in data)), None)
    if separator is None:
        return None
    found = controls[marks == separator] if separator < BLANK else np.flatnonzero(data == separator)
    others = len(controls) - len(newlines) - (len(found) if separator < BLANK else 0)
    starts = np.concatenate([np.zeros(1, kind), newlines[:-1] + 1])
    if others or len(found) != len(newlines) or (found < starts).any() or (found > newlines).any():
        return None
    places: Places = found.astype(kind)
    images, masks = _stripped(data, starts, places), _stripped(data, places + 1, newlines)
    return None if images is None or masks is None else (images, masks)


def _stripped(data: Bytes, starts: Places, ends: Places) -> tuple[Places, Places] | None:
    """Fields without the blanks around them; None where nothing is left of one, or many are around it."""
    for _ in range(MOST_BLANKS):
        if (starts >= ends).any():
            return None
        before, after = data[starts] == BLANK, data[ends - 1] == BLANK
        if not before.any() and not after.any():
            return starts, ends
        starts, ends = starts + before, ends - after
    return None


def _without_suffix(data: Bytes, starts: Places, ends: Places) -> Places | None:
    """Where each path's stem ends; None where one has no stem, or no suffix of an image."""
    if (ends - starts < 6).any():  # shorter than a letter and the longest suffix
        return None
    last = _words(data, "<u4")[ends - 4] | np.uint32(0x20202020)  # of letters the lower ones, and of others no letter
    stems = np.zeros_like(ends)
    for suffix in map(str.encode, SUFFIXES):
        fits = last == np.uint32(int.from_bytes(suffix[-4:], "little"))
        if len(suffix) == 5:
            fits &= data[ends - 5] == DOT
        stems[fits] = ends[fits] - len(suffix)
    return None if (stems == 0).any() or (data[stems - 1] == SLASH).any() else stems


def _words(data: Bytes, kind: str) -> NDArray[Any]:
    """The words that start at each byte, with zeros after the end: [len(data)], without a copy of each."""
    padded = np.concatenate([data, np.zeros(8, np.uint8)])
    return np.ndarray((len(data),), kind, padded, strides=(1,))


def _paths(data: Bytes, places: tuple[Places, Places], folder: Path) -> Spans | None:
    """Paths relative to a folder, or from the root; None where some are the one and some the other."""
    absolute = data[places[0]] == SLASH
    if absolute.any() and not absolute.all():
        return None
    prefix = b"" if absolute.all() else os.fsencode(f"{folder}/")
    return Spans(prefix, data, *places, make=Path)


def _repeats(data: Bytes, starts: Places, ends: Places) -> bool:
    """Whether two fields seem to be the same: by a sum of 64 bits of each, of which two are the same by no chance worth
    a thought (and if they were, the lines would be looked at one by one)."""
    words = _words(data, "<u8")
    sums = (ends - starts).astype(np.uint64)
    for offset in range(0, int((ends - starts).max()), 8):
        left = np.clip(ends - starts - offset, 0, 8).astype(np.uint64)
        part = words[np.minimum(starts + offset, len(data) - 1)]
        part &= np.where(
            left == 8, ~np.uint64(0), (np.uint64(1) << (np.uint64(8) * left % np.uint64(64))) - np.uint64(1)
        )
        sums = (sums ^ part) * np.uint64(0x9E3779B97F4A7C15)
        sums ^= sums >> np.uint64(29)
    sums.sort()
    return bool((sums[1:] == sums[:-1]).any())
