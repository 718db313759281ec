"""Labels of the pixels: their check, and where each pixel is counted."""

from __future__ import annotations

import torch
from torch import Tensor

from segtrain.errors import DataError

LARGEST_PAIRED = 127  # two such bytes make an int16 that is not negative


def check_labels(target: Tensor, *, num_classes: int, ignore_index: int) -> None:
    """Raise DataError naming labels outside [0, num_classes) with their pixel counts; waits for the device."""
    labels = narrow(target, num_classes=num_classes, ignore_index=ignore_index)
    wraps = labels.dtype == torch.uint8 and ignore_index == 255 and labels.numel() > 0
    if wraps and int((labels + 1).max()) <= num_classes:  # 255 + 1 is 0 in uint8: the whole check in two fast passes
        return
    ignored = labels == ignore_index
    low, high = labels.masked_fill(ignored, 0).aminmax() if labels.numel() else (0, 0)
    if int(low) >= 0 and int(high) < num_classes:
        return
    labels = labels.long()
    wrong = labels[((labels < 0) | (labels >= num_classes)) & ~ignored]
    values, counts = torch.unique(wrong, return_counts=True)
    found = ", ".join(f"{v} ({n} pixels)" for v, n in list(zip(values.tolist(), counts.tolist(), strict=True))[:10])
    raise DataError(
        f"labels out of range in the target: {found}; expected 0 to {num_classes - 1}, or {ignore_index} for ignored "
        "pixels. Map the raw values of the masks with data.label_map, or correct num_classes / ignore_index."
    )


def narrow(target: Tensor, *, num_classes: int, ignore_index: int) -> Tensor:
    """Return the target in a type that holds its labels, `ignore_index` and `num_classes`: uint8, int16 or int64.

    In uint8, a comparison with -1 would find 255, and a bucket of 256 would be 0.
    """
    if target.dtype in (torch.uint8, torch.int16):
        limits = torch.iinfo(target.dtype)
        if limits.min <= ignore_index <= limits.max and num_classes <= limits.max:
            return target
    return target.long()


def to_buckets(target: Tensor, *, num_classes: int, ignore_index: int) -> Tensor:
    """Return where each pixel is counted: its label, `num_classes` where it is ignored; labels as `narrow` has them."""
    labels = narrow(target, num_classes=num_classes, ignore_index=ignore_index)
    if ignore_index >= num_classes:  # one fast pass, as the labels have been checked
        return labels.clamp(max=num_classes)
    return labels.masked_fill(labels == ignore_index, num_classes)


def count(buckets: Tensor, *, num_buckets: int, weight: Tensor | None) -> Tensor:
    """Count the pixels in each bucket, or sum their weights: float64 `[N, num_buckets]` from `[N, P]`, on the CPU.

    Buckets are integers from 0 to num_buckets (which is dropped); exact for counts of any size.
    """
    if not buckets.numel():
        return torch.zeros(len(buckets), num_buckets, dtype=torch.float64)
    if weight is None:
        rows = [_count(row, num_buckets + 1)[:num_buckets] for row in buckets]
    else:  # in float64, one image at a time
        rows = [
            torch.bincount(row, factor.double(), minlength=num_buckets + 1)[:num_buckets]
            for row, factor in zip(buckets, weight, strict=True)
        ]
    return torch.stack(rows).double()


def _count(row: Tensor, length: int) -> Tensor:
    """Count the integers 0 to length − 1 of `[P]`: int64 `[length]`; small bytes by twos, in half the time."""
    pairs = row.dtype == torch.uint8 and row.is_contiguous() and length - 1 <= LARGEST_PAIRED
    if not pairs or row.numel() % 2 or row.storage_offset() % 2:
        return torch.bincount(row, minlength=length)
    table = torch.bincount(row.view(torch.int16), minlength=256 * length).view(length, 256)
    return table.sum(0)[:length] + table.sum(1)
