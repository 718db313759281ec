"""From masks to predictions by the commands: one class alone, and classes that overlap."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from segtrain.cli.main import main
from segtrain.config import dump_config, parse_config
from segtrain.data import check_split
from segtrain.data.dataset import EvalDataset
from segtrain.engine import train
from segtrain.errors import ConfigError

MODEL = {
    "arch": "unet",
    "encoder": "tu-regnetx_002",
    "params": {"encoder_depth": 3, "decoder_channels": [16, 8, 8]},
}
COUNTS = {"train": 4, "val": 2, "test": 2}


@pytest.fixture
def overlapping(tmp_path: Path) -> dict[str, Any]:
    """A configuration over images with a block, a bar that crosses it, and a strip where the bar is ignored."""
    generator = np.random.default_rng(0)
    for split, count in COUNTS.items():
        for index in range(count):
            image = generator.integers(0, 60, (24, 32, 3), dtype=np.uint8)
            block, bar = np.zeros((24, 32), np.uint8), np.zeros((24, 32), np.uint8)
            top = int(generator.integers(2, 10))
            block[top : top + 10, 6:20] = 1
            bar[top + 4 : top + 7, :28] = 1
            image[block == 1, 0] += 150
            image[bar == 1, 1] += 150
            bar[:, 28:] = 255
            _save(tmp_path / "data" / "images" / split / f"s{index}.png", image)
            _save(tmp_path / "data" / "masks" / "block" / split / f"s{index}.png", block)
            _save(tmp_path / "data" / "masks" / "bar" / split / f"s{index}.png", bar)
    section = {
        "root": str(tmp_path / "data"),
        "layout": "mask_per_class",
        "mask_per_class": {"values": {0: "none", 1: "present", 255: "ignore"}},
        "labels": "multi_label",
        "classes": ["block", "bar"],
        "train_transforms": [{"name": "horizontal_flip"}, {"name": "crop", "size": [24, 24]}],
        "workers": 0,
    }
    return _config(tmp_path, section)


@pytest.fixture
def binary(folder_dataset: Callable[..., Any], tmp_path: Path) -> dict[str, Any]:
    """A configuration of the block alone, on masks of three classes."""
    dataset = folder_dataset(splits=COUNTS)
    section = {"classes": ["block"], "label_map": {0: "none", 1: "block", 2: "none", 255: "ignore"}}
    return _config(tmp_path, dataset.config["data"] | section)


def _save(path: Path, pixels: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def _config(tmp_path: Path, data: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": "run",
        "output": str(tmp_path / "runs"),
        "device": "cpu",
        "data": data,
        "model": MODEL,
        "optimizer": {"name": "adamw", "lr": 0.01},
        "train": {"steps": 6, "batch_size": 2, "evaluate_every": 3, "evaluate_unit": "steps", "validation_samples": 1},
        "evaluate": {"tune_thresholds": True},
    }


def _train(plain: dict[str, Any], tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(dump_config(parse_config(plain), full=True))
    assert main(["train", str(path)]) == 0
    return tmp_path / "runs" / "run"


def _valid(plain: dict[str, Any], split: str) -> list[int]:
    """Pixels at which each class is labelled."""
    frequencies = check_split(parse_config(plain).data, split, cache=False).frequencies
    assert frequencies.valid is not None
    return list(frequencies.valid.tolist())


@pytest.mark.parametrize("kind", ["binary", "overlapping"])
def test_training_evaluation_pictures_and_predictions_agree(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = request.getfixturevalue(kind)
    names = plain["data"]["classes"]
    run = _train(plain, tmp_path)
    assert "thresholds chosen on val" in capsys.readouterr().out
    payload = torch.load(run / "checkpoints" / "best.pt", weights_only=True)
    chosen = payload["thresholds"]["thresholds"]
    assert list(chosen) == names
    assert payload["frequencies"]["valid"] == _valid(plain, "train")

    assert main(["evaluate", str(run), "--split", "test"]) == 0
    printed = capsys.readouterr().out
    assert "present from this probability on" in printed
    assert "the thresholds were chosen on val\n" in printed
    metrics = json.loads((run / "evaluation" / "test" / "metrics.json").read_text())
    assert metrics["thresholds"] == chosen
    assert np.shape(metrics["confusion"]["matrix"]) == (len(names), 2, 2)
    for number, row in enumerate(metrics["classes"]):
        (tn, fp), (fn, tp) = metrics["confusion"]["matrix"][number]
        assert tn + fp + fn + tp == _valid(plain, "test")[number]
        assert row["iou"] == pytest.approx(tp / (tp + fp + fn)) if tp + fp + fn else row["iou"] is None

    assert main(["visualize", str(run), "--split", "test", "--classes", names[0], "--worst", "2"]) == 0
    panels = sorted((run / "visualization" / "test" / "panels").glob("*.png"))
    assert len(panels) == 2

    out = tmp_path / "predicted"
    images = Path(plain["data"]["root"]) / "images" / "test"
    assert main(["predict", str(run), str(images), "--out", str(out)]) == 0
    assert json.loads((out / "manifest.json").read_text())["thresholds"] == chosen
    assert main(["predict", str(run), str(images), "--out", str(out)]) != 0  # nothing is overwritten unasked
    counted = [[0, 0] for _ in names]
    data = parse_config(plain).data
    for index, sample in enumerate(check_split(data, "test").samples):
        target = EvalDataset(check_split(data, "test").samples, data)[index]["target"].numpy()
        for number, name in enumerate(names):
            mask = np.array(Image.open(out / "labels" / name / f"{sample.name}.png"))
            assert mask.dtype == np.uint8
            assert set(np.unique(mask)) <= {0, 255}
            counted[number][0] += int(((mask == 255) & (target[number] == 1)).sum())
            counted[number][1] += int(((mask == 255) & (target[number] == 0)).sum())
    matrix = metrics["confusion"]["matrix"]
    assert counted == [[rows[1][1], rows[0][1]] for rows in matrix]  # the files hold what was measured


def test_a_threshold_of_the_configuration_replaces_the_chosen_one(binary: dict[str, Any], tmp_path: Path) -> None:
    run = _train(binary, tmp_path)
    low = ["evaluate.tune_thresholds=false", "evaluate.threshold=0.001"]
    assert main(["evaluate", str(run), "--split", "test", *low]) == 0
    metrics = json.loads((run / "evaluation" / "test" / "metrics.json").read_text())
    assert metrics["thresholds"] == {"block": 0.001}
    assert main(["evaluate", str(run), "--split", "test", "evaluate.threshold=0.2"]) != 0  # two sources of one number


def test_a_run_without_chosen_thresholds_says_so(
    binary: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = _train(binary | {"evaluate": {}}, tmp_path)
    assert main(["evaluate", str(run), "--split", "test", "evaluate.tune_thresholds=true"]) != 0
    assert "holds no thresholds that were chosen on val" in capsys.readouterr().err


@pytest.mark.parametrize(
    "loss",
    [
        {"terms": [{"name": "balanced_cross_entropy"}, {"name": "tversky"}]},
        {"terms": [{"name": "focal"}, {"name": "boundary", "weight": 0.1}], "ohem": {"top_k": 0.3}},
        {"terms": [{"name": "cross_entropy"}], "class_weights": {"scheme": "median_frequency"}},
    ],
)
def test_losses_of_overlapping_classes_train(overlapping: dict[str, Any], loss: dict[str, Any]) -> None:
    plain = overlapping | {"loss": {"activation": "sigmoid", **loss}, "evaluate": {}}
    plain["train"] = plain["train"] | {"steps": 2, "accumulate": 2}
    result = train(parse_config(plain))
    assert result.evaluation is not None
    assert set(result.evaluation.scores) >= {"iou/block", "iou/bar", "miou"}


def test_pairs_given_in_code_may_overlap(overlapping: dict[str, Any]) -> None:
    generator = np.random.default_rng(1)
    pairs = [
        (generator.integers(0, 255, (16, 16, 3), dtype=np.uint8), generator.integers(0, 2, (2, 16, 16), dtype=np.uint8))
        for _ in range(4)
    ]
    pairs[0][1][0, 0] = 255
    data = {"root": "nowhere", "classes": ["a", "b"], "labels": "multi_label", "label_map": {0: "none", 1: 0, 2: 1}}
    plain = overlapping | {"data": data | {"workers": 0}, "evaluate": {}}
    plain["train"] = {"steps": 1, "batch_size": 2, "validation_samples": 0}
    result = train(parse_config(plain), train_data=pairs, val_data=pairs)
    assert result.evaluation is not None
    confusion = result.evaluation.confusion
    assert confusion.matrix.sum(dim=(1, 2)).tolist() == [4 * 256 - 16, 4 * 256]


def test_copy_paste_of_overlapping_classes_is_refused(overlapping: dict[str, Any]) -> None:
    section = overlapping["data"] | {"train_transforms": [{"name": "copy_paste"}]}
    with pytest.raises(ConfigError, match="copy_paste takes one class for each pixel"):
        parse_config(overlapping | {"data": section})
