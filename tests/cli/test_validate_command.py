"""The command validate prints findings that fit a terminal, writes them for machines, and exits 1 on problems."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from segtrain.cli.main import main


@pytest.fixture
def training_file(folder_dataset: Callable[..., Any], tmp_path: Path) -> tuple[str, Path]:
    """A training file of a tiny set, and the set's folder."""
    made = folder_dataset(splits={"train": 4, "val": 2})
    path = tmp_path / "tiny.yaml"
    with path.open("w") as stream:
        YAML().dump(made.config, stream)
    return str(path), made.root


def test_a_good_set_is_ok(training_file: tuple[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", training_file[0]]) == 0
    printed = capsys.readouterr().out
    assert "good samples: train 4, val 2" in printed
    assert "OK: nothing found" in printed


def test_problems_exit_1_and_go_into_json_with_all_their_files(
    training_file: tuple[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, root = training_file
    for number in range(3):
        (root / f"images/train/scene_{number:02}.png").unlink()
        (root / f"masks/val/scene_{number:02}.png").unlink(missing_ok=True)
    out = tmp_path / "found.json"
    assert main(["validate", config, "--files", "1", "--json", str(out)]) == 1
    printed = capsys.readouterr().out
    assert "PROBLEM missing: files missing, 2" in printed
    assert "WARNING unused_masks: masks without an image, 3" in printed
    assert "and 2 more" in printed
    assert max(map(len, printed.splitlines())) <= 160  # only paths are longer than the terminal
    content = json.loads(out.read_text())
    assert content["ok"] is False
    kinds = {finding["kind"]: finding for finding in content["findings"]}
    assert kinds["missing"]["severity"] == "problem"
    assert [one["file"] for one in kinds["unused_masks"]["files"]] == [
        f"masks/train/scene_{number:02}.png" for number in range(3)
    ]


def test_warnings_exit_1_only_if_strict_and_accepted_kinds_never(training_file: tuple[str, Path]) -> None:
    config, root = training_file
    (root / "images/train/scene_00.png").unlink()
    assert main(["validate", config]) == 0
    assert main(["validate", config, "--strict"]) == 1
    assert main(["validate", config, "--strict", "--accept", "unused_masks"]) == 0


def test_chosen_splits_alone_are_looked_at(training_file: tuple[str, Path]) -> None:
    config, root = training_file
    (root / "masks/val/scene_00.png").unlink()
    assert main(["validate", config, "--splits", "train"]) == 0
    assert main(["validate", config, "--splits", "val"]) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--accept", "mising"], "did you mean 'missing'"),
        (["--threshold", "99"], "0 to 47 bits"),
        (["--threshold", "9", "--no-duplicates"], "exclude each other"),
    ],
)
def test_wrong_arguments_are_refused(
    training_file: tuple[str, Path], capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["validate", training_file[0], *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("command", [["validate"], ["split", "--dry-run"]])
def test_a_missing_folder_is_named_with_where_it_was_looked_for(
    training_file: tuple[str, Path], command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    config, root = training_file
    assert main([command[0], config, "data.root=nowhere", *command[1:]]) != 0
    assert f"data.root: no folder nowhere (seen from {Path.cwd()})" in capsys.readouterr().err
    (root / "images").rename(root / "pictures")
    assert main([command[0], config, *command[1:]]) != 0
    assert f"none of the splits train, val, test is there under {root}" in capsys.readouterr().err
