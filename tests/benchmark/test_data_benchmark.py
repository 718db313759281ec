"""The benchmark of data measures every subject, beside its baseline, and writes what it shows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from segtrain.cli.main import main


@pytest.fixture
def config_file(folder_dataset: Callable[..., Any], tmp_path: Path) -> Path:
    made = folder_dataset(splits={"train": 6})
    path = tmp_path / "config.yaml"
    steps = [{"name": "crop", "size": [16, 16]}, {"name": "horizontal_flip"}]
    path.write_text(json.dumps(made.config | {"data": made.config["data"] | {"train_transforms": steps}}))
    return path


def test_every_subject_is_measured_against_the_bare_decode(
    config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "data.json"
    arguments = ["--images", "4", "--batch", "2", "--rounds", "3", "--out", str(out)]
    assert main(["benchmark", "data", str(config_file), *arguments]) == 0
    shown = capsys.readouterr().out
    result = json.loads(out.read_text())
    names = [row["name"] for row in result["rows"]]
    assert names == [
        "bare decode",
        "bare decode + transforms",
        "loader",
        "loader, cache: disk",
        "loader, cache: ram",
        "scan, first",
        "scan, from its cache",
    ]
    assert all(name in shown for name in names)
    rows = dict(zip(names, result["rows"], strict=True))
    assert rows["bare decode"]["to_decode"] == pytest.approx(1.0)
    assert rows["scan, from its cache"]["aim"]["found"] > 0
    assert result["transforms"] == ["crop", "horizontal_flip"]
    assert result["settings"]["images"] == 4


def test_parts_are_measured_alone(config_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", "data", str(config_file), "--images", "2", "--rounds", "3", "--parts", "scan"]) == 0
    shown = capsys.readouterr().out
    assert "scan, first" in shown
    assert "loader" not in shown


def test_a_layout_without_mask_files_is_refused(
    config_file: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["benchmark", "data", str(config_file), "data.layout=voc"]) == 2
    assert "measures folders, lists, table" in capsys.readouterr().err
