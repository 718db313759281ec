"""The samples of a split as arrays: a million of them without a Python object each, shared by workers as they are."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import chain
from pathlib import Path
from typing import Any, Generic, Protocol, SupportsIndex, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

Indices = Sequence[int] | NDArray[np.integer[Any]] | NDArray[np.bool_]


class Column(Protocol):
    """The values of one field of all samples."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Any: ...
    def __iter__(self) -> Iterator[Any]: ...
    def select(self, rows: NDArray[np.int64], /) -> Column: ...


Record = TypeVar("Record")


class Samples(Sequence[Record], Generic[Record]):
    """A read-only sequence of records (instances of one dataclass, such as Sample), made anew at each access.

    A list of a million samples is some gigabytes of small objects: slow to make, slow to send, and copied into each
    forked worker page by page as their reference counts move. Here each field is a few arrays: forked workers share
    them, and others get them in one piece.
    """

    def __init__(self, kind: Callable[..., Record], columns: Mapping[str, Column]) -> None:
        """From one column for each field of `kind`, all of one length."""
        self._kind = kind
        self._columns = dict(columns)
        lengths = {len(column) for column in self._columns.values()}
        assert len(lengths) <= 1, f"columns of different lengths: {sorted(lengths)}"
        self._length = lengths.pop() if lengths else 0

    @classmethod
    def pack(cls, records: Iterable[Record]) -> Samples[Record]:
        """From records whose fields are str, Path, int, float, bool, None, or tuples of these, or pack themselves.

        Raises:
            TypeError: a field of another type, or of types that differ from record to record (None apart).
        """
        if isinstance(records, Samples):
            return records
        records = list(records)
        if not records:
            return cls(_no_record, {})
        kind = type(records[0])
        names = [entry.name for entry in fields(kind)]  # type: ignore[arg-type]  # dataclasses by the contract
        return cls(kind, {name: pack_column([getattr(one, name) for one in records]) for name in names})

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: SupportsIndex, /) -> Record: ...
    @overload
    def __getitem__(self, index: slice, /) -> Samples[Record]: ...
    def __getitem__(self, index: SupportsIndex | slice, /) -> Record | Samples[Record]:
        if isinstance(index, slice):
            return self.select(range(*index.indices(self._length)))
        number = index.__index__()
        row = number + self._length if number < 0 else number
        if not 0 <= row < self._length:
            raise IndexError(f"sample {number} of {self._length}")
        return self._kind(**{name: column[row] for name, column in self._columns.items()})

    def __iter__(self) -> Iterator[Record]:
        names = list(self._columns)
        for values in zip(*self._columns.values(), strict=True):
            yield self._kind(**dict(zip(names, values, strict=True)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or len(other) != self._length:
            return NotImplemented if not isinstance(other, Sequence) else False
        return all(mine == theirs for mine, theirs in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]  # equal to lists, which have none

    def __repr__(self) -> str:
        return f"Samples({self._length} x {getattr(self._kind, '__name__', self._kind)})"

    def column(self, name: str) -> Column:
        """One field of all samples, without making the records; empty where there are none."""
        return self._columns[name] if self._columns else Texts.pack([], make=str)

    def select(self, indices: Indices) -> Samples[Record]:
        """The samples at these indices (from 0), in their order, or those where a bool array is true."""
        chosen = np.asarray(indices)
        rows = np.flatnonzero(chosen) if chosen.dtype == np.bool_ else chosen.astype(np.int64).reshape(-1)
        return Samples(self._kind, {name: column.select(rows) for name, column in self._columns.items()})


def _no_record(**values: Any) -> Any:
    raise AssertionError("no samples")


def pack_column(values: Sequence[Any]) -> Column:
    """The values of one field as arrays, by their type; see Samples.pack."""
    types = {type(value) for value in values} - {type(None)}
    if not types:
        return Constant(None, len(values))
    if len(types) == 1 and types <= {int, float, bool, tuple} and values.count(values[0]) == len(values):
        return Constant(values[0], len(values))
    if len(types) == 1 and hasattr(next(iter(types)), "pack_column"):  # paths that are more than their text
        (own,) = types
        return _optional(values, own.pack_column, next(value for value in values if value is not None))
    if all(issubclass(each, Path) for each in types):
        return _optional(values, lambda given: Texts.pack([os.fspath(path) for path in given], make=Path), Path())
    if len(types) == 1:
        (kind,) = types
        if kind is str:
            return _optional(values, lambda given: Texts.pack(given, make=str), "")
        if kind in (int, float, bool):
            return _optional(values, lambda given: Numbers.pack(given, make=kind), kind(0))
        if kind is tuple:
            return _optional(values, Tuples.pack, ())
    names = ", ".join(sorted(each.__name__ for each in types))
    raise TypeError(f"a field of samples holds {names}: expected one of str, Path, int, float, bool or tuple, or None")


def _optional(values: Sequence[Any], pack: Callable[[Sequence[Any]], Column], filler: Any) -> Column:
    present = np.array([value is not None for value in values], np.bool_)
    if present.all():
        return pack(values)
    return Optional(pack([filler if value is None else value for value in values]), present)


@dataclass(frozen=True, eq=False)
class Constant:
    """One value for all samples."""

    value: Any
    length: int

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int, /) -> Any:
        return self.value

    def __iter__(self) -> Iterator[Any]:
        return (self.value for _ in range(self.length))

    def select(self, rows: NDArray[np.int64], /) -> Constant:
        return Constant(self.value, len(rows))


@dataclass(frozen=True, eq=False)
class Numbers:
    """int64, float64 or bool [N], given back as Python's own."""

    values: NDArray[Any]
    make: Callable[[Any], Any]

    @classmethod
    def pack(cls, values: Sequence[Any], *, make: type[Any]) -> Numbers:
        return cls(np.array(values, {int: np.int64, float: np.float64, bool: np.bool_}[make]), make)

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: int, /) -> Any:
        return self.make(self.values[index])

    def __iter__(self) -> Iterator[Any]:
        return iter(self.values.tolist())

    def select(self, rows: NDArray[np.int64], /) -> Numbers:
        return Numbers(self.values[rows], self.make)


