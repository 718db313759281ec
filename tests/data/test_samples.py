"""Packed samples are what was packed, in any order, after pickling, and in few bytes."""

from __future__ import annotations

import gc
import os
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segtrain.data.samples import Samples


@dataclass(frozen=True)
class Record:
    """One of each type that a sample may hold."""

    name: str
    image: Path
    mask: Path | None
    page: int | None = None
    weight: float = 1.0
    extra: tuple[Path | None, ...] = ()


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=8)
PATHS = NAMES.map(lambda name: Path("/data/images", name.replace("/", "_")))
RECORDS = st.builds(
    Record,
    name=NAMES,
    image=PATHS,
    mask=PATHS | st.none(),
    page=st.integers(-(2**62), 2**62) | st.none(),
    weight=st.floats(allow_nan=False),
    extra=st.lists(PATHS | st.none(), max_size=3).map(tuple),
)


@given(st.lists(RECORDS, max_size=12), st.data())
def test_packed_samples_are_what_was_packed(records: list[Record], data: st.DataObject) -> None:
    packed = Samples.pack(records)
    assert len(packed) == len(records)
    assert list(packed) == records
    assert [packed[index] for index in range(len(records))] == records
    assert list(pickle.loads(pickle.dumps(packed))) == records
    if records:
        rows = data.draw(st.lists(st.integers(0, len(records) - 1), max_size=15))
        assert list(packed.select(rows)) == [records[row] for row in rows]
        kept = data.draw(st.lists(st.booleans(), min_size=len(records), max_size=len(records)))
        assert list(packed.select(np.array(kept))) == [one for one, keep in zip(records, kept, strict=True) if keep]
        start, stop, step = (data.draw(st.integers(-13, 13)) for _ in range(3))
        assert list(packed[start : stop : step or 1]) == records[start : stop : step or 1]


def test_values_keep_their_types() -> None:
    one = Samples.pack([Record("a", Path("i"), None, page=3), Record("b", Path("j"), Path("m"))])[0]
    assert [type(value) for value in (one.name, one.image, one.mask, one.page, one.weight)] == [
        str,
        type(Path()),
        type(None),
        int,
        float,
    ]


def test_names_that_are_no_utf8_come_back_as_they_were() -> None:
    path = Path(os.fsdecode(b"/data/caf\xe9.png"))
    other = Path(os.fsdecode(b"/data/caf\xe8.png"))
    assert [one.image for one in Samples.pack([Record("a", path, None), Record("b", other, None)])] == [path, other]


def test_a_missing_index_is_an_error_and_ends_a_loop() -> None:
    packed = Samples.pack([Record("a", Path("i"), None)])
    assert packed[-1] == packed[0]
    for index in (1, -2):
        with pytest.raises(IndexError, match="of 1"):
            packed[index]


def test_an_empty_set_has_a_length_and_columns() -> None:
    packed: Samples[Record] = Samples.pack([])
    assert (len(packed), list(packed), list(packed.column("name")), packed[:3]) == (0, [], [], [])


def test_one_field_can_be_read_without_the_records() -> None:
    packed = Samples.pack([Record(name, Path(name), None) for name in ("a", "b")])
    assert list(packed.column("name")) == ["a", "b"]


def test_samples_equal_any_sequence_of_the_same_records() -> None:
    records = [Record("a", Path("i"), None), Record("b", Path("j"), None)]
    assert Samples.pack(records) == records
    assert Samples.pack(records) != records[:1]
    assert Samples.pack(records) != records[::-1]


@dataclass(frozen=True)
class Wrong:
    """Holds what no array can."""

    value: Any


@pytest.mark.parametrize("values", [[{}], [object()], ["a", 1], [1, True]])
def test_what_does_not_fit_an_array_is_refused(values: list[Any]) -> None:
    with pytest.raises(TypeError, match="expected one of str, Path, int"):
        Samples.pack([Wrong(value) for value in values])


def test_a_packed_set_holds_no_object_for_each_sample_and_few_bytes() -> None:
    records = [
        Record(f"{i:05}", Path(f"/data/images/{i:05}.jpg"), Path(f"/data/masks/{i:05}.png")) for i in range(5000)
    ]
    packed = Samples.pack(records)
    del records
    gc.collect()
    before = len(gc.get_objects())
    copy = pickle.loads(pickle.dumps(packed))
    assert len(gc.get_objects()) - before < 100
    assert len(copy) == 5000
    assert len(pickle.dumps(packed)) < 5000 * 50
