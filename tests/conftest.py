"""Fixtures that several rooms share: the CamVid data set, tiny generated data sets, one thread for torch."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import torch
from PIL import Image

REPOSITORY = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class FolderDataset:
    """A data set on disk: its root, and a plain configuration that parse_config accepts."""

    root: Path
    config: dict[str, Any]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Tests marked exhaustive take minutes to hours each: they run only when asked for."""
    parser.addoption("--exhaustive", action="store_true", help="run the tests marked exhaustive too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip gpu-marked tests where there is no CUDA device, and exhaustive ones where nobody asked for them."""
    skips = {}
    if not torch.cuda.is_available():
        skips["gpu"] = pytest.mark.skip(reason="needs a CUDA device")
    if not config.getoption("--exhaustive"):
        skips["exhaustive"] = pytest.mark.skip(reason="takes minutes to hours: run with --exhaustive")
    for item in items:
        for name, skip in skips.items():
            if item.get_closest_marker(name) is not None:
                item.add_marker(skip)


@pytest.fixture(autouse=True, scope="session")
def _modest_machine() -> Iterator[None]:
    """One thread for torch and no window for matplotlib: the same work on every machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    mpl.use("Agg")
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def camvid() -> Path:
    """The CamVid data set: SEGTRAIN_CAMVID, else ../shared/camvid beside the checkout, else the test is skipped."""
    given = os.environ.get("SEGTRAIN_CAMVID")
    root = Path(given) if given else REPOSITORY.parent / "shared" / "camvid"
    if not (root / "images").is_dir():
        pytest.skip(f"no CamVid data set at {root}; set SEGTRAIN_CAMVID to its folder")
    return root


@pytest.fixture
def folder_dataset(tmp_path: Path, folder_dataset_in: Callable[..., FolderDataset]) -> Callable[..., FolderDataset]:
    """`folder_dataset_in` the folder of the test."""
    return partial(folder_dataset_in, tmp_path)


@pytest.fixture(scope="session")
def folder_dataset_in() -> Callable[..., FolderDataset]:
    """A factory of tiny data sets: images/<split> and masks/<split> PNG pairs with classes background, block and dot.

    Every image holds a bright block (class 1); every second one a dot of 2 x 2 pixels (class 2); a strip at the right
    is ignored (255). Contents depend on `seed` alone.
    """

    def make(
        folder: Path,
        *,
        size: tuple[int, int] = (24, 32),
        splits: dict[str, int] | None = None,
        seed: int = 0,
        name: str = "dataset",
    ) -> FolderDataset:
        root = folder / name
        generator = np.random.default_rng(seed)
        for split, count in (splits or {"train": 4, "val": 2, "test": 2}).items():
            for kind in ("images", "masks"):
                (root / kind / split).mkdir(parents=True)
            for index in range(count):
                image, mask = _scene(generator, size, with_dot=index % 2 == 0)
                Image.fromarray(image).save(root / "images" / split / f"scene_{index:02}.png")
                Image.fromarray(mask).save(root / "masks" / split / f"scene_{index:02}.png")
        return FolderDataset(root, _config(root, folder / "runs", name))

    return make


def _scene(generator: np.random.Generator, size: tuple[int, int], *, with_dot: bool) -> tuple[Any, Any]:
    """Return an image uint8 [H, W, 3] and its mask uint8 [H, W]."""
    height, width = size
    image = generator.integers(0, 60, (height, width, 3), dtype=np.uint8)
    mask = np.zeros(size, np.uint8)
    top, left = generator.integers(0, height // 2), generator.integers(0, width // 2)
    mask[top : top + height // 3, left : left + width // 3] = 1
    if with_dot:
        mask[height - 3 : height - 1, 1:3] = 2
    image[mask == 1] += np.uint8(150)
    image[mask == 2] = (250, 30, 30)
    mask[:, -1] = 255
    return image, mask


def _config(root: Path, output: Path, name: str) -> dict[str, Any]:
    return {
        "name": name,
        "output": str(output),
        "device": "cpu",
        "data": {"root": str(root), "classes": ["background", "block", "dot"], "workers": 0},
        "model": {"arch": "unet", "encoder": "resnet18", "encoder_weights": None},
        "loss": {"terms": [{"name": "cross_entropy"}, {"name": "dice"}]},
        "optimizer": {"name": "adamw", "lr": 0.001},
        "train": {"steps": 2, "batch_size": 2, "evaluate_every": 1, "validation_samples": 1},
    }
