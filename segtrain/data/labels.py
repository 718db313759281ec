"""Targets of classes that do not exclude each other: a yes or no of each class, from masks of any layout."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segtrain.config.data import DataConfig
from segtrain.data.images import AnyArray
from segtrain.data.masks import LabelRules
from segtrain.errors import DataError, some

Counts = NDArray[np.int64]
MAX_VALUES_SHOWN = 10


@dataclass(frozen=True)
class MultiLabelRules:
    """What raw masks mean where each class is a yes or no of its own.

    `index` are the rules of masks that hold one value for each pixel, with one class more, the last: none of them.
    Masks of layouts with a file for each class come as [C, H, W] of 0, 1 and ignore_index already.
    """

    num_classes: int
    ignore_index: int
    index: LabelRules
    is_mapped: bool

    @classmethod
    def from_config(cls, data: DataConfig) -> MultiLabelRules:
        """Resolve the names in data.label_map, 'none' among them; without any a single class is 1, and none 0."""
        names, ignore = data.class_names, data.ignore_index
        numbers = {name: number for number, name in enumerate(names)} | {"none": len(names), "ignore": ignore}
        labels = data.raw_labels()
        mapping = {0: len(names), 1: 0, ignore: ignore}
        if labels is not None:
            mapping = {raw: numbers[label] if isinstance(label, str) else label for raw, label in labels.items()}
        index = LabelRules(num_classes=len(names) + 1, ignore_index=ignore, mapping=mapping, names=(*names, "none"))
        return cls(len(names), ignore, index, labels is not None)

    @property
    def mapping(self) -> dict[int, int] | None:
        """Raw value -> class, C for none of them, or ignore_index."""
        return self.index.mapping

    @property
    def num_counts(self) -> int:
        """How many numbers `count` returns: 3 C."""
        return 3 * self.num_classes

    def encode(self, raw: AnyArray) -> AnyArray:
        """Turn a raw mask [H, W] or [C, H, W] into a target [C, H, W], uint8 of 0, 1 and ignore_index.

        Raises:
            DataError: values without a meaning, with the number of their pixels.
        """
        if raw.ndim == 3:
            return raw
        try:
            labels = self.index.encode(raw)
        except DataError as error:
            raise DataError(self._told(str(error))) from error
        classes = np.arange(self.num_classes, dtype=np.uint8)[:, None, None]
        target: AnyArray = (labels == classes).view(np.uint8)
        ignored = labels == self.ignore_index
        if ignored.any():
            target[:, ignored] = self.ignore_index
        return target

    def count(self, counts: Counts) -> Counts:
        """Fold a histogram of raw values into int64 [3 C]; see `count_labels`."""
        folded = self.index.count(counts)
        positives, ignored = folded[: self.num_classes], folded[-1]
        negatives = folded[:-1].sum() - positives
        return np.concatenate([positives, negatives, np.full_like(positives, ignored)])

    def explain_unknown(self, counts: Counts) -> str:
        """Say which counted raw values have no meaning, and what to do; empty when all have one."""
        told = self.index.explain_unknown(counts)
        return self._told(told) if told else ""

    def _told(self, text: str) -> str:
        """Give advice that fits, where there is no label_map."""
        if self.is_mapped:
            return text
        name = self.index.names[0]
        return (
            f"{text.partition(';')[0]}; without a label_map 0 is none, 1 is {name} and {self.ignore_index} is ignored: "
            f"say what the values mean in data.label_map, such as {suggest_label_map(name)}"
        )


def label_rules(data: DataConfig) -> LabelRules | MultiLabelRules:
    """The rules that turn the raw masks of this data section into targets."""
    return MultiLabelRules.from_config(data) if data.multi_label else LabelRules.from_config(data)


def suggest_label_map(name: str) -> str:
    """The label map for masks of one class that are stored as 0 and 255."""
    return "{" + f"0: none, 255: {name}" + "}"


def count_labels(target: AnyArray, *, num_classes: int, ignore_index: int) -> Counts:
    """Count a target [C, H, W] (or [H, W] where C is 1): positives, negatives and ignored pixels, int64 [3 C].

    Raises:
        DataError: a label that is neither 0, 1 nor ignore_index; ValueError: another number of classes.
    """
    labels = target[None] if target.ndim == 2 else target
    if labels.ndim != 3 or len(labels) != num_classes:
        raise ValueError(f"a target of {num_classes} classes is [{num_classes}, H, W], found {list(target.shape)}")
    counted = [np.count_nonzero(labels == value, axis=(1, 2)) for value in (1, 0, ignore_index)]
    if np.sum(counted) != labels.size:
        wrong = sorted(set(np.unique(labels).tolist()) - {0, 1, ignore_index})
        raise DataError(f"labels are 0, 1 or {ignore_index}, found {some(wrong, limit=MAX_VALUES_SHOWN)}")
    return np.concatenate(counted).astype(np.int64)
