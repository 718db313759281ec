"""Transforms lose no bits of 16-bit, many-band and float images: exact, right to a unit of 65535, or refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from segtrain.config.data import DataConfig
from segtrain.data.transforms import TrainTransform, resize_image
from segtrain.errors import DataError

MOVING = ["crop", "pad", "horizontal_flip", "vertical_flip", "rotate90"]
MIXING = ["random_scale", "rotate", "blur"]
SIZES = {"crop": [24, 24], "pad": [64, 64]}


def transform(name: str, image: Any, *, seed: int = 1) -> Any:
    step: dict[str, Any] = {"name": name} | ({"size": SIZES[name]} if name in SIZES else {"p": 1.0})
    middle = [0.5] * image.shape[2]
    data = DataConfig.model_validate(
        {
            "root": "nowhere",
            "classes": ["a", "b"],
            "train_transforms": [step],
            "normalize": {"mean": middle, "std": middle},
        }
    )
    return TrainTransform(data)(image, np.zeros(image.shape[:2], np.uint8), seed=seed)[0]


def deep(channels: int) -> Any:
    return np.random.default_rng(channels).integers(1, 65536, (40, 48, channels)).astype(np.uint16)


@pytest.mark.parametrize("name", MOVING)
@pytest.mark.parametrize("channels", [1, 3, 4, 7])
def test_what_moves_pixels_keeps_every_bit_of_them(name: str, channels: int) -> None:
    image = deep(channels)
    moved = transform(name, image)
    assert moved.dtype == np.uint16
    high, low = (transform(name, part.astype(np.uint8)) for part in (image >> 8, image & 255))
    np.testing.assert_array_equal(moved, high.astype(np.uint16) * 256 + low)


@pytest.mark.parametrize("name", MIXING)
@pytest.mark.parametrize("channels", [1, 3, 4, 7])
def test_what_mixes_pixels_is_right_to_a_few_units_of_65535(name: str, channels: int) -> None:
    image = deep(channels)
    mixed = transform(name, image)
    assert mixed.dtype == np.uint16
    exact = transform(name, image.astype(np.float32) / 65535) * 65535
    # weights of OpenCV's warps have 5 bits in each direction; 8 bits lost would be an error of up to 255
    assert np.abs(mixed.astype(np.float64) - exact).max() <= 3


def test_resizing_keeps_the_low_bits() -> None:
    ramp = np.broadcast_to(np.arange(64, dtype=np.uint16)[None, :, None] * 3 + 4001, (8, 64, 3))
    assert len(np.unique(resize_image(np.ascontiguousarray(ramp), (4, 32)))) == 32


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_noise_has_the_same_share_of_white_for_every_type(dtype: Any) -> None:
    white = 65535 if dtype == np.uint16 else 1.0
    image = np.full((64, 64, 5), white / 2).astype(dtype)
    noisy = transform("noise", image)
    assert noisy.dtype == dtype
    eight = transform("noise", np.full((64, 64, 5), 127, np.uint8))
    assert (noisy / white).std() == pytest.approx((eight / 255).std(), rel=0.05)
    assert 0 <= noisy.min() <= noisy.max() <= white


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_colour_jitter_of_other_than_8_bits_is_refused(dtype: Any) -> None:
    with pytest.raises(DataError, match=f"color needs 8-bit images, found {np.dtype(dtype)}"):
        transform("color", np.ones((8, 8, 3), dtype))
