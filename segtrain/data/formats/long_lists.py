"""Plain lists of image and mask files, read column by column: a million lines in a few seconds."""

from __future__ import annotations

from dataclasses import fields as fields_of
from itertools import chain
from os.path import isfile  # of texts: a Path for each of a million files takes seconds
from pathlib import Path
from typing import NamedTuple

from segtrain.data.formats.base import Sample
from segtrain.data.headers import SUFFIXES
from segtrain.data.samples import Column, Constant, Samples, Texts

UNCHECKED = 100_000  # lines from which on the files are not looked for: the scan opens them anyway
SEPARATORS = ("\t", ",", " ")
WITH_CARE = ("#", "//", "./", "\\")  # comments, and paths that have a shorter form


class _Pairs(NamedTuple):
    images: list[str]
    masks: list[str]


def read_plain_list(text: str, *, folder: Path) -> Samples[Sample] | None:
    """The samples of a list of plain lines; None for others, which want a look at each line.

    A plain list has one image and one mask in every line, one separator throughout, no comments, and no sample twice.
    All its files exist; with UNCHECKED lines and more that is left to the scan, which reports each that does not.
    """
    lines = text.splitlines()
    if not lines or any(mark in text for mark in WITH_CARE):
        return None
    pairs = _split(text, lines)
    if pairs is None or not _are_images(pairs.images):
        return None
    names = [image.rpartition(".")[0].lstrip("/") for image in pairs.images]
    if len(set(names)) != len(names):
        return None
    images, masks = _joined(folder, pairs.images), _joined(folder, pairs.masks)
    if len(lines) < UNCHECKED and not all(map(isfile, chain(images, masks))):
        return None
    columns: dict[str, Column] = {
        entry.name: Constant(entry.default, len(names)) for entry in fields_of(Sample) if entry.name in ("key", "files")
    }
    columns |= {
        "name": Texts.pack(names, make=str),
        "image": Texts.pack(images, make=Path),
        "mask": Texts.pack(masks, make=Path),
    }
    return Samples(Sample, {entry.name: columns[entry.name] for entry in fields_of(Sample)})


def _are_images(paths: list[str]) -> bool:
    found = {path.rpartition(".")[2] for path in paths}
    return {f".{suffix.lower()}" for suffix in found} <= SUFFIXES.keys()


def _split(text: str, lines: list[str]) -> _Pairs | None:
    """The two columns, or None where the first separator that occurs does not stand once in each line."""
    separator = next((mark for mark in SEPARATORS if mark in text), "\t")
    if text.count(separator) != len(lines) or not all(separator in line for line in lines):
        return None
    fields = [field.strip() for field in separator.join(lines).split(separator)]  # no object for each line
    images, masks = fields[::2], fields[1::2]
    return _Pairs(images, masks) if all(images) and all(masks) else None


def _joined(folder: Path, paths: list[str]) -> list[str]:
    start = f"{folder}/"
    return [path if path[0] == "/" else start + path for path in paths]
