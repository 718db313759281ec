"""Signed distance maps: how far each pixel lies from the boundary of a class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

HALF = np.float16


def signed_distance(
    target: NDArray[Any], *, num_classes: int, ignore_index: int, classes: Sequence[int] | None = None
) -> NDArray[np.float16]:
    """Return each pixel's signed Euclidean distance to each class's boundary, in pixels (Kervadec 2019, eq. 3).

    Outside the class: the distance to the nearest pixel of the class, 1 and more. Inside: minus the distance to the
    nearest pixel of another class, plus 1, so 0 and less: the class's outermost pixels are its boundary, as in
    the authors' code.

    Ignored pixels are at 0, and none is measured to them: where a class meets an ignored region is no boundary, since
    what lies behind is not known. A class without a pixel, or without a valid pixel of another class beside it in the
    image, has no boundary: its map is 0, and the boundary loss passes it by.

    float16, as maps travel from workers to the device: exact for whole distances up to 2048, else to 1 part in 2048.

    Args:
        target: integer `[H, W]`.
        num_classes: C.
        ignore_index: label of the pixels that count nowhere.
        classes: the classes to measure, in this order; None for all.

    Returns:
        float16 `[K, H, W]`, K the number of classes measured.
    """
    chosen = range(num_classes) if classes is None else classes
    valid = target != ignore_index
    maps = np.zeros((len(chosen), *target.shape), HALF)
    for row, c in zip(maps, chosen, strict=True):
        own = (target == c) & valid
        other = valid & ~own
        if not own.any() or not other.any():
            continue
        outside, inside = _distance_to(own), _distance_to(other)
        row[:] = np.where(own, 1 - inside, outside)
    maps[:, ~valid] = 0
    return maps


def _distance_to(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return each pixel's exact distance to the nearest pixel of the mask, float32 `[H, W]`."""
    away = np.ascontiguousarray(~mask).view(np.uint8)
    return np.asarray(cv2.distanceTransform(away, cv2.DIST_L2, cv2.DIST_MASK_PRECISE))
