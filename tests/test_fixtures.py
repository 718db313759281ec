"""The shared fixtures are what other tests take them for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segtrain.config import parse_config


def test_the_tiny_data_set_has_three_classes_and_a_valid_configuration(folder_dataset: Callable[..., Any]) -> None:
    dataset = folder_dataset()
    config = parse_config(dataset.config)
    assert Path(config.data.root) == dataset.root
    for split, count in (("train", 4), ("val", 2), ("test", 2)):
        masks = [np.asarray(Image.open(path)) for path in sorted((dataset.root / "masks" / split).iterdir())]
        images = [np.asarray(Image.open(path)) for path in sorted((dataset.root / "images" / split).iterdir())]
        assert len(masks) == len(images) == count
        assert {mask.shape for mask in masks} == {(24, 32)}
        assert {image.shape for image in images} == {(24, 32, 3)}
        assert set(np.unique(np.stack(masks))) == {0, 1, 2, 255}


def test_the_tiny_data_set_depends_on_its_seed_alone(folder_dataset: Callable[..., Any]) -> None:
    first, again, other = (folder_dataset(name=name, seed=seed) for name, seed in (("a", 1), ("b", 1), ("c", 2)))
    path = Path("images") / "train" / "scene_00.png"
    assert (first.root / path).read_bytes() == (again.root / path).read_bytes()
    assert (first.root / path).read_bytes() != (other.root / path).read_bytes()


@pytest.mark.camvid
def test_camvid_is_where_the_fixture_says(camvid: Path) -> None:
    assert len(list((camvid / "images" / "train").iterdir())) == 367
