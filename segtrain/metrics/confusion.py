"""The confusion matrix: exact int64 counts of (target, prediction) pairs, and the per-class ratios made of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from segtrain.errors import DataError
from segtrain.kernels.confusion import ConfusionCounts, confusion_update
from segtrain.kernels.upsample import CoarseLogits


class ConfusionMatrix:
    """Counts of valid pixels by (target class, predicted class), summed over images.

    matrix: int64 [C, C], rows are targets, columns predictions. images: int64 [C], the number of images
    whose target holds the class. num_images: images seen. All three live on the CPU.

    What is counted on a CUDA device stays there until one of the first two is read: updates do not wait for it.
    """

    def __init__(self, num_classes: int, ignore_index: int = 255) -> None:
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, found {num_classes}")
        if 0 <= ignore_index < num_classes:
            raise ValueError(f"ignore_index {ignore_index} is also a class (0 to {num_classes - 1})")
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self._matrix = torch.zeros(num_classes, num_classes, dtype=torch.int64)
        self._images = torch.zeros(num_classes, dtype=torch.int64)
        self._on_devices: dict[torch.device, Tensor] = {}
        self.num_images = 0

    @property
    def matrix(self) -> Tensor:
        """The counts; raises DataError where labels counted on a CUDA device were out of range."""
        self._fetch()
        return self._matrix

    @matrix.setter
    def matrix(self, counts: Tensor) -> None:
        self._on_devices.clear()
        self._matrix = counts

    @property
    def images(self) -> Tensor:
        """The images that hold each class; raises as `matrix` does."""
        self._fetch()
        return self._images

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Count a batch on the device of `prediction`, with one read of it.

        prediction: logits [N, C, H, W] (floats; the largest counts, see `predict_classes`) or classes [N, H, W]
        (integers of any type).
        target: [N, H, W] integers of any type; pixels equal to ignore_index count nowhere.
        Raises DataError for a label outside 0..C-1, ValueError for such a prediction or for shapes that
        do not agree; nothing of the batch is counted then. On CUDA, where a look at the labels would wait for the
        device, the first of them comes when `matrix` is read.
        """
        self._add(confusion_update(prediction, target, num_classes=self.num_classes, ignore_index=self.ignore_index))

    def update_and_predict(
        self,
        logits: Tensor | CoarseLogits,
        target: Tensor,
        *,
        shift: Tensor | None = None,
        size: tuple[int, int] | None = None,
    ) -> Tensor:
        """Count a batch of logits, and return their classes [N, H, W] (uint8, int16 above 256) from the same read.

        shift: floats [C], added to the logits of every pixel; see `prior_shift`. size: of the target, to which logits
        of another size are enlarged (bilinear, corners not aligned) while they are read: at full size they never exist.
        Raises as `update` does.
        """
        counts = confusion_update(
            logits,
            target,
            num_classes=self.num_classes,
            ignore_index=self.ignore_index,
            shift=shift,
            size=size,
            with_prediction=True,
        )
        self._add(counts)
        assert counts.prediction is not None
        return counts.prediction

    def _add(self, counts: ConfusionCounts) -> None:
        self.num_images += len(counts.matrix)
        matrix, images = counts.matrix.sum(0), (counts.matrix.sum(2) > 0).sum(0)
        if matrix.device.type == "cpu":
            self._matrix += matrix
            self._images += images
            return
        flat = torch.cat((matrix.flatten(), images, counts.wrong.sum(0)))
        before = self._on_devices.get(flat.device)
        self._on_devices[flat.device] = flat if before is None else before + flat

    def _fetch(self) -> None:
        """Bring what was counted on devices to the CPU; raises where any of it was wrong."""
        while self._on_devices:
            _, flat = self._on_devices.popitem()
            found = flat.cpu()
            cells, images, wrong = found[: -self.num_classes - 2], found[-self.num_classes - 2 : -2], found[-2:]
            if wrong.any():
                raise DataError(
                    f"label out of range in {int(wrong[0])} pixels, prediction out of range in {int(wrong[1])}; "
                    f"expected 0 to {self.num_classes - 1}, and {self.ignore_index} for labels to ignore; see "
                    "data.label_map. Which values they are is told on the CPU (device: cpu)"
                )
            self._matrix += cells.view_as(self._matrix)
            self._images += images

    def merge(self, other: ConfusionMatrix) -> None:
        """Add the counts of another matrix; raises ValueError where its classes or its ignore_index are others."""
        if (other.num_classes, other.ignore_index) != (self.num_classes, self.ignore_index):
            raise ValueError("only matrices with the same num_classes and ignore_index can be merged")
        self._matrix += other.matrix
        self._images += other.images
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
        confusion._matrix = torch.tensor(state["matrix"], dtype=torch.int64)
        confusion._images = torch.tensor(state["images"], dtype=torch.int64)
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


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    """part / whole in float64, NaN where whole is 0."""
    ratio = part.double() / whole.double()
    return torch.where(whole > 0, ratio, torch.nan)