@dataclass(frozen=True, eq=False)
class Texts:
    """Strings or paths: what all begin with, once, and the bytes of the rest, one after another.

    rest: uint8 [bytes]; text i is `prefix` and rest[ends[i - 1]:ends[i]], ends: int64 [N]. Bytes are those of file
    names, so that names that are no UTF-8 come back as they were.
    """

    prefix: bytes
    rest: NDArray[np.uint8]
    ends: NDArray[np.int64]
    make: Callable[[str], Any]

    @classmethod
    def pack(cls, texts: Sequence[str], *, make: Callable[[str], Any]) -> Texts:
        if not texts:
            return cls(b"", np.zeros(0, np.uint8), np.zeros(0, np.int64), make)
        start = _common(min(texts), max(texts))
        joined = "".join([text[start:] for text in texts])
        if joined.isascii():
            lengths = np.fromiter(map(len, texts), np.int64, len(texts)) - start
            rest = joined.encode("ascii")
        else:
            parts = [os.fsencode(text[start:]) for text in texts]
            lengths = np.fromiter(map(len, parts), np.int64, len(parts))
            rest = b"".join(parts)
        return cls(os.fsencode(texts[0][:start]), np.frombuffer(rest, np.uint8), np.cumsum(lengths), make)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int, /) -> Any:
        start = int(self.ends[index - 1]) if index else 0
        return self.make(os.fsdecode(self.prefix + self.rest[start : int(self.ends[index])].tobytes()))

    def __iter__(self) -> Iterator[Any]:
        return map(self.make, self.texts())

    def texts(self) -> Iterator[str]:
        """The texts, of paths too."""
        rest, start, prefix = self.rest.tobytes(), 0, self.prefix
        for end in self.ends.tolist():
            yield os.fsdecode(prefix + rest[start:end])
            start = end

    def select(self, rows: NDArray[np.int64], /) -> Texts:
        starts = np.concatenate([np.zeros(1, np.int64), self.ends])[rows]
        lengths = self.ends[rows] - starts
        ends = np.cumsum(lengths)
        total = int(ends[-1]) if len(ends) else 0
        bytes_from = np.repeat(starts - ends + lengths, lengths) + np.arange(total)
        return Texts(self.prefix, self.rest[bytes_from], ends, self.make)


def _common(first: str, second: str) -> int:
    """The number of characters with which both begin; of the least and the greatest of many: of all of them."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((place for place, (one, other) in pairs if one != other), min(len(first), len(second)))


@dataclass(frozen=True, eq=False)
class Tuples:
    """Tuples of any lengths: their values in one column, and where each ends, int64 [N]."""

    values: Column
    ends: NDArray[np.int64]

    @classmethod
    def pack(cls, tuples: Sequence[tuple[Any, ...]]) -> Tuples:
        ends = np.cumsum(np.fromiter(map(len, tuples), np.int64, len(tuples)))
        return cls(pack_column(list(chain.from_iterable(tuples))), ends)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int, /) -> tuple[Any, ...]:
        start = int(self.ends[index - 1]) if index else 0
        return tuple(self.values[number] for number in range(start, int(self.ends[index])))

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        return (self[index] for index in range(len(self.ends)))

    def select(self, rows: NDArray[np.int64], /) -> Tuples:
        starts = np.concatenate([np.zeros(1, np.int64), self.ends])[rows]
        lengths = self.ends[rows] - starts
        ends = np.cumsum(lengths)
        total = int(ends[-1]) if len(ends) else 0
        return Tuples(self.values.select(np.repeat(starts - ends + lengths, lengths) + np.arange(total)), ends)


@dataclass(frozen=True, eq=False)
class Optional:
    """A column in which some values are None: where `present`, bool [N], is false."""

    values: Column
    present: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.present)

    def __getitem__(self, index: int, /) -> Any:
        return self.values[index] if self.present[index] else None

    def __iter__(self) -> Iterator[Any]:
        return (value if there else None for value, there in zip(self.values, self.present.tolist(), strict=True))

    def select(self, rows: NDArray[np.int64], /) -> Optional:
        return Optional(self.values.select(rows), self.present[rows])
