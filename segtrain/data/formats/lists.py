"""The layout `lists`: one text file for each split, whose lines name an image and its mask."""

from __future__ import annotations

from pathlib import Path

from segtrain.config.data import DataConfig
from segtrain.data.formats.base import Layout, Listing, Row, pair_by_rows, read_text
from segtrain.data.formats.readers import file_masks
from segtrain.errors import DataError, listing


def _find(data: DataConfig, root: Path, split: str) -> Listing:
    """Each line of root/<splits[split]> names an image and its mask, relative to root.

    The two are separated by a tab, else by a comma, else by blanks; empty lines and # comments are passed over.
    """
    path = root / data.splits[split]
    rows = _pairs(path, split)
    if not rows:
        raise DataError(f"split {split!r}: {path} names no samples")
    return pair_by_rows(rows, folder=root, source=path)


def _pairs(path: Path, split: str) -> list[Row]:
    pairs, malformed = [], []
    for number, line in enumerate(read_text(path, split=split, what="the list").splitlines(), start=1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        separator = next((mark for mark in ("\t", ",") if mark in stripped), None)
        fields = [field.strip() for field in stripped.split(separator)]
        if len(fields) != 2 or not all(fields):
            malformed.append(f"line {number}: {stripped!r}")
        else:
            pairs.append(Row(number, Path(fields[0]), Path(fields[1])))
    if malformed:
        head = f"{path}: expected an image and a mask in each line; lines that do not fit: {len(malformed)}"
        raise DataError(listing(head, malformed))
    return pairs


def _exists(data: DataConfig, root: Path, split: str) -> bool:
    return (root / data.splits[split]).exists()


LISTS = Layout(_find, _exists, file_masks)
