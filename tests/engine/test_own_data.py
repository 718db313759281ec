"""A run on data given in code: pairs of any data set are counted, trained on and evaluated, or refused by name."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segtrain.config import parse_config
from segtrain.engine import train
from segtrain.errors import ConfigError, DataError


class Circles:
    """Any object with a length and an index."""

    def __init__(self, num: int, *, label: int = 1) -> None:
        self.num = num
        self.label = label

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        if not 0 <= index < self.num:
            raise IndexError(index)
        y, x = np.mgrid[:32, :32]
        mask = ((y - 16) ** 2 + (x - 10 - index) ** 2 < 60).astype(np.uint8)
        image = np.repeat(mask[:, :, None] * 150 + 50, 3, axis=2)
        return image, mask * self.label


@pytest.fixture
def plain(tmp_path: Path) -> Callable[..., Any]:
    """A configuration whose folder does not exist."""

    def make(**data: Any) -> Any:
        values = {
            "name": "own",
            "output": str(tmp_path / "runs"),
            "device": "cpu",
            "data": {"root": str(tmp_path / "nowhere"), "classes": ["background", "circle"], "workers": 1} | data,
            "model": {"arch": "unet", "encoder": "resnet18", "encoder_weights": None},
            "loss": "auto",
            "optimizer": {"name": "adamw", "lr": 0.001},
            "train": {"steps": 2, "batch_size": 2, "evaluate_every": 2, "validation_samples": 1},
        }
        return parse_config(copy.deepcopy(values))

    return make


def test_pairs_from_code_need_no_files_and_their_classes_are_counted(plain: Callable[..., Any]) -> None:
    config = plain(train_transforms=[{"name": "horizontal_flip"}])
    result = train(config, train_data=Circles(5), val_data=[Circles(3)[index] for index in range(3)])
    assert result.evaluation is not None
    assert result.evaluation.confusion.support.tolist() == [3 * 32 * 32 - 3 * 185, 3 * 185]
    settings = json.dumps([str(path) for path in result.folder.rglob("*")])
    assert "best.pt" in settings


def test_a_bad_pair_of_either_split_stops_before_step_1(plain: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"val_data\[0\]: unknown mask values: 7"):
        train(plain(), train_data=Circles(2), val_data=Circles(2, label=7))
    with pytest.raises(ConfigError, match="train_data is a int"):
        train(plain(), train_data=3, val_data=Circles(2))  # type: ignore[arg-type]
    assert not (tmp_path / "runs").exists()
