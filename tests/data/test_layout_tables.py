"""Tables of CSV and Parquet: their lines become samples, further columns are kept, and what does not fit is told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from segtrain.config.data import DataConfig
from segtrain.data import extras
from segtrain.data.formats import find_samples, long_lists, present_splits, tables
from segtrain.errors import ConfigError, DataError

Make = Callable[..., DataConfig]
Save = Callable[..., Path]
DOT = np.zeros((4, 4), np.uint8)
TABLE = "photo,label,part,site\na.png,ma.png,fit,north\n\nb.png,mb.png,check,south\nc.png,mc.png,fit,east\n"
COLUMNS = {"file": "index.csv", "image": "photo", "mask": "label", "split": "part"}


@pytest.fixture
def table(data_config: Make, save: Save, tmp_path: Path) -> Callable[..., DataConfig]:
    """Write a table (a text, or columns as Parquet) and the files that its lines name; returns the data section."""

    def make(content: str | dict[str, list[Any]] = TABLE, **changes: Any) -> DataConfig:
        for name in "abc":
            save(f"{name}.png", DOT)
            save(f"m{name}.png", DOT)
        options = dict(COLUMNS)
        if isinstance(content, str):
            (tmp_path / "index.csv").write_text(content, encoding="utf-8-sig")
        else:
            arrow = pytest.importorskip("pyarrow", reason="the extra `tables` is not installed")
            parquet = pytest.importorskip("pyarrow.parquet", reason="the extra `tables` is not installed")
            options["file"] = "index.parquet"
            parquet.write_table(arrow.table(content), tmp_path / "index.parquet")
        values = {"layout": "table", "table": options, "splits": {"train": "fit", "val": "check"}} | changes
        return data_config(**values)

    return make


def test_lines_of_a_split_are_samples_and_other_columns_go_along(table: Make, tmp_path: Path) -> None:
    found = find_samples(table(), "train")
    assert [(sample.name, sample.mask) for sample in found.samples] == [
        ("a", tmp_path / "ma.png"),
        ("c", tmp_path / "mc.png"),
    ]
    assert found.columns == {"site": ["north", "east"]}
    assert [sample.name for sample in find_samples(table(), "val").samples] == ["b"]


def test_columns_stay_with_their_samples_where_lines_are_bad(table: Make) -> None:
    text = TABLE + "gone.png,ma.png,fit,west\na.png,mb.png,fit,again\nb.png,none.png,fit,far\n"
    found = find_samples(table(text), "train")
    assert found.columns == {"site": ["north", "east"]}
    reasons = [problem.reason for problem in found.problems]
    assert [reason.split(" (")[0].split(" name")[0] for reason in reasons] == [
        "no such image",
        "lines 2 and 7",
        "no such mask",
    ]


def test_a_parquet_table_gives_what_the_same_csv_gives(table: Make) -> None:
    names, parts = ["a.png", "b.png", "c.png"], ["fit", "check", "fit"]
    content = {
        "photo": names,
        "label": [f"m{name}" for name in names],
        "part": parts,
        "site": ["north", "south", "east"],
    }
    parquet, text = find_samples(table(content), "train"), find_samples(table(), "train")
    assert (parquet.samples, parquet.columns) == (text.samples, text.columns)


def test_a_damaged_parquet_table_and_a_missing_pyarrow_are_told(
    table: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = table(table={**COLUMNS, "file": "index.parquet"})
    (tmp_path / "index.parquet").write_bytes(b"PAR1 this is none")
    pytest.importorskip("pyarrow", reason="the extra `tables` is not installed")
    with pytest.raises(DataError, match=r"index\.parquet cannot be read"):
        find_samples(config, "train")

    def absent(name: str) -> None:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(extras.importlib, "import_module", absent)
    with pytest.raises(ConfigError, match=r"index\.parquet is a Parquet table, which takes pyarrow .*its extra tables"):
        find_samples(config, "train")


def test_each_split_may_have_a_table_of_its_own(table: Make, tmp_path: Path) -> None:
    (tmp_path / "val.csv").write_text("image,mask\nb.png,mb.png\n")
    config = table(table={}, splits={"train": "index.csv", "val": "val.csv"})
    assert [sample.name for sample in find_samples(config, "val").samples] == ["b"]
    with pytest.raises(DataError, match=r"index\.csv has no column 'image'; it has: photo, label, part, site"):
        find_samples(config, "train")
    assert present_splits(config) == ["train", "val"]


def test_splits_are_present_whose_value_is_in_the_table(table: Make) -> None:
    splits = {"train": "fit", "val": "check", "test": "held out"}
    assert present_splits(table(splits=splits)) == ["train", "val"]
    with pytest.raises(DataError, match=r"no line with 'held out'; .* in its column 'part': check, fit"):
        find_samples(table(splits=splits), "test")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "photo,label,part\na.png,ma.png\n",
            "expected 3 fields in each line; lines that do not fit: 1\n  line 2: 2 fields",
        ),
        ("photo,label,prat\na.png,ma.png,fit\n", "has no column 'part'; did you mean 'prat'"),
        ("photo,photo,part\n", "expected a first line of distinct column names"),
        ("", "expected a first line of distinct column names"),
        ("photo,label,part\n,ma.png,fit\n", "lines without an image or a mask: 1\n  line 2"),
        ('photo,label,part\n"a.png" x,ma.png,fit\n', "line 2 is no CSV"),
    ],
)
def test_tables_that_do_not_fit_are_told(table: Make, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        find_samples(table(text), "train")


def test_options_of_tables_are_refused_in_other_layouts(data_config: Make) -> None:
    with pytest.raises(ValidationError, match="table: belongs to layout: table, and the layout is folders"):
        data_config(table={"file": "index.csv"})


@pytest.fixture
def plain(table: Make, save: Save) -> Callable[[str], DataConfig]:
    """A table whose paths are long enough to be read as those of a list, and the files that it may name."""

    def make(lines: str) -> DataConfig:
        for name in ("first", "second", "third"):
            save(f"{name}.png", DOT)
            save(f"{name}_mask.png", DOT)
        return table(f"photo,label,part,site\n{lines}")

    return make


LINES = (
    "first.png,first_mask.png,fit,north\n second.png ,second_mask.png,check,south\nthird.png,third_mask.png,fit,east\n"
)


def test_a_plain_table_is_read_as_a_list_and_gives_what_line_by_line_gives(
    plain: Callable[[str], DataConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    data, splits = plain(LINES), ("train", "val")
    with monkeypatch.context() as quick:
        quick.setattr(tables, "pair_by_rows", None)
        found = [find_samples(data, split) for split in splits]
    monkeypatch.setattr(tables, "read_plain_list", lambda content, folder: None)
    for quickly, split in zip(found, splits, strict=True):
        carefully = find_samples(data, split)
        assert list(quickly.samples) == list(carefully.samples)
        assert (quickly.columns, quickly.problems) == (carefully.columns, carefully.problems)


def test_an_end_of_line_within_a_field_makes_no_further_sample(plain: Callable[[str], DataConfig]) -> None:
    data = plain('"first.png\tfirst_mask.png\nsecond.png",second_mask.png,fit,\nthird.png,third_mask.png,fit,\n')
    found = find_samples(data, "train")
    assert [sample.name for sample in found.samples] == ["third"]
    assert len(found.problems) == 1


def test_a_long_table_leaves_missing_files_to_the_scan(
    plain: Callable[[str], DataConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = plain(LINES + "gone.png,first_mask.png,fit,west\n")
    assert len(find_samples(data, "train").problems) == 1
    monkeypatch.setattr(long_lists, "UNCHECKED", 3)
    found = find_samples(data, "train")
    assert [sample.name for sample in found.samples] == ["first", "third", "gone"]
    assert found.columns == {"site": ["north", "east", "west"]}
