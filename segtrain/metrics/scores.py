"""From the confusion matrix to the numbers that are reported: per class, and means that say what they average."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from segtrain.metrics.confusion import ConfusionMatrix
from segtrain.metrics.multilabel import MultiLabelConfusion

if TYPE_CHECKING:
    from segtrain.data import ClassFrequencies

MEANS = ("miou", "miou_tail", "miou_selected")  # of the IoU over a group of classes
OVERALL = ("fwiou", "pixel_accuracy")  # over all pixels
RATIOS = ("iou", "dice", "precision", "recall")  # of each class, reported as ratio/class


def score_names(class_names: Sequence[str], *, exclude: Sequence[str] = ()) -> list[str]:
    """Return the names of all numbers that `compute_scores` reports for these classes, in its order."""
    means = [mean for mean in MEANS if exclude or mean != "miou_selected"]
    return [*means, *OVERALL, *(f"{ratio}/{name}" for ratio in RATIOS for name in class_names)]


@dataclass(frozen=True)
class Scores:
    """Numbers of one evaluation.

    values: flat {name: number} with the names of `score_names`, NaN where undefined.
    groups: classes (numbers) that each mean is over by definition. counted: how many of them have a
    defined IoU, which are those the mean really averages.
    """

    values: dict[str, float]
    groups: dict[str, tuple[int, ...]]
    counted: dict[str, int]


def tail_classes(pixels: Sequence[int] | Tensor | Any, fraction: float = 1 / 3) -> tuple[int, ...]:
    """Return the rarest `fraction` of the classes that have pixels at all, rarest first, rounded up.

    pixels: count of each class, [C]. Ties go to the lower class number.
    """
    counts = [int(count) for count in pixels]
    present = sorted((count, index) for index, count in enumerate(counts) if count > 0)
    # Without the small slack, fractions such as 0.07 * 100 = 7.000000000000001 would add a class.
    wanted = math.ceil(len(present) * fraction - 1e-9)
    return tuple(index for _, index in present[:wanted])


def compute_scores(
    confusion: ConfusionMatrix | MultiLabelConfusion,
    class_names: Sequence[str],
    *,
    frequencies: ClassFrequencies | None = None,
    tail_fraction: float = 1 / 3,
    exclude: Sequence[str] = (),
) -> Scores:
    """Return every reported number, with which classes each mean is over.

    The tail is chosen by training pixels (`frequencies`), or by the evaluated targets where these are
    not known. Undefined classes are left out of means; a mean of nothing is NaN. fwiou is the mean of the
    IoU weighted by the evaluated pixels of each class. Of classes that do not exclude each other (MultiLabelConfusion)
    every number is that of the class itself, present against absent, and pixel_accuracy counts (pixel, class) pairs.

    Raises:
        ValueError: names that are not one for each class, or excluded ones that are none of them.
    """
    if len(class_names) != confusion.num_classes:
        raise ValueError(f"{len(class_names)} class names for {confusion.num_classes} classes")
    unknown = [name for name in exclude if name not in class_names]
    if unknown:
        raise ValueError(f"excluded classes {unknown} are not among {list(class_names)}")
    support = confusion.support
    groups = {
        "miou": tuple(range(confusion.num_classes)),
        "miou_tail": tail_classes(support if frequencies is None else frequencies.pixels, tail_fraction),
    }
    if exclude:
        groups["miou_selected"] = tuple(index for index, name in enumerate(class_names) if name not in exclude)
    iou = confusion.iou()
    values = {mean: _mean_of_defined(iou, group) for mean, group in groups.items()}
    seen = support > 0
    values["fwiou"] = float((iou[seen] * support[seen]).sum() / support.sum()) if bool(seen.any()) else math.nan
    values["pixel_accuracy"] = confusion.pixel_accuracy()
    for ratio in RATIOS:
        per_class = getattr(confusion, ratio)().tolist()
        values.update({f"{ratio}/{name}": value for name, value in zip(class_names, per_class, strict=True)})
    counted = {mean: sum(not math.isnan(float(iou[index])) for index in group) for mean, group in groups.items()}
    return Scores(values=values, groups=groups, counted=counted)


def _mean_of_defined(values: Tensor, group: Sequence[int]) -> float:
    chosen = values[list(group)]
    defined = chosen[~torch.isnan(chosen)]
    return float(defined.mean()) if defined.numel() else math.nan
