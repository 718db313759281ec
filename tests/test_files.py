"""Files are whole or not there, and what cannot be written is told with the reason."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from segtrain.errors import SegtrainError
from segtrain.files import write_csv, write_json, write_whole


def test_folders_are_made_and_older_files_replaced(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / ("n" * 250 + ".txt")
    write_whole(path, b"old and longer")
    write_whole(path, b"new")
    assert path.read_bytes() == b"new"
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failed_write_leaves_the_older_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def fail(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "file.txt"
    write_whole(path, b"old")
    monkeypatch.setattr(*((os, "fsync") if step == "fsync" else (Path, "replace")), fail)
    with pytest.raises(SegtrainError, match=r"file\.txt cannot be written \(No space left on device\): make room"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(SegtrainError, match=r"a\.txt cannot be written"):
        write_whole(tmp_path / "out" / "a.txt", b"")
    assert (tmp_path / "out").read_text() == "mine"


def test_json_is_plain_text_that_any_reader_takes(tmp_path: Path) -> None:
    value = {"name": "Straße", "file": "\udce4.png", "list": [1, None]}
    write_json(tmp_path / "a.json", value)
    text = (tmp_path / "a.json").read_bytes().decode("utf-8")
    assert json.loads(text) == value
    assert "Straße" in text
    assert text.endswith("}\n")
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "b.json", [float("nan")])
    assert not (tmp_path / "b.json").exists()


def test_csv_quotes_what_needs_it(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", [["a,b", 1], [None, "ü"]])
    assert (tmp_path / "a.csv").read_bytes().decode() == '"a,b",1\r\n,ü\r\n'
