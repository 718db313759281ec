"""JPEG images are decoded straight to RGB: the same values as by way of BGR, to the last bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from segtrain.data import images
from segtrain.data.images import read_image


@pytest.mark.parametrize("subsampling", [0, 2])
@pytest.mark.parametrize("orientation", [None, 6])
def test_jpeg_is_the_same_with_and_without_the_shorter_way(
    save: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, subsampling: int, orientation: int | None
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8)
    options = {} if orientation is None else {"exif": _exif(orientation)}
    path = save("a.jpg", noise, subsampling=subsampling, **options)
    found = read_image(path, in_channels=3, max_pixels=10_000)
    monkeypatch.setattr(images, "DECODE_RGB", None)
    assert found.shape == (37, 53, 3)
    np.testing.assert_array_equal(found, read_image(path, in_channels=3, max_pixels=10_000))
    np.testing.assert_array_equal(found[..., ::-1], cv2.imread(str(path), cv2.IMREAD_UNCHANGED))


def _exif(orientation: int) -> bytes:
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()
