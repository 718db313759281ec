"""Augmentation moves image and target together, invents no class, and depends on its seed alone."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, get_args

import cv2
import numpy as np
import pytest

from segtrain.config.data import DataConfig
from segtrain.config.transforms import TransformConfig
from segtrain.data.transforms import TRANSFORMS, TrainTransform, resize_image, resize_target
from segtrain.errors import ConfigError, DataError

Make = Callable[..., DataConfig]
GEOMETRY: list[dict[str, Any]] = [
    {"name": "random_scale", "limits": [0.5, 2.0]},
    {"name": "crop", "size": [40, 48]},
    {"name": "pad", "size": [70, 90]},
    {"name": "horizontal_flip", "p": 1.0},
    {"name": "vertical_flip", "p": 1.0},
    {"name": "rotate90", "p": 1.0},
    {"name": "rotate", "degrees": 30.0, "p": 1.0},
]
PIXELS: list[dict[str, Any]] = [
    {"name": "color", "p": 1.0},
    {"name": "blur", "p": 1.0},
    {"name": "noise", "p": 1.0},
]
IGNORE = 255


def blocks(height: int = 64, width: int = 80, *, size: int = 16) -> np.ndarray:
    """A target of large blocks of the classes 0, 1 and 2."""
    small = np.random.default_rng(3).integers(0, 3, (-(-height // size), -(-width // size)), dtype=np.uint8)
    return np.kron(small, np.ones((size, size), np.uint8))[:height, :width]


def shown(target: np.ndarray) -> np.ndarray:
    """An image that shows the target: class c at grey value 60 (c + 1)."""
    return np.repeat((60 * (target + 1))[:, :, None].astype(np.uint8), 3, axis=2)


def transform(make: Make, steps: list[dict[str, Any]], **changes: Any) -> TrainTransform:
    return TrainTransform(make(train_transforms=steps, **changes))


def test_the_transforms_are_those_of_the_schema() -> None:
    names = {get_args(section.model_fields["name"].annotation)[0] for section in get_args(get_args(TransformConfig)[0])}
    assert set(TRANSFORMS) == names


@pytest.mark.parametrize("step", GEOMETRY, ids=lambda step: step["name"])
@pytest.mark.parametrize("seed", range(5))
def test_image_and_target_stay_together(data_config: Make, step: dict[str, Any], seed: int) -> None:
    image, target = transform(data_config, [step])(shown(blocks()), blocks(), seed=seed)
    assert image.shape == (*target.shape, 3)
    inside = _far_from_edges(target) & (target != IGNORE)
    assert inside.mean() > 0.2
    np.testing.assert_array_equal(image[inside][:, 0], 60 * (target[inside] + 1))
    padded = _far_from_edges(target) & (target == IGNORE)
    assert not image[padded].any()


@pytest.mark.parametrize("factor", [0.25, 0.37, 0.5, 1.7, 3.0])
def test_resizing_does_not_shift_the_target_against_the_image(data_config: Make, factor: float) -> None:
    target = blocks(128, 128, size=8)
    step = {"name": "random_scale", "limits": [factor, factor]}
    image, moved = transform(data_config, [step])(shown(target), target, seed=0)
    nearest = np.abs(image[:, :, :1].astype(int) - np.array([60, 120, 180])).argmin(axis=2)

    def disagreement(shift: int) -> float:
        return float((np.roll(moved, shift, 1) != nearest)[:, 2:-2].mean())

    assert disagreement(0) < min(disagreement(1), disagreement(-1))
    assert abs(disagreement(1) - disagreement(-1)) < 0.03  # edges lie in the middle


@pytest.mark.parametrize("dtype", [np.uint8, np.int16])
def test_no_class_is_invented(data_config: Make, dtype: type) -> None:
    ignore = {np.uint8: 255, np.int16: -1}[dtype]
    classes = {"classes": [f"class{i}" for i in range(300 if dtype is np.int16 else 200)], "ignore_index": ignore}
    target = np.where(blocks(size=3) == 1, 199, blocks(size=3)).astype(dtype)
    everything = transform(data_config, [*GEOMETRY, *PIXELS], **classes, input_size=[50, 70])
    for seed in range(20):
        moved = everything(shown(blocks()), target, seed=seed)[1]
        assert moved.dtype == dtype
        assert set(np.unique(moved)) <= {0, 2, 199, ignore}


def test_equal_seeds_give_equal_bits_and_others_do_not(data_config: Make) -> None:
    one, two = (transform(data_config, [*GEOMETRY, *PIXELS]) for _ in range(2))
    image, target = shown(blocks()), blocks()
    results = [one(image, target, seed=seed) for seed in range(6)]
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002 - the global state must not matter
    cv2.setRNGSeed(5)
    for seed in reversed(range(6)):
        for again, before in zip(two(image, target, seed=seed), results[seed], strict=True):
            np.testing.assert_array_equal(again, before)
    assert len({(result[0].tobytes(), result[0].shape) for result in results}) == 6


def test_the_global_random_state_is_left_alone(data_config: Make) -> None:
    before = random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    transform(data_config, [*GEOMETRY, *PIXELS])(shown(blocks()), blocks(), seed=0)
    assert random.getstate() == before[0]
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002


def test_steps_draw_independently_of_each_other(data_config: Make) -> None:
    """albumentations' own seeding gives each transform the same stream: two flips always agree."""
    flips = transform(data_config, [{"name": "horizontal_flip"}, {"name": "vertical_flip"}])
    target = np.arange(4, dtype=np.uint8).reshape(2, 2)
    image = np.repeat(target[:, :, None], 3, axis=2)
    results = [tuple(flips(image, target, seed=seed)[1].ravel().tolist()) for seed in range(200)]
    counts = {result: results.count(result) for result in results}
    assert len(counts) == 4
    assert min(counts.values()) > 25


