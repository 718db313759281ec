"""The layouts of text files and tables whose lines name images and masks: `lists` and `table`."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from segtrain.config.data import DataConfig
from segtrain.data.extras import require
from segtrain.data.formats.base import Layout, Listing, Row, pair_by_rows, read_bytes, read_text
from segtrain.data.formats.long_lists import read_plain_list
from segtrain.data.formats.readers import file_masks
from segtrain.errors import DataError, listing, some, suggest

Columns = Mapping[str, Sequence[Any]]
PARQUET = (".parquet", ".pq")


def _find_in_lists(data: DataConfig, root: Path, split: str) -> Listing:
    """Each line of root/<splits[split]> names an image and its mask, relative to root.

    The two are separated by a tab, else by a comma, else by blanks; empty lines and # comments are passed over.
    Of a long list the scan finds what is missing.
    """
    path = root / data.splits[split]
    what = f"split {split!r}: the list"
    plain = read_plain_list(read_bytes(path, what=what), folder=root)
    if plain is not None:
        return Listing(plain, [])
    rows = _pairs(read_text(path, what=what), path)
    if not rows:
        raise DataError(f"split {split!r}: {path} names no samples")
    return pair_by_rows(rows, folder=root, source=path)


def _pairs(text: str, path: Path) -> list[Row]:
    pairs, malformed = [], []
    for number, line in enumerate(text.splitlines(), start=1):
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


def _find_in_table(data: DataConfig, root: Path, split: str) -> Listing:
    """The lines of a table that are of this split; columns besides image, mask and split go along.

    Of a long table the scan finds what is missing, as of a long list.
    """
    path = _table_of(data, root, split)
    columns, numbers = read_table(path)
    wanted = [data.table.image, data.table.mask] + ([data.table.split] if data.table.file is not None else [])
    lost = [name for name in wanted if name not in columns]
    if lost:
        raise DataError(f"{path} has no column {lost[0]!r}{suggest(lost[0], columns)}; it has: {', '.join(columns)}")
    chosen = list(range(len(numbers)))
    if data.table.file is not None:
        parts = [_text(value) for value in columns[data.table.split]]
        chosen = [place for place in chosen if parts[place] == data.splits[split]]
        if not chosen:
            held = f"{path} has in its column {data.table.split!r}: {some(sorted(set(parts)), limit=10)}"
            raise DataError(f"split {split!r}: no line with {data.splits[split]!r}; {held}")
    if not chosen:
        raise DataError(f"split {split!r}: {path} names no samples")
    images, masks = ([_text(value) for value in columns[name]] for name in wanted[:2])
    empty = [f"line {numbers[place]}" for place in chosen if not (images[place] and masks[place])]
    if empty:
        raise DataError(listing(f"{path}: lines without an image or a mask: {len(empty)}", empty))
    extra = {name: columns[name] for name in columns if name not in wanted}
    lines = "\n".join([f"{images[place]}\t{masks[place]}" for place in chosen])
    plain = read_plain_list(lines.encode("utf-8", "surrogatepass"), folder=root)
    if plain is not None and len(plain) == len(chosen):  # else some text holds the end of a line
        return Listing(plain, [], columns={name: [values[place] for place in chosen] for name, values in extra.items()})
    rows = [Row(numbers[place], Path(images[place]), Path(masks[place])) for place in chosen]
    return _with_columns(pair_by_rows(rows, folder=root, source=path), rows, chosen, extra)


def _with_columns(found: Listing, rows: list[Row], chosen: list[int], columns: Columns) -> Listing:
    """Add the further columns of the samples that were kept."""
    places = {row.name: place for row, place in zip(reversed(rows), reversed(chosen), strict=True)}  # first lines win
    kept = [places[sample.name] for sample in found.samples]
    further = {name: [values[place] for place in kept] for name, values in columns.items()}
    return Listing(found.samples, found.problems, columns=further)


def _text(value: object) -> str:
    return "" if value is None else str(value).strip()


def _table_of(data: DataConfig, root: Path, split: str) -> Path:
    return root / (data.table.file if data.table.file is not None else data.splits[split])


def read_table(path: Path) -> tuple[dict[str, list[Any]], list[int]]:
    """The columns of a CSV (with a header) or Parquet file, and the number of each line in it.

    Raises:
        DataError: a file that cannot be read, repeated column names, or lines of another length than the header.
        ConfigError: a Parquet file, and pyarrow is missing.
    """
    if path.suffix.lower() in PARQUET:
        return _read_parquet(path)
    return _read_csv(path)


def _read_csv(path: Path) -> tuple[dict[str, list[Any]], list[int]]:
    text = read_text(path, what="the table")
    lines = _lines(text, path)
    header = [name.strip() for name in next(lines, (0, []))[1]]
    if not header or not all(header) or len(set(header)) != len(header):
        raise DataError(f"{path}: expected a first line of distinct column names, found {header}")
    columns: dict[str, list[Any]] = {name: [] for name in header}
    numbers, malformed = [], []
    for number, fields in lines:
        if len(fields) != len(header):
            malformed.append(f"line {number}: {len(fields)} fields")
            continue
        numbers.append(number)
        for name, value in zip(header, fields, strict=True):
            columns[name].append(value)
    if malformed:
        head = f"{path}: expected {len(header)} fields in each line; lines that do not fit: {len(malformed)}"
        raise DataError(listing(head, malformed))
    return columns, numbers


def _lines(text: str, path: Path) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(text.splitlines(keepends=True), strict=True)
    try:
        for fields in reader:
            if fields:
                yield reader.line_num, fields
    except csv.Error as error:
        raise DataError(f"{path}: line {reader.line_num} is no CSV ({error})") from error


def _read_parquet(path: Path) -> tuple[dict[str, list[Any]], list[int]]:
    parquet = require("pyarrow.parquet", extra="tables", what=f"{path} is a Parquet table")
    errors = require("pyarrow", extra="tables", what=f"{path} is a Parquet table").ArrowException
    try:
        table = parquet.read_table(path)
    except (OSError, ValueError, errors) as error:
        raise DataError(f"the table {path} cannot be read ({error})") from error
    columns = {name: table.column(name).to_pylist() for name in table.column_names}
    return columns, list(range(1, table.num_rows + 1))


def _exists(data: DataConfig, root: Path, split: str) -> bool:
    return (root / data.splits[split]).exists()


def _exists_in_table(data: DataConfig, root: Path, split: str) -> bool:
    path = _table_of(data, root, split)
    if data.table.file is None or not path.exists():
        return path.exists()
    columns, _ = read_table(path)
    return data.splits[split] in map(_text, columns.get(data.table.split, ()))


LISTS = Layout(_find_in_lists, _exists, file_masks)
TABLE = Layout(_find_in_table, _exists_in_table, file_masks)
