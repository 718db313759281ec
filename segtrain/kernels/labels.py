"""Labels of the pixels: their check, and where each pixel is counted."""

from __future__ import annotations

import torch
from torch import Tensor

from segtrain.errors import DataError


def check_labels(target: Tensor, *, num_classes: int, ignore_index: int) -> None:
    """Raise DataError naming labels outside [0, num_classes) with their pixel counts; waits for the device."""
    labels = narrow(target, num_classes=num_classes, ignore_index=ignore_index)
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
    """Return the target in a type that holds its labels, `ignore_index` and `num_classes`: uint8 or int64.

    In uint8, a comparison with -1 would find 255, and a bucket of 256 would be 0.
    """
    if target.dtype == torch.uint8 and 0 <= ignore_index <= 255 and num_classes <= 255:
        return target
    return target.long()


def count(buckets: Tensor, *, num_buckets: int, weight: Tensor | None) -> Tensor:
    """Count the pixels in each bucket, or sum their weights: float64 `[N, num_buckets]` from `[N, P]`.

    Buckets are integers from 0 to num_buckets (which is dropped); exact for counts of any size.
    """
    if not buckets.numel():
        return torch.zeros(len(buckets), num_buckets, dtype=torch.float64)
    if weight is None:
        rows = [torch.bincount(row, minlength=num_buckets + 1)[:num_buckets] for row in buckets]
    else:
        rows = [
            torch.bincount(row, weights.double(), minlength=num_buckets + 1)[:num_buckets]
            for row, weights in zip(buckets, weight, strict=True)
        ]
    return torch.stack(rows).double()
