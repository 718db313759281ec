"""Class maps and errors as pictures of the image's own size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Picture = npt.NDArray[np.uint8]
ClassMap = npt.NDArray[np.integer[Any]]

# Codes of error_codes, the more important the larger: where a picture shrinks, the largest is kept.
ERROR_NAMES = ("", "hit", "invented", "missed")
# Sky blue, vermilion and yellow of Okabe and Ito: told apart by hue and by lightness, whatever the colour vision.
ERROR_COLORS = ((0, 0, 0), (86, 180, 233), (213, 94, 0), (240, 228, 66))
DIMMED = 0.5


def to_display(image: npt.NDArray[Any]) -> Picture:
    """Return an image [H, W], [H, W, 1] or [H, W, C] of any type as uint8 RGB [H, W, 3].

    uint8 stays as it is; other types are stretched between their 0.5 and 99.5 percentiles. Two channels
    show the first; more than three show the first three.
    """
    if image.ndim == 2:
        image = image[:, :, None]
    channels = image[:, :, :3] if image.shape[2] >= 3 else image[:, :, :1].repeat(3, axis=2)
    if channels.dtype == np.uint8:
        return np.ascontiguousarray(channels)
    values = channels.astype(np.float32)
    finite = values[np.isfinite(values)]
    low, high = np.percentile(finite, (0.5, 99.5)) if finite.size else (0.0, 1.0)
    stretched = (np.nan_to_num(values, nan=low, posinf=high, neginf=low) - low) / max(float(high - low), 1e-12)
    return np.round(stretched.clip(0, 1) * 255).astype(np.uint8)


def colorize(classes: ClassMap, colors: Picture, *, ignore_index: int = 255) -> Picture:
    """Return a class map [H, W] in the colours [C, 3]: uint8 [H, W, 3]; ignored and unknown pixels are black."""
    table = np.concatenate([colors, np.zeros((1, 3), dtype=np.uint8)])
    picture: Picture = table[np.where(_known(classes, len(colors), ignore_index), classes, len(colors))]
    return picture


def overlay(
    image: npt.NDArray[Any], classes: ClassMap, *, colors: Picture, alpha: float = 0.5, ignore_index: int = 255
) -> Picture:
    """Return the image under the class map's colours (weight alpha, 0 to 1); ignored pixels show the image alone."""
    shown = to_display(image)
    _check_size(shown, classes)
    # In fixed point: float pictures of large images are eight times as much memory.
    weight = round(alpha * 256)
    painted = colorize(classes, colors, ignore_index=ignore_index).astype(np.uint16)
    mixed = (shown.astype(np.uint16) * (256 - weight) + painted * weight + 128) >> 8
    known = _known(classes, len(colors), ignore_index)
    return np.where(known[:, :, None], mixed, shown).astype(np.uint8)


def overlay_labels(
    image: npt.NDArray[Any], labels: ClassMap, *, colors: Picture, classes: Sequence[int], alpha: float = 0.5
) -> Picture:
    """Return the image under the colours of classes that may overlap, their mean where several are present.

    labels: [K, h, w], present where 1. classes: which of them are drawn. alpha: weight of the colours, 0 to 1.
    """
    shown = to_display(image)
    _check_size(shown, labels[0])
    present = labels[list(classes)] == 1
    count = present.sum(axis=0)
    painted = np.tensordot(present.astype(np.float32), colors[list(classes)].astype(np.float32), axes=(0, 0))
    mixed = shown * (1 - alpha) + painted / np.maximum(count, 1)[:, :, None] * alpha
    return np.where(count[:, :, None] > 0, np.rint(mixed), shown).astype(np.uint8)


def error_codes(target: ClassMap, prediction: ClassMap, *, classes: Sequence[int], ignore_index: int = 255) -> Picture:
    """Return what happened to the named classes at each pixel, uint8 [H, W]: an index of ERROR_NAMES.

    hit: a named class, found. missed: a named class taken for another. invented: a named class predicted
    where the target is a class without a name here. A named class taken for another named one is missed.
    Raises ValueError where target and prediction differ in size.
    """
    if target.shape != prediction.shape:
        raise ValueError(f"target {target.shape} and prediction {prediction.shape} differ in size")
    wanted, found = np.isin(target, list(classes)), np.isin(prediction, list(classes))
    right = target == prediction
    codes = np.zeros(target.shape, dtype=np.uint8)
    codes[wanted & right] = 1
    codes[found & ~wanted] = 2
    codes[wanted & ~right] = 3
    codes[target == ignore_index] = 0
    return codes


def paint_errors(image: npt.NDArray[Any], codes: Picture) -> Picture:
    """Return the image [H, W, C] gray and dimmed, with the error codes [H, W] in ERROR_COLORS."""
    shown = to_display(image)
    _check_size(shown, codes)
    gray = (shown.astype(np.float32) @ np.array([0.299, 0.587, 0.114], dtype=np.float32) * DIMMED).astype(np.uint8)
    colors = np.array(ERROR_COLORS, dtype=np.uint8)
    return np.where((codes > 0)[:, :, None], colors[codes], gray[:, :, None]).astype(np.uint8)


def shrink_classes(classes: ClassMap, factor: int, *, keep: Sequence[int]) -> ClassMap:
    """Return a class map [H, W] shrunk by a whole factor; a class of `keep` anywhere in a block stands for the block.

    So a line one pixel wide stays a line: plain resizing would drop it.
    """
    blocks = _blocks(classes, factor)
    wanted = np.isin(blocks, list(keep))
    middle = blocks.shape[2] // 2
    pick = np.where(wanted.any(axis=2), wanted.argmax(axis=2), middle)
    shrunk: ClassMap = np.take_along_axis(blocks, pick[:, :, None], axis=2)[:, :, 0]
    return shrunk


def shrink_codes(codes: Picture, factor: int) -> Picture:
    """Return error codes shrunk by a whole factor: of each block the most important one."""
    shrunk: Picture = _blocks(codes, factor).max(axis=2)
    return shrunk


def _blocks(values: npt.NDArray[Any], factor: int) -> npt.NDArray[Any]:
    """Return [ceil(H / f), ceil(W / f), f * f]; the last blocks repeat the edge."""
    height, width = (-size % factor for size in values.shape)
    padded = np.pad(values, ((0, height), (0, width)), mode="edge")
    rows, columns = padded.shape[0] // factor, padded.shape[1] // factor
    blocks = padded.reshape(rows, factor, columns, factor).transpose(0, 2, 1, 3)
    return blocks.reshape(rows, columns, factor * factor)


def _known(classes: ClassMap, num_classes: int, ignore_index: int) -> npt.NDArray[np.bool_]:
    known: npt.NDArray[np.bool_] = (classes >= 0) & (classes < num_classes) & (classes != ignore_index)
    return known


def _check_size(image: Picture, classes: npt.NDArray[Any]) -> None:
    if image.shape[:2] != classes.shape:
        raise ValueError(f"image {image.shape[:2]} and class map {classes.shape} differ in size")
