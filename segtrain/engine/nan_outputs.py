"""What becomes of logits that hold NaN or infinity: an argmax of them would pass for a prediction."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from segtrain.errors import SegtrainError

REMEDY = (
    "such values come from weights that have diverged, or from a precision that overflows: try train.precision=fp32, "
    "or a checkpoint from earlier in the training; to exclude a class, a large negative logit serves, not -inf"
)


def nan_warning(count: int, split: str) -> str:
    """Return what to say of an evaluation in which `count` images (or tiles) had logits that are not finite."""
    what = "image (or tile) has" if count == 1 else "images (or tiles) have"
    said = f"{count} {what} logits that hold NaN or infinity: the scores of {split} mean nothing there"
    return f"{said}, and such an evaluation beats no other; {REMEDY}"


class NanError(SegtrainError):
    """A model made NaN of an image: no class can be told."""


class NanOutputs(Protocol):
    """What looks at the logits [N, K, h, w] of each forward pass."""

    def see(self, logits: Tensor, /) -> None: ...


class RefuseNan:
    """Raises NanError where logits are not finite: what is predicted is to be used."""

    def see(self, logits: Tensor, /) -> None:
        """Raise NanError if any of the logits [N, K, h, w] is not finite."""
        if count_nan(logits):
            raise NanError(f"the model's logits hold NaN or infinity, so that no class can be told; {REMEDY}")


class CountNan:
    """Counts images (or tiles) whose logits are not finite, and lets them pass: what is predicted is to be measured.

    Attributes:
        count: how many there were.
    """

    def __init__(self) -> None:
        self.count = 0

    def see(self, logits: Tensor, /) -> None:
        """Take in logits [N, K, h, w]."""
        self.count += count_nan(logits)


def count_nan(logits: Tensor) -> int:
    """Return for how many of the N images logits [N, K, h, w] hold NaN or infinities. Waits for the device.

    Infinity becomes NaN where logits are enlarged (0 times infinity), and in a softmax.
    """
    # a sum is one read and holds nothing; it is NaN or infinite wherever a closer look is due
    if bool(logits.sum(dtype=torch.promote_types(logits.dtype, torch.float32)).isfinite()):
        return 0
    return int((~logits.isfinite()).flatten(1).any(dim=1).sum())
