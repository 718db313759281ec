"""The ways to a confusion matrix that are measured against each other: ours, torchmetrics', and torch's operators."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from segtrain.benchmark.cases import Case, CaseInputs
from segtrain.kernels.upsample import CoarseLogits
from segtrain.metrics import ConfusionMatrix

Update = Callable[[Tensor, Tensor], object]
Reads = Literal["logits", "classes", "coarse"]
COARSE = 4  # times smaller, each way, are the coarse logits


@dataclass(frozen=True)
class ConfusionSubject:
    """A way to count.

    Attributes:
        label: its name in the table.
        make: builds the function (values, target) that counts one batch.
        reads: what `values` are: the logits, their classes (made beforehand), or logits at a quarter of the size.
        needs: a module that must be installed.
        is_ours: its failure is an error, and no row that says why.
    """

    label: str
    make: Callable[[Case], Update]
    reads: Reads = "logits"
    needs: str | None = None
    is_ours: bool = False

    def missing(self) -> str | None:
        """Say why it cannot be measured here, or None."""
        if self.needs is not None and find_spec(self.needs) is None:
            return f"{self.needs} is not installed (pip install {self.needs})"
        return None

    def values(self, case: Case, inputs: CaseInputs) -> Tensor:
        """Return what it counts, made before anything is measured."""
        logits = inputs.logits.detach()
        if self.reads == "classes":
            return logits.argmax(1).to(torch.uint8 if case.classes <= 256 else torch.int16)
        if self.reads == "coarse":
            return logits[:, :, ::COARSE, ::COARSE].contiguous()
        return logits


def _ours(case: Case) -> Update:
    # a matrix that is kept: on CUDA its counts stay on the device, as in an evaluation
    return ConfusionMatrix(case.classes, ignore_index=case.ignore_index).update


def _ours_coarse(case: Case) -> Update:
    matrix, size = ConfusionMatrix(case.classes, ignore_index=case.ignore_index), (case.size, case.size)
    return lambda values, target: matrix.update_and_predict(CoarseLogits(values, size, size), target)


def _torchmetrics(case: Case) -> Update:
    from torchmetrics.functional.classification import multiclass_confusion_matrix  # type: ignore[import-not-found, unused-ignore]

    count: Update = partial(
        multiclass_confusion_matrix, num_classes=case.classes, ignore_index=case.ignore_index, validate_args=False
    )
    return count


def _torch(case: Case) -> Update:
    classes = case.classes

    def count(values: Tensor, target: Tensor) -> Tensor:
        valid = target != case.ignore_index
        found = values.argmax(1) if values.is_floating_point() else values
        pairs = target[valid].long() * classes + found[valid]
        return torch.bincount(pairs, minlength=classes**2).view(classes, classes)

    return count


def _torch_coarse(case: Case) -> Update:
    count, size = _torch(case), (case.size, case.size)
    return lambda values, target: count(interpolate(values, size=size, mode="bilinear", align_corners=False), target)


TORCHMETRICS, OURS = "torchmetrics", "ours"
CONFUSION_SUBJECTS = {
    TORCHMETRICS: ConfusionSubject("torchmetrics, logits", _torchmetrics, needs="torchmetrics"),
    "torch": ConfusionSubject("torch, logits", _torch),
    OURS: ConfusionSubject("ours, logits", _ours, is_ours=True),
    "torchmetrics_classes": ConfusionSubject("torchmetrics, classes", _torchmetrics, "classes", needs="torchmetrics"),
    "torch_classes": ConfusionSubject("torch, classes", _torch, "classes"),
    "ours_classes": ConfusionSubject("ours, classes", _ours, "classes", is_ours=True),
    "torch_coarse": ConfusionSubject("torch, coarse logits", _torch_coarse, "coarse"),
    "ours_coarse": ConfusionSubject("ours, coarse logits", _ours_coarse, "coarse", is_ours=True),
}
