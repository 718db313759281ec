"""The confusion counts on the CPU: the largest logit of each pixel, and pairs counted by a joint histogram."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor

from segtrain.errors import DataError
from segtrain.kernels.rows import Array, Run, few_rows, kind_of, memory, runs, share_out
from segtrain.kernels.upsample import Size, enlarge, strips

MOST_PIXELS = 2**23  # of one call of calcHist, which counts in float32: exact below 2**24


def class_dtype(num_classes: int) -> torch.dtype:
    """Return the type of a class map: uint8 up to 256 classes, int16 above."""
    return torch.uint8 if num_classes <= 256 else torch.int16


def largest(logits: Tensor, *, shift: Tensor | None) -> Tensor:
    """Return torch.argmax over the channels of `[N, C, H, W]` (ties, NaN and all), of logits + shift, as class_dtype.

    torch's own is slow on a CPU where the channels lie far apart.
    """
    from segtrain.kernels import numba_largest  # Numba takes half a second to import

    images, channels, height, width = logits.shape
    prediction = torch.zeros(images, height, width, dtype=class_dtype(channels))
    kind, flat, found = kind_of(logits.dtype), few_rows(logits), prediction.view(images, height * width).numpy()
    stored = memory(flat)
    added = np.zeros(channels, kind) if shift is None else shift.detach().double().numpy().astype(kind)

    def work(run: Run) -> None:
        place, columns = (run.image * flat.stride(0), flat.stride()[1:]), flat.shape[3]
        scratch = np.empty(numba_largest.WORK, kind)
        numba_largest.largest(stored, *place, columns, run.start, run.stop, added, found[run.image], scratch)

    share_out(work, list(runs(images, height * width, channels=channels)))
    return prediction


def largest_of_enlarged(coarse: Tensor, *, size: Size, crop: Size, shift: Tensor | None) -> Tensor:
    """Return what `largest` does of the bilinear upsampling of coarse logits `[N, C, h, w]`, strip by strip."""
    prediction = torch.empty(coarse.shape[0], *crop, dtype=class_dtype(coarse.shape[1]))
    for strip in strips(coarse, crop):
        part = enlarge(coarse, strip, size=size, width=crop[1])
        prediction[strip.images, strip.rows] = largest(part, shift=shift)
    return prediction


def count_pairs(prediction: Tensor, target: Tensor, *, num_classes: int, ignore_index: int) -> Tensor:
    """Count the pairs (label, prediction) of each image: int64 `[N, C, C]` of integer maps `[N, H, W]`.

    Raises:
        DataError: a label outside 0..C-1 that is not ignored.
        ValueError: such a prediction, at a pixel that is not ignored.
    """
    matrices = torch.zeros(len(target), num_classes, num_classes, dtype=torch.int64)
    for matrix, columns, rows in zip(matrices, prediction, target, strict=True):
        if rows.numel() and rows.dtype == columns.dtype == torch.uint8:
            matrix += _by_histogram(rows.numpy(), columns.numpy(), num_classes, ignore_index)
        elif rows.numel():
            matrix += _by_bincount(rows, columns, num_classes, ignore_index)
    return matrices


def _by_histogram(rows: Array, columns: Array, num_classes: int, ignore_index: int) -> Tensor:
    """Count uint8 pairs in a table of 256 × 256, which shows the wrong ones as well."""
    table = np.zeros((256, 256), np.int64)
    rows, columns = rows.reshape(1, -1), columns.reshape(1, -1)
    for begin in range(0, rows.shape[1], MOST_PIXELS):
        part = slice(begin, begin + MOST_PIXELS)
        pair = [np.ascontiguousarray(rows[:, part]), np.ascontiguousarray(columns[:, part])]
        table += cv2.calcHist(pair, [0, 1], None, [256, 256], [0, 256, 0, 256]).reshape(256, 256).astype(np.int64)
    if 0 <= ignore_index < 256:
        table[ignore_index] = 0
    _refuse_labels(*_found(table[num_classes:].sum(1), num_classes), num_classes, ignore_index)
    _refuse_predictions(*_found(table[:, num_classes:].sum(0), num_classes), num_classes)
    return torch.from_numpy(table[:num_classes, :num_classes])


def _by_bincount(rows: Tensor, columns: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """Count pairs of any integer types; int64 holds every label, so that none is folded into a valid one."""
    labels, classes = rows.numpy().astype(np.int64).ravel(), columns.numpy().astype(np.int64).ravel()
    valid = labels != ignore_index
    if not valid.all():
        labels, classes = labels[valid], classes[valid]
    _refuse_labels(*_outside(labels, num_classes), num_classes, ignore_index)
    _refuse_predictions(*_outside(classes, num_classes), num_classes)
    counts = np.bincount(labels * num_classes + classes, minlength=num_classes**2)
    return torch.from_numpy(counts.reshape(num_classes, num_classes))


def _found(counts: Array, first: int) -> tuple[Array, Array]:
    return np.flatnonzero(counts) + first, counts[counts > 0]


def _outside(values: Array, num_classes: int) -> tuple[Array, Array]:
    if not values.size or (values.min() >= 0 and values.max() < num_classes):
        return values[:0], values[:0]
    return np.unique(values[(values < 0) | (values >= num_classes)], return_counts=True)


def _refuse_labels(wrong: Array, counts: Array, num_classes: int, ignore_index: int) -> None:
    if wrong.size:
        raise DataError(
            f"label out of range: found {_listing(wrong, counts)}; expected 0 to {num_classes - 1}, or {ignore_index} "
            "to ignore; see data.label_map"
        )


def _refuse_predictions(wrong: Array, counts: Array, num_classes: int) -> None:
    if wrong.size:
        raise ValueError(
            f"prediction out of range: found {_listing(wrong, counts)}; expected 0 to {num_classes - 1}, the model and "
            "num_classes must agree"
        )


def _listing(wrong: Array, counts: Array) -> str:
    return ", ".join(f"{value} ({count} pixels)" for value, count in zip(wrong.tolist(), counts.tolist(), strict=True))
