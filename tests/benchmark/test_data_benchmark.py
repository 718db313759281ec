"""The benchmark of data measures every subject, beside its baseline, and writes what it shows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from segtrain.benchmark import data_index
from segtrain.benchmark.data import PARTS
from segtrain.benchmark.data_bare import make_batch
from segtrain.cli import benchmark_data
from segtrain.cli.main import main
from segtrain.config import load_config
from segtrain.data.batches import fill_batch
from segtrain.data.dataset import TrainDataset
from segtrain.data.formats import long_lists
from segtrain.data.frequencies import check_split
from segtrain.data.transforms import TrainTransform


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
        "the same again",
        "the same + torch.stack",
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


def test_the_bare_form_makes_the_batches_of_the_loader(config_file: Path) -> None:
    config = load_config(config_file).data
    samples, keys = check_split(config, "train").samples, [(3, 11), (0, 12), (1, 13)]
    files = [(str(sample.image), str(sample.mask)) for sample in samples]
    bare = make_batch(files, TrainTransform(config), keys)
    batch = fill_batch(list(TrainDataset(samples, config).each(keys)))
    assert torch.equal(bare["image"], batch["image"].permute(0, 2, 3, 1))
    assert torch.equal(bare["target"], batch["target"])  # the masks hold class numbers
    assert torch.equal(bare["index"], batch["index"])


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


def test_the_parts_are_those_of_the_command() -> None:
    assert benchmark_data.PARTS == PARTS


def test_a_long_list_is_measured_beside_plain_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in (data_index, long_lists):
        monkeypatch.setattr(module, "UNCHECKED", 100)
    monkeypatch.setattr(data_index, "has_resident_peak", lambda: True)
    monkeypatch.setattr(data_index, "in_child", lambda measure, argument: measure(argument))  # its import takes seconds
    monkeypatch.setattr(data_index, "resident_peak", lambda call: 1_000_000 * len(call()))
    out = tmp_path / "index.json"
    assert main(["benchmark", "data", "--index", "300", "--rounds", "3", "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    result = json.loads(out.read_text())
    assert [row["name"] for row in result["rows"]][:3] == [data_index.PLAIN, data_index.OPENED, data_index.TABLE]
    assert all(row["name"] in shown and row["seconds"] > 0 for row in result["rows"])
    assert result["peak_bytes"] == result["table_peak_bytes"] == 300_000_000
    assert "peak of memory while it opens: 300 MB, as a table 300 MB" in shown
    assert result["sent_bytes"] > 300 * len("images/0000/0000000.jpg")
    assert main(["benchmark", "data", "--index", "99"]) == 2
    assert main(["benchmark", "data", "--index", "300", "--batch", "4"]) == 2
    assert "--index does not read --batch" in capsys.readouterr().err


def test_smaller_decoding_is_measured_against_the_exact_way(
    config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["benchmark", "data", str(config_file), "--reduced"]) == 2
    assert "only JPEG images" in capsys.readouterr().err
    config = json.loads(config_file.read_text())
    for path in Path(config["data"]["root"], "images", "train").glob("*.png"):
        Image.fromarray(np.array(Image.open(path).resize((64, 48)))).save(path.with_suffix(".jpg"), quality=95)
        mask = Path(str(path).replace("images", "masks"))
        Image.fromarray(np.array(Image.open(mask).resize((64, 48), Image.Resampling.NEAREST))).save(mask)
        path.unlink()
    out = tmp_path / "reduced.json"
    arguments = ["--reduced", "--images", "3", "--rounds", "3", "--out", str(out)]
    assert main(["benchmark", "data", str(config_file), *arguments]) == 0
    assert "16 x 21" in capsys.readouterr().out
    half, third, _ = json.loads(out.read_text())["rows"]
    assert (half["input_size"], third["input_size"]) == ([24, 32], [16, 21])
    assert 0 < half["levels_of_255"] < 20
    assert all(row["image_by_cpu_time"] is None or row["image_by_cpu_time"] > 0 for row in (half, third))