def test_threads_share_a_transform(data_config: Make) -> None:
    everything = transform(data_config, [*GEOMETRY, *PIXELS])
    image, target = shown(blocks()), blocks()
    alone = [everything(image, target, seed=seed)[0].tobytes() for seed in range(24)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda seed: everything(image, target, seed=seed)[0].tobytes(), range(24)))
    assert together == alone


def test_a_pickled_transform_is_the_same(data_config: Make) -> None:
    everything = transform(data_config, [*GEOMETRY, *PIXELS])
    copied = pickle.loads(pickle.dumps(everything))
    image, target = shown(blocks()), blocks()
    np.testing.assert_array_equal(copied(image, target, seed=7)[0], everything(image, target, seed=7)[0])


def test_random_scale_is_log_uniform(data_config: Make) -> None:
    scale = transform(data_config, [{"name": "random_scale", "limits": [0.25, 4.0]}])
    image, target = np.zeros((100, 100, 1), np.uint8), np.zeros((100, 100), np.uint8)
    sizes = np.array([scale(image, target, seed=seed)[1].shape[0] for seed in range(300)])
    assert sizes.min() >= 25
    assert sizes.max() <= 400
    assert 0.4 < (sizes < 100).mean() < 0.6  # half of the draws shrink


def test_crop_pads_what_is_smaller(data_config: Make) -> None:
    image, target = transform(data_config, [{"name": "crop", "size": [100, 50]}])(shown(blocks()), blocks(), seed=0)
    assert image.shape == (100, 50, 3)
    assert (target == IGNORE).sum() == 36 * 50
    assert not image[target == IGNORE].any()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("step", [*GEOMETRY, *PIXELS[1:]], ids=lambda step: step["name"])
def test_sixteen_bits_and_one_channel_stay(data_config: Make, step: dict[str, Any], channels: int) -> None:
    normalize = {"mean": [0.5] * channels, "std": [0.25] * channels}
    image = np.full((64, 80, channels), 40000, np.uint16)
    moved, target = transform(data_config, [step], normalize=normalize)(image, blocks(), seed=1)
    assert moved.dtype == np.uint16
    assert moved.shape == (*target.shape, channels)
    assert moved.flags.c_contiguous
    assert abs(float(np.median(moved)) - 40000) < 2000 or (target == IGNORE).mean() > 0.3


def test_noise_has_the_written_strength(data_config: Make) -> None:
    noise = transform(data_config, [{"name": "noise", "std": [0.1, 0.1], "p": 1.0}])
    image = np.full((200, 200, 3), 30000, np.uint16)
    moved = noise(image, np.zeros((200, 200), np.uint8), seed=0)[0]
    assert moved.std() == pytest.approx(6553.5, rel=0.02)
    assert moved.mean() == pytest.approx(30000, rel=0.01)


def test_color_refuses_what_it_cannot_do(data_config: Make) -> None:
    with pytest.raises(ConfigError, match="color needs RGB"):
        transform(data_config, [{"name": "color"}], normalize={"mean": [0.5], "std": [0.5]})
    with pytest.raises(DataError, match="8-bit images, found uint16"):
        transform(data_config, [{"name": "color"}])(np.zeros((4, 4, 3), np.uint16), np.zeros((4, 4), np.uint8), seed=0)


def test_input_size_comes_first(data_config: Make) -> None:
    step = {"name": "crop", "size": [16, 16]}
    image, target = transform(data_config, [step], input_size=[16, 16])(shown(blocks()), blocks(), seed=0)
    np.testing.assert_array_equal(image, resize_image(shown(blocks()), (16, 16)))
    np.testing.assert_array_equal(target, resize_target(blocks(), (16, 16)))


def test_resizing_keeps_a_single_channel_and_the_same_size_is_no_work() -> None:
    image = np.zeros((8, 6, 1), np.uint8)
    assert resize_image(image, (4, 3)).shape == (4, 3, 1)
    assert resize_image(image, (8, 6)) is image


def _far_from_edges(target: np.ndarray) -> np.ndarray:
    """Pixels whose neighbourhood has one label: elsewhere interpolation mixes the image."""
    wide = np.ones((7, 7), np.uint8)
    return (cv2.erode(target, wide) == target) & (cv2.dilate(target, wide) == target)
