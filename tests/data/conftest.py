"""Fixtures of the data room: data sections in one line, and image files of every kind."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segtrain.config.data import DataConfig
from segtrain.data.formats import find_samples, mask_reader
from segtrain.data.masks import LabelRules


@pytest.fixture
def data_config(tmp_path: Path) -> Callable[..., DataConfig]:
    """A factory of data sections with the classes background, block and dot; root is the test's folder."""

    def make(**changes: Any) -> DataConfig:
        values = {"root": str(tmp_path), "classes": ["background", "block", "dot"]} | changes
        return DataConfig.model_validate(values)

    return make


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """Write an array with Pillow under the test's folder; further arguments go to Image.save."""

    def write(name: str, pixels: Any, **options: Any) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(np.asarray(pixels))
        image.save(path, **options)
        return path

    return write


@pytest.fixture
def pair(save: Callable[..., Path]) -> Callable[..., tuple[Path, Path]]:
    """Write an image of noise and a mask as a pair of the layout `folders`."""

    def write(
        name: str,
        mask: Any,
        *,
        split: str = "train",
        image_suffix: str = ".png",
        image_size: tuple[int, int] | None = None,
    ) -> tuple[Path, Path]:
        mask = np.asarray(mask, np.uint8)
        shape = image_size or mask.shape
        noise = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
        return save(f"images/{split}/{name}{image_suffix}", noise), save(f"masks/{split}/{name}.png", mask)

    return write


@pytest.fixture
def targets_of() -> Callable[..., dict[str, Any]]:
    """Read the targets of a split, by the names of its samples, as training does: find, read raw, encode."""

    def read(config: DataConfig, split: str = "train") -> dict[str, Any]:
        listing = find_samples(config, split)
        assert not listing.problems
        reader, rules = pickle.loads(pickle.dumps(mask_reader(config))), LabelRules.from_config(config)
        return {sample.name: rules.encode(reader(sample)) for sample in listing.samples}

    return read
