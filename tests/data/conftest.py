"""Fixtures of the data room: data sections in one line, and image files of every kind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segtrain.config.data import DataConfig


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
