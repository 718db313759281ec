"""The loops that the loader is measured against: what anyone would write, without a look at what is read."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import torch

from segtrain.data.images import DECODE_RGB, AnyArray
from segtrain.data.sampling import Key
from segtrain.data.transforms import TrainTransform
from segtrain.errors import ConfigError

Files = list[tuple[str, str]]  # image and mask of each sample
# As the loader decodes: to RGB at once where OpenCV can; and the orientation in a file is not applied.
COLORS = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION if DECODE_RGB is None else DECODE_RGB


def check_plain(files: Files) -> None:
    """Raise ConfigError for files from which `cv2.imread` alone does not make what the loader makes."""
    for image, mask in files:
        pixels, labels = cv2.imread(image, cv2.IMREAD_UNCHANGED), cv2.imread(mask, cv2.IMREAD_UNCHANGED)
        plain = pixels is not None and pixels.shape[2:] == (3,) and pixels.dtype == np.uint8
        if not plain or labels is None or labels.ndim != 2:
            raise ConfigError(
                f"{image}: `benchmark data` measures 8-bit colour images with masks of one channel that OpenCV reads"
            )


def decode(files: Files) -> None:
    """Decode image and mask of each, and drop them."""
    for image, mask in files:
        cv2.imread(image, COLORS)
        cv2.imread(mask, cv2.IMREAD_UNCHANGED)


def decode_and_transform(files: Files, transform: TrainTransform, keys: list[Key]) -> None:
    """Decode and transform the samples of `keys`, with their draws; each result is dropped at once."""
    for key in keys:
        _transformed(files, transform, key)


def make_batch(files: Files, transform: TrainTransform, keys: list[Key]) -> dict[str, torch.Tensor]:
    """The same, kept and put together by torch.stack, image [N, H, W, C]."""
    pairs = [_transformed(files, transform, key) for key in keys]
    images, targets = ([torch.from_numpy(array) for array in side] for side in zip(*pairs, strict=True))
    return {
        "image": torch.stack(images),
        "target": torch.stack(targets),
        "index": torch.tensor([key[0] for key in keys]),
    }


def _transformed(files: Files, transform: TrainTransform, key: Key) -> tuple[AnyArray, AnyArray]:
    imread: Any = cv2.imread  # never None: see check_plain
    index, seed = key
    image, mask = files[index]
    return transform(imread(image, COLORS), imread(mask, cv2.IMREAD_UNCHANGED), seed=seed, index=index)
