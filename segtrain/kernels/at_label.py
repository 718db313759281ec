"""Reading and writing logits at the label of each pixel: by a one-hot form where classes are few, else by index."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

FEW_CLASSES = 5  # up to here passes over all classes are faster than gather and scatter
SEGMENT = 512  # pixels that are summed in their own type; what they add up to is summed in float64


class AtLabel(ABC):
    """The labels of a chunk of B images, C classes and p pixels. Nothing is said of ignored pixels but where it is.

    Attributes:
        ignored: float `[B, p]`, 1 where the pixel is ignored, 0 where it has a class.
    """

    ignored: Tensor

    @abstractmethod
    def take(self, values: Tensor) -> Tensor:
        """Return what `[B, C, p]` holds at the labels: a new `[B, p]`, some finite number where ignored."""

    @abstractmethod
    def take_out(self, values: Tensor) -> Tensor:
        """Return the same of positive values, positive where ignored too, and leave 0 in its place."""

    @abstractmethod
    def put(self, values: Tensor, at_label: Tensor) -> None:
        """Write `[B, p]`, which is 0 where ignored, to the labels' places in `[B, C, p]`, which hold 0."""

    @abstractmethod
    def subtract(self, values: Tensor, vector: Tensor, *, out: Tensor) -> Tensor:
        """Take what `[C]` holds for the label from the label's value, into `out`, which may be `values`."""

    @abstractmethod
    def look_up(self, tables: Tensor) -> tuple[Tensor, ...]:
        """Return what each of K tables `[B, K, C]` holds for the labels: K new `[B, p]`, 0 where ignored."""

    @abstractmethod
    def sums(self, values: Sequence[Tensor]) -> Tensor:
        """Sum K finite values `[B, p]` over the pixels of each label: float64 `[K, B, C]`."""


def at_label(buckets: Tensor, *, num_classes: int, dtype: torch.dtype) -> AtLabel:
    """Read labels `[B, p]`, `num_classes` where ignored."""
    return (OneHot if num_classes <= FEW_CLASSES else Indexed)(buckets, num_classes=num_classes, dtype=dtype)


class OneHot(AtLabel):
    """Passes over all classes and products with a matrix of 0 and 1."""

    def __init__(self, buckets: Tensor, *, num_classes: int, dtype: torch.dtype) -> None:
        labels, classes = buckets.to(dtype), torch.arange(num_classes, dtype=dtype).view(1, -1, 1)
        # a comparison is many times slower where it makes bools
        self._one_hot = torch.empty(len(labels), num_classes, labels.shape[1], dtype=dtype)
        torch.eq(labels.unsqueeze(1), classes, out=self._one_hot)
        self.ignored = torch.eq(labels, num_classes, out=labels)

    def take(self, values: Tensor) -> Tensor:
        found = over_classes(values * self._one_hot).squeeze(1)
        if bool(found.sum().isfinite()):
            return found
        return torch.where(self._one_hot == 1, values, 0.0).sum(1)  # 0 times the −inf of another class is NaN

    def take_out(self, values: Tensor) -> Tensor:
        alone = values * self._one_hot
        values.sub_(alone)
        return over_classes(alone).squeeze(1).add_(self.ignored)

    def put(self, values: Tensor, at_label: Tensor) -> None:
        values.addcmul_(self._one_hot, at_label.unsqueeze(1))

    def subtract(self, values: Tensor, vector: Tensor, *, out: Tensor) -> Tensor:
        return torch.addcmul(values, self._one_hot, vector.view(1, -1, 1), value=-1, out=out)

    def look_up(self, tables: Tensor) -> tuple[Tensor, ...]:
        return product(tables, self._one_hot).unbind(1)

    def sums(self, values: Sequence[Tensor]) -> Tensor:
        if len(self._one_hot) == 1:  # faster than a product with a stack of them
            return torch.stack([torch.mv(self._one_hot[0], value[0]) for value in values]).unsqueeze(1).double()
        return product(torch.stack(tuple(values), 1), self._one_hot.transpose(1, 2)).transpose(0, 1).double()


class Indexed(AtLabel):
    """Gather and scatter, whose cost does not grow with the number of classes."""

    def __init__(self, buckets: Tensor, *, num_classes: int, dtype: torch.dtype) -> None:
        self._num_classes = num_classes
        self._bucket = buckets.long()
        self._index = self._bucket.clamp(max=num_classes - 1).unsqueeze(1)
        self.ignored = (buckets.to(dtype) - (num_classes - 1)).clamp_min_(0)

    def take(self, values: Tensor) -> Tensor:
        return values.gather(1, self._index).squeeze(1)

    def take_out(self, values: Tensor) -> Tensor:
        alone = self.take(values)
        values.scatter_(1, self._index, torch.zeros((), dtype=values.dtype).expand(self._index.shape))
        return alone

    def put(self, values: Tensor, at_label: Tensor) -> None:
        values.scatter_(1, self._index, at_label.unsqueeze(1))

    def subtract(self, values: Tensor, vector: Tensor, *, out: Tensor) -> Tensor:
        out.copy_(values)
        return out.scatter_add_(1, self._index, -vector[self._index])

    def look_up(self, tables: Tensor) -> tuple[Tensor, ...]:
        padded = torch.nn.functional.pad(tables, (0, 1))
        if len(padded) == 1:  # twice as fast as gather
            return tuple(table.index_select(0, self._bucket[0]).unsqueeze(0) for table in padded[0])
        return tuple(table.gather(1, self._bucket) for table in padded.unbind(1))

    def sums(self, values: Sequence[Tensor]) -> Tensor:
        # in segments: they keep the threads busy, need no copy of the values in float64, and lose next to nothing
        images, pixels = self._bucket.shape
        whole = pixels - pixels % SEGMENT
        result = torch.zeros(len(values), images, self._num_classes + 1, dtype=torch.float64)
        for part, length in ((slice(whole), SEGMENT), (slice(whole, pixels), pixels - whole)):
            buckets = self._bucket[:, part]
            if not buckets.numel():
                continue
            index = buckets.reshape(images, -1, length)
            for row, value in zip(result, values, strict=True):
                sums = torch.zeros(images, index.shape[1], self._num_classes + 1, dtype=value.dtype)
                row += sums.scatter_add_(2, index, value[:, part].reshape(index.shape)).sum(1).double()
        return result[:, :, :-1]


def product(left: Tensor, right: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Return `[B, m, n]` of `[B, m, k]` and `[B, k, n]`: of one image by the product that is several times faster."""
    if len(left) > 1:
        return torch.matmul(left, right, out=out)
    return torch.mm(left[0], right[0], out=None if out is None else out[0]).unsqueeze(0)


def over_classes(values: Tensor, slopes: Tensor | None = None) -> Tensor:
    """Sum `[B, C, p]` over the classes, and the same times slopes `[B, C]`, as one product: `[B, 1 or 2, p]`."""
    ones = torch.ones_like(values[:, :, 0])
    return product(torch.stack((ones,) if slopes is None else (ones, slopes), dim=1), values)


def as_floats(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a bool tensor as 0 and 1: its bytes are faster to convert than its truth."""
    return mask.view(torch.uint8).to(dtype)
