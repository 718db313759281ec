"""Exposure of classes that may overlap, and of data given in code, is counted as that of files."""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from torch import nn

from segtrain.config import Config, parse_config
from segtrain.engine import train
from segtrain.engine.realised import FILE

WEIGHTS = {"class_weights": {"scheme": "inverse", "frequencies": "realised"}}


class Blots:
    """Every second image holds a blot, whose side is drawn from numpy's global generator."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        mask = np.zeros((16, 16), np.uint8)
        if index % 2:
            side = np.random.randint(2, 9)  # noqa: NPY002 - as a data set of one's own may do
            mask[:side, :side] = 1
        return np.repeat(mask[:, :, None] * 200, 3, axis=2), mask


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., Config]:
    """A configuration for Blots; further keys go into the data section."""

    def make(classes: list[str], *, loss: dict[str, Any], **data: Any) -> Config:
        values = {
            "name": "blots",
            "output": str(tmp_path / "runs"),
            "device": "cpu",
            "data": {"root": str(tmp_path), "classes": classes, "workers": 0} | data,
            "loss": loss,
            "train": {"epochs": 1, "batch_size": 2, "validation_samples": 1},
        }
        return parse_config(copy.deepcopy(values))

    return make


def run(config: Config, model: nn.Module) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """What is printed, the exposure that is reported, and the frequencies counted before."""
    out = io.StringIO()
    train(config, model=model, train_data=Blots(), val_data=Blots(), console=Console(file=out, width=200))
    folder = Path(config.output) / config.name
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    (exposure,) = [line for line in lines if line["kind"] == "exposure"]
    return out.getvalue(), exposure, json.loads((folder / FILE).read_text())["frequencies"]


def test_a_dry_epoch_of_data_in_code_sees_what_training_sees(
    config: Callable[..., Config], tiny_net: type[nn.Module]
) -> None:
    made = config(["none", "blot"], loss={"terms": [{"name": "cross_entropy"}]} | WEIGHTS)
    _, exposure, counted = run(made, tiny_net(2))
    assert sum(counted["pixels"]) == 8 * 256
    assert exposure["realised/blot"] == counted["pixels"][1] / (8 * 256)
    assert exposure["images/blot"] == counted["images"][1] == 4
    assert exposure["realised/blot"] != exposure["natural/blot"]  # the sides were drawn anew


def test_the_share_of_an_overlapping_class_is_of_its_own_labelled_pixels(
    config: Callable[..., Config], tiny_net: type[nn.Module]
) -> None:
    loss = {"activation": "sigmoid", "terms": [{"name": "cross_entropy"}]}
    data = {"labels": "multi_label", "label_map": {0: "none", 1: "blot", 2: "other"}}
    made = config(["blot", "other"], loss=loss | WEIGHTS, **data, sampling={"name": "uniform"})
    _, exposure, counted = run(made, tiny_net(2))
    assert counted["valid"] == [8 * 256, 8 * 256]
    assert exposure["realised/blot"] == counted["pixels"][0] / (8 * 256)
    assert exposure["realised/other"] == 0


def test_images_without_any_class_are_drawn_by_a_quota_and_missed_with_a_warning(
    config: Callable[..., Config], tiny_net: type[nn.Module]
) -> None:
    loss = {"activation": "sigmoid", "terms": [{"name": "cross_entropy"}]} | WEIGHTS
    data = {"labels": "multi_label", "label_map": {0: "none", 1: "blot"}}
    text, exposure, _ = run(config(["blot"], loss=loss, **data, sampling={"name": "class_uniform"}), tiny_net(1))
    assert "never draws 4 of the 8 training images" in text
    assert exposure["images/blot"] == 8
    quota = {"name": "class_uniform", "negatives": {"exactly": 0.25}}
    made = config(["blot"], loss=loss, **data, sampling=quota)
    made = made.model_copy(update={"name": "quota"})
    text, exposure, _ = run(made, tiny_net(1))
    assert "never draws" not in text
    assert exposure["images/blot"] == 6
