"""Wrong input of every kind, through the real commands: one clear message on standard error and exit code 2."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from segtrain.cli.main import main
from segtrain.config import dump_config, parse_config

Tell = Callable[[list[str]], str]


@pytest.fixture
def experiment(folder_dataset: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny data set in ./dataset and a training file x.yaml for it, in the current folder."""
    dataset = folder_dataset()
    monkeypatch.chdir(tmp_path)
    config = parse_config({**dataset.config, "data": {**dataset.config["data"], "root": "dataset"}})
    (tmp_path / "x.yaml").write_text(dump_config(config), encoding="utf-8")
    return tmp_path


@pytest.fixture
def tell(experiment: Path, capsys: pytest.CaptureFixture[str]) -> Tell:
    """Run a command that must fail as users deserve, and return what it said."""

    def run(arguments: list[str]) -> str:
        assert experiment.is_dir()
        assert main(arguments) == 2
        told = capsys.readouterr().err
        assert told.startswith("error: ")
        assert "Traceback" not in told
        return told

    return run


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data: [\n", "w.yaml:2: not valid YAML"),
        ("base: x.yaml\ntran: {}\n", "w.yaml:2: tran: unknown key; did you mean 'train'?"),
        ("base: x.yaml\noptimizer: {name: adam, lr: 1}\n", "w.yaml:2: optimizer.name: unknown name 'adam'"),
        ("base: x.yaml\ntrain: {batch_size: 0}\n", "w.yaml:2: train.batch_size: found 0 (a whole number), expected"),
        ("base: x.yaml\ndata: {label_map: {0: sky}}\n", "label_map[0]: 'sky' is not a class"),
        ("base: y.yaml\n", "w.yaml:1: base: y.yaml: no such file"),
        ("base: w.yaml\n", "base files form a circle"),
        ("base: x.yaml\nloss: {terms: [{name: lovas}]}\n", "loss.terms.0.name: unknown name 'lovas'"),
        ("base: x.yaml\nmodel: !!python/name:os.system\n", "the tag !!python/name:os.system"),
    ],
)
@pytest.mark.parametrize("command", ["train", "scan"])
def test_wrong_training_files(tell: Tell, command: str, text: str, message: str) -> None:
    Path("w.yaml").write_text(text, encoding="utf-8")
    assert message in tell([command, "w.yaml"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tarin", "x.yaml"], "doctor; did you mean 'train'?"),
        (["train"], "required: config"),
        (["train", "nowhere.yaml"], "nowhere.yaml: no such file; . holds: x.yaml"),
        (["train", "x.yaml", "train.epochs"], "expected key.path=value"),
        (
            ["train", "x.yaml", "train.epoch=1"],
            "override train.epoch=1: train.epoch: unknown key; did you mean 'epochs'?",
        ),
        (["train", "x.yaml", "--resume"], "unknown argument --resume"),
        (["scan", "x.yaml", "--split", "tset"], "tset"),
        (["scan", "x.yaml", "--workers", "0"], "--workers: expected a whole number of at least 1, found '0'"),
        (["train", "dataset"], "dataset: is a folder; expected a YAML file"),
    ],
)
def test_wrong_arguments(tell: Tell, arguments: list[str], message: str) -> None:
    told = tell(arguments)
    assert message in told
    assert len(told.splitlines()) == 1


def _lose_a_mask(root: Path) -> None:
    (root / "masks/train/scene_01.png").unlink()


def _shrink_a_mask(root: Path) -> None:
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(root / "masks/train/scene_01.png")


def _put_an_unknown_label(root: Path) -> None:
    Image.fromarray(np.full((24, 32), 77, np.uint8)).save(root / "masks/train/scene_01.png")


def _break_an_image(root: Path) -> None:
    (root / "images/train/scene_01.png").write_bytes(b"no image")


def _empty_an_image(root: Path) -> None:
    (root / "images/train/scene_01.png").write_bytes(b"")


def _double_a_stem(root: Path) -> None:
    Image.open(root / "images/train/scene_01.png").save(root / "images/train/scene_01.jpg")


def _lose_a_split(root: Path) -> None:
    shutil.rmtree(root / "images/train")


def _lose_all(root: Path) -> None:
    shutil.rmtree(root)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_lose_a_mask, "scene_01"),
        (_shrink_a_mask, "scene_01"),
        (_put_an_unknown_label, "77"),
        (_break_an_image, "scene_01"),
        (_empty_an_image, "scene_01"),
        (_double_a_stem, "scene_01"),
        (_lose_a_split, "images/train"),
        (_lose_all, "dataset"),
    ],
)
def test_wrong_data_is_found_before_training(tell: Tell, damage: Callable[[Path], None], message: str) -> None:
    damage(Path("dataset"))
    assert message in tell(["scan", "x.yaml", "--workers", "1"])
    assert message in tell(["train", "x.yaml"])
    assert not list(Path("runs").rglob("*.pt"))


class _Payload:
    """Leaves a trace when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("trace"),))


@pytest.mark.parametrize("command", [["evaluate"], ["visualize"]])
@pytest.mark.parametrize("kind", ["nothing", "an empty folder", "no checkpoint", "hostile", "foreign"])
def test_wrong_checkpoints(tell: Tell, command: list[str], kind: str) -> None:
    path = Path("model.pt")
    if kind == "an empty folder":
        path = Path("empty")
        path.mkdir()
    elif kind == "no checkpoint":
        path.write_bytes(b"words")
    elif kind in ("hostile", "foreign"):
        torch.save(_Payload() if kind == "hostile" else {"a": torch.zeros(2)}, path)
    assert str(path) in tell([*command, str(path)])
    assert not Path("trace").exists()
