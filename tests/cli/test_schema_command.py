"""The command `schema` writes the JSON Schema where it is asked to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from segtrain.cli.main import main
from segtrain.config.schema_json import json_schema


def test_it_writes_the_schema_to_a_file_or_to_standard_output(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "deep" / "schema.json"
    assert main(["schema", "--out", str(path)]) == 0
    assert json.loads(path.read_text(encoding="utf-8")) == json_schema()
    capsys.readouterr()
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out) == json_schema()


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"error: Is a directory: {tmp_path}\n"
