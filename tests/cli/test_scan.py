"""The command scan prints and writes what the data hold, and answers bad data with exit code 2."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from ruamel.yaml import YAML

from segtrain.cli.main import main
from segtrain.config.data import DataConfig
from segtrain.data import ClassFrequencies
from segtrain.data.formats import find_samples
from segtrain.data.pair_cache import with_cache
from segtrain.data.sources import FilePairs
from segtrain.report.numbers import percent
from segtrain.report.scan import write_chart


@pytest.fixture
def scanned(folder_dataset: Callable[..., Any], tmp_path: Path) -> tuple[str, Path]:
    """A training file of a tiny set, and the set's folder."""
    made = folder_dataset(splits={"train": 4, "val": 2})
    path = tmp_path / "tiny.yaml"
    with path.open("w") as stream:
        YAML().dump(made.config, stream)
    return str(path), made.root


def test_scan_writes_table_index_and_chart(
    scanned: tuple[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["scan", scanned[0], "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "imbalance ratio" in printed
    content = json.loads((out / "frequencies.json").read_text())
    assert content["classes"] == ["background", "block", "dot"]
    assert content["images"] == [4, 4, 2]
    assert f"{content['pixels'][1]:,}" in printed
    rows = list(csv.DictReader((out / "images.csv").read_text().splitlines()))
    assert [row["name"] for row in rows] == [f"scene_{number:02}" for number in range(4)]
    assert sum(int(row["dot"]) for row in rows) == content["pixels"][2] == 8
    assert sum(int(row["ignored"]) for row in rows) == content["ignored"] == 4 * 24
    with Image.open(out / "classes.png") as chart:
        assert min(chart.size) > 100


def test_scan_checks_every_split_that_is_there(
    scanned: tuple[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["scan", scanned[0], "--out", str(tmp_path / "out")]) == 0
    assert "val: 2 images checked" in capsys.readouterr().out
    (scanned[1] / "masks" / "val" / "scene_01.png").unlink()
    assert main(["scan", scanned[0], "--out", str(tmp_path / "out")]) == 2
    assert "scene_01" in capsys.readouterr().err


def test_scan_of_another_split_goes_to_a_folder_of_its_own(
    scanned: tuple[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["scan", scanned[0], "--split", "val"]) == 0
    assert (tmp_path / "runs/scan/dataset/val/frequencies.json").is_file()
    assert "2 images" in capsys.readouterr().out


def test_scan_lists_bad_files_and_exits_with_2(
    scanned: tuple[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, root = scanned
    (root / "masks/train/scene_01.png").unlink()
    (root / "images/train/scene_02.png").write_bytes(b"")
    assert main(["scan", config, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: 2 bad files")
    assert "scene_01.png: no mask" in error
    assert "scene_02.png: the file is empty" in error
    assert not (tmp_path / "out").exists()


def test_scan_that_skips_names_what_it_left_out(
    scanned: tuple[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, root = scanned
    (root / "images/train/scene_02.png").write_bytes(b"")
    assert main(["scan", config, "data.on_bad=skip", "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "left out (data.on_bad: skip): 1" in printed
    assert "scene_02.png: the file is empty" in printed


@pytest.mark.parametrize("arguments", [["--split", "trian"], ["--workers", "0"]])
def test_wrong_arguments_are_told(
    scanned: tuple[str, Path], arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["scan", scanned[0], *arguments]) == 2
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize("num_classes", [2, 60])
def test_the_chart_grows_with_the_classes_and_takes_any_name(tmp_path: Path, num_classes: int) -> None:
    counts = np.arange(num_classes + 1)[None] * 10
    names = ["$cost$ _of_ a^name", *(f"class {'x' * 60} {number}" for number in range(1, num_classes))]
    write_chart(tmp_path / "chart.png", ClassFrequencies.from_counts(counts), names=names, title="$a$: train")
    with Image.open(tmp_path / "chart.png") as chart:
        assert chart.size[1] > 20 * num_classes


def test_percents_of_rare_classes_are_not_rounded_to_zero() -> None:
    assert [percent(share) for share in (0.5, 0.0123, 0.00012345, 1e-8, 0)] == [
        "50.00",
        "1.23",
        "0.012",
        "0.000001",
        "0.00",
    ]


def test_verify_removes_decoded_pairs_that_are_out_of_date(
    folder_dataset: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = folder_dataset(splits={"train": 3})
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps(made.config))
    data = DataConfig.model_validate(made.config["data"] | {"cache": "disk"})
    pairs = FilePairs(find_samples(data, "train").samples, data, split="train")
    with_cache(pairs, data, tell=lambda text: None)
    assert main(["scan", str(config), "--verify"]) == 0
    assert list(made.root.rglob("pairs-*.bin"))
    image = pairs.samples[1].image
    pixels = np.array(Image.open(image))
    pixels[0, 0] ^= 1
    Image.fromarray(pixels).save(image)
    assert main(["scan", str(config), "--verify"]) == 0
    assert "did not hold what the files hold, and was removed" in capsys.readouterr().out
    assert not list(made.root.rglob("pairs-*.bin"))
