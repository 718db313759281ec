"""The counts of classes that do not exclude each other, a 2x2 table each, and the labels that thresholds predict."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from segtrain.errors import DataError


class MultiLabelConfusion:
    """Counts of valid (pixel, class) pairs by (target, prediction), summed over images; one class is the binary case.

    matrix: int64 [C, 2, 2], for each class rows are targets and columns predictions: [[TN, FP], [FN, TP]]. images:
    int64 [C], the number of images whose target holds the class. num_images: images seen. All live on the CPU.
    """

    def __init__(self, num_classes: int, ignore_index: int = 255) -> None:
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, found {num_classes}")
        if ignore_index in (0, 1):
            raise ValueError(f"ignore_index {ignore_index} is also a label: targets are 0 (no) and 1 (yes)")
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.matrix = torch.zeros(num_classes, 2, 2, dtype=torch.int64)
        self.images = torch.zeros(num_classes, dtype=torch.int64)
        self.num_images = 0

    @torch.no_grad()
    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Count a batch on the device of `prediction`.

        prediction: [N, C, H, W] of 0 and 1 (integers or bool), as `predict_labels` gives them.
        target: integers [N, C, H, W] of 0, 1 and ignore_index; pairs that are ignored count nowhere.
        Raises DataError for another label in the target, ValueError for another prediction or shapes that do not
        agree; nothing of the batch is counted then.
        """
        self._check(prediction, target)
        target = target.to(prediction.device)
        counts = [self._count(found, labels) for found, labels in zip(prediction, target, strict=True)]
        for count in counts:
            self.matrix += count
            self.images += count[:, 1].sum(dim=1) > 0
        self.num_images += len(counts)

    def _check(self, prediction: Tensor, target: Tensor) -> None:
        for name, tensor in (("prediction", prediction), ("target", target)):
            if tensor.is_floating_point() or tensor.is_complex():
                raise ValueError(f"{name} must hold integers, found {tensor.dtype}: see predict_labels for logits")
            if tensor.ndim != 4 or tensor.shape[1] != self.num_classes:
                raise ValueError(f"{name} must be [N, {self.num_classes}, H, W], found {list(tensor.shape)}")
        if prediction.shape != target.shape:
            raise ValueError(
                f"prediction {list(prediction.shape)} and target {list(target.shape)} differ: "
                "resize the logits to the target, never the target to the logits"
            )

    def _count(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Return the int64 [C, 2, 2] counts of one image, prediction and target [C, H, W], on the CPU."""
        found, wanted = prediction == 1, target == 1
        absent = target == 0
        if int((found | (prediction == 0)).logical_not().sum()):
            raise ValueError("a prediction is neither 0 nor 1: see predict_labels for logits")
        _check_labels(target, known=wanted | absent | (target == self.ignore_index), ignore_index=self.ignore_index)
        positives, negatives = wanted.sum(dim=(1, 2)), absent.sum(dim=(1, 2))
        hits, invented = (wanted & found).sum(dim=(1, 2)), (absent & found).sum(dim=(1, 2))
        rows = torch.stack([negatives - invented, invented, positives - hits, hits], dim=1)
        return rows.view(self.num_classes, 2, 2).cpu()

    def merge(self, other: MultiLabelConfusion) -> None:
        """Add the counts of another table; raises ValueError where its classes or its ignore_index are others."""
        if (other.num_classes, other.ignore_index) != (self.num_classes, self.ignore_index):
            raise ValueError("only counts with the same num_classes and ignore_index can be merged")
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
    def from_state(cls, state: dict[str, Any]) -> MultiLabelConfusion:
        """Rebuild the counts from state()."""
        confusion = cls(len(state["images"]), ignore_index=state["ignore_index"])
        confusion.matrix = torch.tensor(state["matrix"], dtype=torch.int64).view(-1, 2, 2)
        confusion.images = torch.tensor(state["images"], dtype=torch.int64)
        confusion.num_images = int(state["num_images"])
        return confusion

    @property
    def hits(self) -> Tensor:
        """Pixels of each class that were found, int64 [C]."""
        return self.matrix[:, 1, 1]

    @property
    def support(self) -> Tensor:
        """Pixels of each class in the targets, int64 [C]."""
        return self.matrix[:, 1].sum(dim=1)

    @property
    def predicted(self) -> Tensor:
        """Pixels of each class in the predictions, int64 [C]."""
        return self.matrix[:, :, 1].sum(dim=1)

    @property
    def valid(self) -> Tensor:
        """Pixels at which each class is labelled at all, yes or no, int64 [C]."""
        return self.matrix.sum(dim=(1, 2))

    def iou(self) -> Tensor:
        """Intersection over union, float64 [C]; 0 for a class only ever invented, NaN for one in neither map."""
        return _ratio(self.hits, self.support + self.predicted - self.hits)

    def dice(self) -> Tensor:
        """Dice coefficient (F1) = 2 hits / (support + predicted), float64 [C]; NaN for a class in neither map."""
        return _ratio(2 * self.hits, self.support + self.predicted)

    def recall(self) -> Tensor:
        """Share of the class's pixels that were found, float64 [C]; NaN where the class is not in the targets."""
        return _ratio(self.hits, self.support)

    def precision(self) -> Tensor:
        """Share of the predicted pixels that are right, float64 [C]; NaN where the class was never predicted."""
        return _ratio(self.hits, self.predicted)

    def pixel_accuracy(self) -> float:
        """Share of the valid (pixel, class) pairs that are right; NaN without any."""
        return float(_ratio(self.matrix.diagonal(dim1=1, dim2=2).sum(), self.matrix.sum()))


@torch.no_grad()
def predict_labels(logits: Tensor, thresholds: Sequence[float] | Tensor) -> Tensor:
    """Return which classes are present at each pixel, [N, C, H, W] floats -> [N, C, H, W] uint8 of 0 and 1.

    A class is present where its probability σ(z) is at least its threshold; a NaN is absent.

    thresholds: probabilities above 0 and below 1, one for each class, [C]. Raises ValueError for others, and for
    logits of another shape.
    """
    if logits.ndim != 4 or not logits.is_floating_point():
        raise ValueError(f"logits must be float [N, C, H, W], found {logits.dtype} {list(logits.shape)}")
    limits = threshold_logits(thresholds)
    if limits.numel() != logits.shape[1]:
        raise ValueError(f"{limits.numel()} thresholds for {logits.shape[1]} classes")
    return (logits.float() >= limits.to(logits.device).view(-1, 1, 1)).to(torch.uint8)


def threshold_logits(thresholds: Sequence[float] | Tensor) -> Tensor:
    """Return the logits at which σ(z) reaches the thresholds, float32 [K]: log t − log(1 − t).

    Raises ValueError for thresholds that are not above 0 and below 1.
    """
    values = torch.as_tensor(thresholds, dtype=torch.float64)
    if not bool(((values > 0) & (values < 1)).all()):
        raise ValueError(f"thresholds lie between 0 and 1, found {values.tolist()}")
    return (values.log() - (-values).log1p()).float()


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    """part / whole in float64, NaN where whole is 0."""
    return torch.where(whole > 0, part.double() / whole.double(), torch.nan)


def _check_labels(target: Tensor, *, known: Tensor, ignore_index: int) -> None:
    if bool(known.all()):
        return
    values, counts = torch.unique(target[~known].cpu(), return_counts=True)
    found = ", ".join(
        f"{value} ({count} pixels)" for value, count in zip(values.tolist(), counts.tolist(), strict=True)
    )
    raise DataError(f"label out of range: found {found}; expected 0, 1, or {ignore_index} to ignore")
