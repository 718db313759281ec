"""The command split writes lists that train can use, keeps groups and copies together, and overwrites nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from ruamel.yaml import YAML

from segtrain.cli.main import main
from segtrain.config import load_config
from segtrain.data.formats import find_samples


@pytest.fixture
def training_file(folder_dataset: Callable[..., Any], tmp_path: Path) -> tuple[str, Path]:
    """A training file of a tiny set of 24 images in two splits, and the set's folder."""
    made = folder_dataset(splits={"train": 16, "val": 8})
    path = tmp_path / "tiny.yaml"
    with path.open("w") as stream:
        YAML().dump(made.config, stream)
    return str(path), made.root


def names(config: str, listed: str) -> set[str]:
    data = load_config(config, ["data.layout=lists", f"data.splits={{train: {listed}, val: {listed}}}"]).data
    return {sample.name for sample in find_samples(data, "train").samples}


def test_split_writes_lists_and_prints_what_they_hold_and_how_to_use_them(
    training_file: tuple[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    config, root = training_file
    assert main(["split", config, "--fractions", "train=0.5,val=0.25,test=0.25"]) == 0
    printed = capsys.readouterr().out
    assert "train: 12 images, 50.0 % (asked: 50.0 %)" in printed
    assert "  splits: {train: lists/train.txt, val: lists/val.txt, test: lists/test.txt}" in printed
    assert "dot" in printed
    parts = [names(config, f"lists/{split}.txt") for split in ("train", "val", "test")]
    assert [len(part) for part in parts] == [12, 6, 6]
    assert len(set.union(*parts)) == 24
    before = (root / "lists" / "train.txt").read_text()
    assert main(["split", config, "--seed", "1"]) == 2
    assert "--force" in capsys.readouterr().err
    assert (root / "lists" / "train.txt").read_text() == before
    assert main(["split", config, "--seed", "1", "--force"]) == 0


def test_a_dry_run_writes_nothing(training_file: tuple[str, Path]) -> None:
    config, root = training_file
    assert main(["split", config, "--dry-run"]) == 0
    assert not (root / "lists").exists()


def test_many_splits_are_shown_in_two_tables_that_fit_a_terminal(
    training_file: tuple[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["split", training_file[0], "--folds", "6", "--dry-run"]) == 0
    table = capsys.readouterr().out.partition("\nimages ")[2].partition("distance")[0]
    assert "% of pixels" in table
    assert max(len(line.rstrip()) for line in table.splitlines()) <= 80
    assert sum(line.startswith("dot") for line in table.splitlines()) == 2


def test_folds_use_each_image_in_one_val_and_keep_test_apart(training_file: tuple[str, Path]) -> None:
    config, _ = training_file
    assert main(["split", config, "--folds", "3", "--test", "0.25", "--out", "cv"]) == 0
    test = names(config, "cv/test.txt")
    vals = [names(config, f"cv/fold_{fold}/val.txt") for fold in range(3)]
    assert len(test) == 6
    assert sum(map(len, vals)) == len(set.union(*vals)) == 18
    for fold, val in enumerate(vals):
        assert names(config, f"cv/fold_{fold}/train.txt") == set.union(*vals) - val


def test_groups_and_copies_stay_together(training_file: tuple[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    config, root = training_file
    for number in range(4):  # a turned copy of each of the first four images of train becomes one of val
        with Image.open(root / f"images/train/scene_{number:02}.png") as image:
            turned = np.ascontiguousarray(np.rot90(np.asarray(image), 2))
        Image.fromarray(turned).save(root / f"images/val/scene_{number:02}.png")
    fractions = ["--fractions", "a=0.5,b=0.5"]
    assert main(["split", config, *fractions, "--group-duplicates", "--group-by", r"regex:scene_0*(\d+)"]) == 0
    assert "pairs that look the same, at most 24 bits apart: 4" in capsys.readouterr().out
    for part in ("a", "b"):
        held = names(config, f"lists/{part}.txt")
        for number in range(8):
            assert len(held & {f"images/{split}/scene_{number:02}" for split in ("train", "val")}) in (0, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--fractions", "train=0.7"], "1 in all"),
        (["--fractions", "train"], "no name=part"),
        (["--fractions", "train=0.5,train=0.5"], "distinct names"),
        (["--fractions", "../x=0.5,y=0.5"], "distinct names"),
        (["--test", "0.2"], "belongs to --folds"),
        (["--folds", "2", "--test", "1.5"], "below 1"),
        (["--threshold", "3"], "belongs to --group-duplicates"),
        (["--group-duplicates", "--threshold", "90"], "0 to 47 bits"),
        (["--from", "test"], "no folder"),
        (["--group-by", "column:city"], "only data.layout table has columns"),
    ],
)
def test_wrong_arguments_are_told(
    training_file: tuple[str, Path], capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["split", training_file[0], *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (training_file[1] / "lists").exists()
