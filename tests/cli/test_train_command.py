"""`segtrain train` ends with the per-class table, the checkpoint and three commands that work."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from segtrain.cli.main import main


@pytest.fixture
def training_file(folder_dataset: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    config = folder_dataset().config
    config["output"] = "runs"
    config["model"] |= {"params": {"encoder_depth": 3, "decoder_channels": [16, 8, 8]}}
    path = tmp_path / "small.yaml"
    with path.open("w") as stream:
        YAML().dump(config, stream)
    return path


def test_the_table_the_checkpoint_and_the_next_commands_are_printed_and_work(
    training_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(training_file), "name=first"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("first: what differs from the defaults\n\nname: first\n")
    for word in ("background", "block", "dot", "mean IoU", "best checkpoint: runs/first/checkpoints/best.pt"):
        assert word in text
    commands = [shlex.split(line) for line in text.splitlines() if line.strip().startswith("python tools/")]
    assert [Path(command[1]).stem for command in commands] == ["evaluate", "visualize", "predict"]
    for command in commands:
        assert main([Path(command[1]).stem, *command[2:]]) == 0
    assert len(list(Path("predictions/first").rglob("*.png"))) == 4


def test_the_output_fits_80_columns(training_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "dumb")
    assert main(["train", str(training_file), "name=first"]) == 0
    lines = capsys.readouterr().out.splitlines()
    table = [line for line in lines if line.strip().startswith(("background", "block", "dot", "class"))]
    assert table
    assert max(len(line) for line in table) <= 80


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.encoder=resnet", "model.encoder: 'resnet' is unknown"),
        ("data.root=nowhere", "nowhere"),
        ("train.best_metric=val/iou/dott", "did you mean 'val/iou/dot'"),
    ],
)
def test_an_error_before_the_first_step_is_all_that_is_printed(
    training_file: Path, capsys: pytest.CaptureFixture[str], override: str, message: str
) -> None:
    assert main(["train", str(training_file), "name=first", override]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("error: ")
    assert message in told.err
