"""The denominators of an accumulation window: what micro-batches need to add up to the loss of one large batch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from segtrain.losses.class_sums import target_pixels
from segtrain.losses.region import Absent


@dataclass(frozen=True, eq=False)
class Normalizer:
    """Counts over all micro-batches of a window, from the targets alone."""

    pixels: Tensor  # float64 [C]: valid pixels of each class, times their pixel weight
    images: Tensor  # float64 [C]: images that hold the class
    num_images: Tensor  # float64 scalar: images with any valid pixel
    num_batches: int

    @classmethod
    def count(
        cls,
        targets: Iterable[Tensor],
        *,
        num_classes: int,
        ignore_index: int,
        pixel_weights: Iterable[Tensor] | None = None,
    ) -> Normalizer:
        """Count the targets, integer `[N, H, W]` each, on the device where they are."""
        windows = list(targets)
        weights = [None] * len(windows) if pixel_weights is None else list(pixel_weights)
        if not windows:
            raise ValueError("an accumulation window needs at least one target")
        rows = torch.cat(
            [
                target_pixels(target, num_classes=num_classes, ignore_index=ignore_index, pixel_weight=weight)
                for target, weight in zip(windows, weights, strict=True)
            ]
        )
        present = rows > 0
        return cls(rows.sum(0), present.sum(0).double(), present.any(1).sum().double(), len(windows))

    def region_weight(self, *, absent_classes: Absent, class_weights: Tensor | None) -> Tensor:
        """Return the sum of weights over the (image, class) pairs that a per-image region term averages."""
        pairs = self.images if absent_classes == "skip" else self.num_images.expand_as(self.images)
        return (pairs if class_weights is None else pairs * class_weights).sum()
