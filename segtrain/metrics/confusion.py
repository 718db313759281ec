"""The confusion matrix: exact int64 counts of (target, prediction) pairs, and the per-class ratios made of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from segtrain.errors import DataError
from segtrain.metrics.prediction import predict_classes


class ConfusionMatrix:
    """Counts of valid pixels by (target class, predicted class), summed over images.

    matrix: int64 [C, C], rows are targets, columns predictions. images: int64 [C], the number of images
    whose target holds the class. num_images: images seen. All three live on the CPU.
    """

    def __init__(self, num_classes: int, ignore_index: int = 255) -> None:
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, found {num_classes}")
        if 0 <= ignore_index < num_classes:
            raise ValueError(f"ignore_index {ignore_index} is also a class (0 to {num_classes - 1})")
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.matrix = torch.zeros(num_classes, num_classes, dtype=torch.int64)
        self.images = torch.zeros(num_classes, dtype=torch.int64)
        self.num_images = 0

    @torch.no_grad()
    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Count a batch on the device of `prediction`.

        prediction: logits [N, C, H, W] (floats) or classes [N, H, W] (integers of any type).
        target: [N, H, W] integers of any type; pixels equal to ignore_index count nowhere.
        Raises DataError for a label outside 0..C-1, ValueError for such a prediction or for shapes that
        do not agree; nothing of the batch is counted then.
        """
        classes = self._classes_of(prediction)
        _check_integers(classes, target)
        target = target.to(classes.device)
        counts = [self._count(image, labels) for image, labels in zip(classes, target, strict=True)]
        for count in counts:
            self.matrix += count
            self.images += count.sum(dim=1) > 0
        self.num_images += len(counts)

    def _classes_of(self, prediction: Tensor) -> Tensor:
        if not prediction.is_floating_point():
            return prediction
        if prediction.ndim != 4 or prediction.shape[1] != self.num_classes:
            raise ValueError(f"logits must be [N, {self.num_classes}, H, W], found {list(prediction.shape)}")
        return predict_classes(prediction)

    def _count(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Return the int64 [C, C] counts of one image [H, W] on the CPU."""
        if target.numel() == 0:
            return torch.zeros_like(self.matrix)
        num_classes = self.num_classes
        rows, columns = _widen(target), _widen(prediction)
        # Ignored pixels go to a row of their own: cheaper than picking the valid ones out.
        ignored = rows == self.ignore_index
        rows = rows.masked_fill(ignored, 0)
        _check_range(rows, num_classes, DataError, "label", f"or {self.ignore_index} to ignore; see data.label_map")
        columns = columns.masked_fill(ignored, 0)
        _check_range(columns, num_classes, ValueError, "prediction", "the model and num_classes must agree")
        index = rows.masked_fill_(ignored, num_classes).mul_(num_classes).add_(columns)
        counts = torch.bincount(index.flatten(), minlength=(num_classes + 1) * num_classes)
        return counts.view(num_classes + 1, num_classes)[:num_classes].cpu()

    def merge(self, other: ConfusionMatrix) -> None:
        """Add the counts of another matrix over the same classes."""
        if (other.num_classes, other.ignore_index) != (self.num_classes, self.ignore_index):
            raise ValueError("only matrices with the same num_classes and ignore_index can be merged")
        self.matrix += other.matrix
        self.images += other.images
        self.num_images += other.num_images

    def state(self) -> dict[str, Any]:
        """Return the counts as plain numbers and lists (JSON types), for from_state."""
        return {
            "ignore_index": self.ignore_index,
            "matrix": self.matrix.tolist(),
            "images": self.images.tolist(),
            "num_images": self.num_images,
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> ConfusionMatrix:
        """Rebuild a matrix from state()."""
        confusion = cls(len(state["images"]), ignore_index=state["ignore_index"])
        confusion.matrix = torch.tensor(state["matrix"], dtype=torch.int64)
        confusion.images = torch.tensor(state["images"], dtype=torch.int64)
        confusion.num_images = int(state["num_images"])
        return confusion

    @property
    def support(self) -> Tensor:
        """Pixels of each class in the targets, int64 [C]."""
        return self.matrix.sum(dim=1)

    @property
    def predicted(self) -> Tensor:
        """Pixels of each class in the predictions, int64 [C]."""
        return self.matrix.sum(dim=0)

    def iou(self) -> Tensor:
        """Intersection over union, float64 [C]; 0 for a class only ever invented, NaN for one in neither map."""
        hit = self.matrix.diagonal()
        return _ratio(hit, self.support + self.predicted - hit)

    def dice(self) -> Tensor:
        """Dice coefficient (F1) = 2 hit / (support + predicted), float64 [C]; NaN for a class in neither map."""
        return _ratio(2 * self.matrix.diagonal(), self.support + self.predicted)

    def recall(self) -> Tensor:
        """Share of the class's pixels that were found, float64 [C]; NaN where the class is not in the targets."""
        return _ratio(self.matrix.diagonal(), self.support)

    def precision(self) -> Tensor:
        """Share of the predicted pixels that are right, float64 [C]; NaN where the class was never predicted."""
        return _ratio(self.matrix.diagonal(), self.predicted)

    def pixel_accuracy(self) -> float:
        """Share of the valid pixels that are right; NaN without valid pixels."""
        return float(_ratio(self.matrix.diagonal().sum(), self.matrix.sum()))


def _widen(values: Tensor) -> Tensor:
    """Return the values in int32, which holds every index of the matrix at half the traffic of int64.

    Types that int32 cannot hold become int64: no label is ever folded into a valid one.
    """
    narrow = values.dtype in (torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32)
    return values.to(torch.int32 if narrow else torch.int64)


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    """part / whole in float64, NaN where whole is 0."""
    ratio = part.double() / whole.double()
    return torch.where(whole > 0, ratio, torch.nan)


def _check_integers(prediction: Tensor, target: Tensor) -> None:
    for name, tensor in (("prediction", prediction), ("target", target)):
        if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
            raise ValueError(f"{name} must hold integers, found {tensor.dtype}")
        if tensor.ndim != 3:
            raise ValueError(f"{name} must be [N, H, W], found {list(tensor.shape)}")
    if prediction.shape != target.shape:
        raise ValueError(
            f"prediction {list(prediction.shape)} and target {list(target.shape)} differ: "
            "resize the logits to the target, never the target to the logits"
        )


def _check_range(values: Tensor, num_classes: int, error: type[Exception], what: str, hint: str) -> None:
    low, high = (int(value) for value in values.aminmax())
    if low >= 0 and high < num_classes:
        return
    wrong, counts = np.unique(values[(values < 0) | (values >= num_classes)].cpu().numpy(), return_counts=True)
    found = ", ".join(f"{value} ({count} pixels)" for value, count in zip(wrong.tolist(), counts.tolist(), strict=True))
    raise error(f"{what} out of range: found {found}; expected 0 to {num_classes - 1}, {hint}")
