"""What becomes of logits that hold NaN: an argmax calls them class 0, which would pass for a prediction."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from segtrain.errors import SegtrainError

REMEDY = (
    "such values come from weights that have diverged, or from a precision that overflows: try train.precision=fp32, "
    "or a checkpoint from earlier in the training"
)


def nan_warning(count: int, split: str) -> str:
    """Return what to say of an evaluation in which `count` images (or tiles) had logits that hold NaN."""
    what = "image (or tile) has" if count == 1 else "images (or tiles) have"
    return f"{count} {what} logits that hold NaN: the scores of {split} mean nothing there; {REMEDY}"


class NanError(SegtrainError):
    """A model made NaN of an image: no class can be told."""


class NanOutputs(Protocol):
    """What looks at the logits [N, K, h, w] of each forward pass."""

    def see(self, logits: Tensor, /) -> None: ...


class RefuseNan:
    """Raises NanError where logits hold NaN: what is predicted is to be used."""

    def see(self, logits: Tensor, /) -> None:
        """Raise NanError if any of the logits [N, K, h, w] is NaN."""
        if count_nan(logits):
            raise NanError(f"the model's logits hold NaN, so that no class can be told; {REMEDY}")


class CountNan:
    """Counts images (or tiles) whose logits hold NaN, and lets them pass: what is predicted is to be measured.

    Attributes:
        count: how many there were.
    """

    def __init__(self) -> None:
        self.count = 0

    def see(self, logits: Tensor, /) -> None:
        """Take in logits [N, K, h, w]."""
        self.count += count_nan(logits)


def count_nan(logits: Tensor) -> int:
    """Return for how many of the N images logits [N, K, h, w] hold NaN; infinities are none. Waits for the device."""
    # a sum is one read and holds nothing; it is NaN or infinite wherever a closer look is due
    if bool(logits.sum(dtype=torch.promote_types(logits.dtype, torch.float32)).isfinite()):
        return 0
    return int(logits.isnan().flatten(1).any(dim=1).sum())
