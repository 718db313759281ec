"""Crops find the rare class where there is one, are plain random crops where there is none, and shun monotony."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from segtrain.config.data import DataConfig
from segtrain.data.steps import TrainingSet
from segtrain.data.transforms import TrainTransform
from segtrain.errors import ConfigError

Make = Callable[..., DataConfig]
SIZE = (16, 24)


def crop(make: Make, **section: Any) -> TrainTransform:
    return TrainTransform(make(train_transforms=[{"name": "crop", "size": list(SIZE)} | section]))


def street(height: int = 80, width: int = 100, *, dots: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """An image whose channels hold row, column and class, and a target with single pixels of class 2."""
    target = np.zeros((height, width), np.uint8)
    target[:, width // 2 :] = 1
    generator = np.random.default_rng(5)
    for _ in range(dots):
        target[generator.integers(height), generator.integers(width)] = 2
    rows, columns = np.mgrid[:height, :width].astype(np.uint8)
    return np.stack([rows, columns, target], axis=2), target


def test_every_crop_holds_the_rare_class_and_its_middle_where_there_is_room(data_config: Make) -> None:
    image, target = street()
    row, column = np.argwhere(target == 2)[0]
    transform = crop(data_config, center_on=["dot"], p=1.0)
    for seed in range(50):
        part, labels = transform(image, target, seed=seed)
        assert labels.shape == SIZE
        assert (labels == 2).sum() == 1
        top, left = part[0, 0, :2].tolist()
        assert top == np.clip(row - 8, 0, 80 - 16)
        assert left == np.clip(column - 12, 0, 100 - 24)
        np.testing.assert_array_equal(part[:, :, 2], labels)


def test_each_class_that_is_there_and_each_of_its_pixels_is_centred_on_equally_often(data_config: Make) -> None:
    target = np.zeros((60, 60), np.uint8)
    target[30, 20:40] = 1
    target[20, 30] = 2
    image = np.stack([*np.mgrid[:60, :60], target], axis=2).astype(np.uint8)
    transform = crop(data_config, center_on=["dot", "block"], p=1.0)
    rows, columns = np.array([transform(image, target, seed=seed)[0][8, 12, :2] for seed in range(2000)]).T
    assert set(rows) == {20, 30}
    assert abs((rows == 20).mean() - 0.5) < 0.04
    counts = np.bincount(columns[rows == 30])[20:40]
    assert counts.min() > 20
    assert ((counts - counts.mean()) ** 2 / counts.mean()).sum() < 40  # χ², 19 degrees of freedom


def test_p_is_the_share_of_the_crops_that_are_centred(data_config: Make) -> None:
    image, target = street(200, 200)
    transform = crop(data_config, center_on=["dot"], p=0.25)
    found = np.mean([(transform(image, target, seed=seed)[1] == 2).any() for seed in range(2000)])
    by_chance = SIZE[0] * SIZE[1] / (200 * 200)
    assert abs(found - (0.25 + 0.75 * by_chance)) < 0.035


def test_without_the_class_every_window_is_equally_likely(data_config: Make) -> None:
    image, target = street(20, 28, dots=0)
    transform = crop(data_config, center_on=["dot"], p=1.0)
    corners = [tuple(transform(image, target, seed=seed)[0][0, 0, :2].tolist()) for seed in range(2500)]
    counts = np.array([corners.count((top, left)) for top in range(5) for left in range(5)])
    assert counts.sum() == 2500
    assert ((counts - 100) ** 2 / 100).sum() < 50  # χ², 24 degrees of freedom


def test_a_window_that_one_class_fills_is_drawn_again(data_config: Make) -> None:
    target = np.zeros((64, 200), np.uint8)
    target[:, 80:] = 1  # half of all windows are plain
    image = np.repeat(target[:, :, None], 3, axis=2)
    ratio = 0.75
    plain, varied = (
        np.mean(
            [np.bincount(transform(image, target, seed=seed)[1].ravel()).max() <= ratio * 384 for seed in range(300)]
        )
        for transform in (crop(data_config), crop(data_config, cat_max_ratio=ratio))
    )
    assert plain < 0.15
    assert varied == pytest.approx(1 - (1 - 0.068) ** 11, abs=0.1)  # 12 of the 177 windows will do; 11 are drawn


def test_redrawing_ends_where_no_window_will_do_and_ignored_pixels_do_not_count(data_config: Make) -> None:
    target = np.full((40, 40), 255, np.uint8)
    image = np.zeros((40, 40, 3), np.uint8)
    assert (crop(data_config, cat_max_ratio=0.75)(image, target, seed=0)[1] == 255).all()
    target[:, 20], target[:, 21] = 0, 1
    for seed in range(100):
        labels = crop(data_config, cat_max_ratio=0.5)(image, target, seed=seed)[1]
        assert set(np.unique(labels)) == {0, 1, 255}


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_small_images_are_padded_around_and_keep_type_and_channels(
    data_config: Make, dtype: Any, channels: int
) -> None:
    image = np.full((10, 30, channels), np.iinfo(dtype).max, dtype)
    target = np.full((10, 30), 2, np.uint8)
    part, labels = crop(data_config, center_on=["dot"])(image, target, seed=3)
    assert part.shape == (*SIZE, channels)
    assert part.dtype == dtype
    assert (labels == 255).sum() == 6 * 24
    np.testing.assert_array_equal(part[:, :, 0] > 0, labels == 2)
    assert (labels[3:13] == 2).all()


def test_rare_is_the_rarest_third_of_the_training_pixels(data_config: Make) -> None:
    image, target = street()
    data = data_config(train_transforms=[{"name": "crop", "size": list(SIZE), "center_on": "rare", "p": 1.0}])
    training = TrainingSet(np.array([[900, 90, 10, 0]]), lambda index: (image, target))
    transform = TrainTransform(data, training=training)
    assert all((transform(image, target, seed=seed)[1] == 2).any() for seed in range(20))
    with pytest.raises(ConfigError, match="center_on: rare goes by the pixels of each class"):
        TrainTransform(data)


def test_a_crop_depends_on_its_seed_alone_and_changes_nothing_in_place(data_config: Make) -> None:
    image, target = street(dots=9)
    before = image.copy(), target.copy()
    transform = crop(data_config, center_on=["dot"], cat_max_ratio=0.9)
    first = transform(image, target, seed=11)
    transform(image, target, seed=12)
    for one, other in zip(first, transform(image, target, seed=11), strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(image, before[0])
    np.testing.assert_array_equal(target, before[1])


def test_wrong_settings_are_refused(data_config: Make) -> None:
    with pytest.raises(ValueError, match="'dott' is not among the 3 classes"):
        crop(data_config, center_on=["dott"])
    with pytest.raises(ValueError, match="p is the share of the crops that center_on centres"):
        crop(data_config, p=0.2)


def test_overlapping_classes_are_centred_on_too(data_config: Make) -> None:
    labels = {"labels": "multi_label", "label_map": {0: "none", 1: "background", 2: "block", 3: "dot"}}
    steps = [{"name": "crop", "size": list(SIZE), "center_on": ["dot"], "p": 1.0}]
    transform = TrainTransform(data_config(train_transforms=steps, **labels))
    image, target = street()
    maps = np.stack([np.ones_like(target), target == 1, target == 2]).astype(np.uint8)
    for seed in range(20):
        part, moved = transform(image, maps, seed=seed)
        assert moved.shape == (3, *SIZE)
        assert moved[2].sum() == 1
        np.testing.assert_array_equal(moved[2] == 1, part[:, :, 2] == 2)
