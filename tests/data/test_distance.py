"""Signed distance maps against distances counted pixel by pixel, and their way through the loader."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from segtrain.config.data import DataConfig
from segtrain.data.dataset import TrainDataset
from segtrain.data.distance import signed_distance
from segtrain.data.formats import find_samples
from segtrain.data.loader import build_train_loader
from segtrain.data.sampling import TrainBatchSampler
from segtrain.errors import ConfigError


def counted(target: NDArray[Any], c: int, ignore_index: int) -> NDArray[np.float64]:
    """The definition, every pixel against every other."""
    places = np.argwhere(np.ones(target.shape, bool))
    valid = target.ravel() != ignore_index
    own = (target.ravel() == c) & valid
    apart = np.sqrt(((places[:, None] - places[None]) ** 2).sum(-1))
    result = np.zeros(target.size)
    if own.any() and (valid & ~own).any():
        result = np.where(own, 1 - apart[:, valid & ~own].min(1), apart[:, own].min(1)) * valid
    return result.reshape(target.shape)


@pytest.mark.parametrize("ignore_index", [255, -1, 0])
def test_maps_are_those_of_the_definition(ignore_index: int) -> None:
    draws = np.random.default_rng(3)
    for _ in range(5):
        blocks = draws.integers(0, 4, (4, 3)).repeat(3, 0).repeat(4, 1)
        target = np.where(draws.random(blocks.shape) < 0.1, ignore_index, blocks).astype(np.int16)
        maps = signed_distance(target, num_classes=5, ignore_index=ignore_index)
        assert maps.shape == (5, 12, 12)
        assert maps.dtype == np.float16
        for c in range(5):
            np.testing.assert_allclose(maps[c], counted(target, c, ignore_index), rtol=1e-3, atol=0)


def test_a_square_is_negative_inside_zero_on_its_rim_and_positive_outside() -> None:
    target = np.zeros((9, 9), np.uint8)
    target[2:7, 2:7] = 1
    (square,) = signed_distance(target, num_classes=2, ignore_index=255, classes=[1])
    assert square[4].tolist() == [2, 1, 0, -1, -2, -1, 0, 1, 2]
    assert square[0, 0] == pytest.approx(np.sqrt(8), rel=1e-3)


def test_a_class_absent_or_alone_has_no_boundary() -> None:
    target = np.full((4, 5), 1, np.uint8)
    target[0] = 255
    assert not signed_distance(target, num_classes=3, ignore_index=255).any()
    assert not signed_distance(np.full((4, 5), 255, np.uint8), num_classes=3, ignore_index=255).any()


def test_the_edge_to_an_ignored_region_is_no_boundary() -> None:
    target = np.array([[1, 1, 255, 255, 1, 1, 0]], np.uint8)
    (row,) = signed_distance(target, num_classes=2, ignore_index=255, classes=(1,))
    assert row[0].tolist() == [-5, -4, 0, 0, -1, 0, 1]


def test_classes_come_in_the_order_asked_for() -> None:
    target = np.array([[0, 1, 2, 2]], np.uint8)
    both = signed_distance(target, num_classes=3, ignore_index=255, classes=[2, 0])
    every = signed_distance(target, num_classes=3, ignore_index=255)
    assert np.array_equal(both, every[[2, 0]])


@pytest.mark.parametrize("workers", [0, 1])
def test_the_loader_measures_the_transformed_targets(folder_dataset: Callable[..., Any], workers: int) -> None:
    made = folder_dataset(splits={"train": 4})
    steps = [{"name": "random_scale"}, {"name": "crop", "size": [16, 12]}, {"name": "horizontal_flip"}]
    data = DataConfig.model_validate(made.config["data"] | {"train_transforms": steps})
    samples = find_samples(data, "train").samples
    dataset = TrainDataset(samples, data, distance_classes=[1, 0])
    loader = build_train_loader(dataset, TrainBatchSampler(4, 2, seed=5), workers=workers)
    try:
        for batch in loader:
            assert batch["distances"].shape == (2, 2, 16, 12)
            assert batch["distances"].dtype == torch.float16
            for target, maps in zip(batch["target"].numpy(), batch["distances"].numpy(), strict=True):
                found = signed_distance(
                    target, num_classes=len(data.classes), ignore_index=data.ignore_index, classes=[1, 0]
                )
                assert np.array_equal(maps, found)
    finally:
        loader.close()
    assert "distances" not in TrainDataset(samples, data)[0, 0]


def test_maps_of_unknown_classes_are_refused(folder_dataset: Callable[..., Any]) -> None:
    data = DataConfig.model_validate(folder_dataset(splits={"train": 1}).config["data"])
    with pytest.raises(ConfigError, match="classes 99 were asked for"):
        TrainDataset(find_samples(data, "train").samples, data, distance_classes=[0, 99])
