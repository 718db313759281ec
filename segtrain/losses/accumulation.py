"""The denominators of an accumulation window: what micro-batches need to add up to the loss of one large batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from segtrain.losses.class_sums import target_pixels


@dataclass(frozen=True, eq=False)
class Normalizer:
    """Counts over all micro-batches of a window, from the targets alone; all tensors float64."""

    pixels: Tensor  # [C]: valid pixels of each class (with sigmoid its positives), times their pixel weight
    valid: Tensor  # [C]: valid pixels that could have held the class, times their pixel weight
    images: Tensor  # [C]: images that hold the class
    valid_images: Tensor  # [C]: images with a pixel that could have held the class
    num_present: Tensor  # scalar: images that hold any class
    num_images: Tensor  # scalar: all images
    num_pixels: Tensor  # scalar: all pixels of all images, ignored ones too
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
        """Count the targets, integer `[N, H, W]` or (multi-label) `[N, C, H, W]` each, on the device where they are.

        Raises:
            ValueError: no target, or weights that are not one for each.
        """
        windows = list(targets)
        weights = [None] * len(windows) if pixel_weights is None else list(pixel_weights)
        if not windows:
            raise ValueError("an accumulation window needs at least one target")
        if len(weights) != len(windows):
            raise ValueError(f"found {len(weights)} pixel_weights for {len(windows)} targets: give each one, or None")
        pairs = [
            _count(target, num_classes=num_classes, ignore_index=ignore_index, pixel_weight=weight)
            for target, weight in zip(windows, weights, strict=True)
        ]
        pixels, valid = torch.cat([pair[0] for pair in pairs]), torch.cat([pair[1] for pair in pairs])
        sizes = [target.shape[0] * target.shape[-2] * target.shape[-1] for target in windows]
        return cls(
            pixels=pixels.sum(0),
            valid=valid.sum(0),
            images=(pixels > 0).sum(0).double(),
            valid_images=(valid > 0).sum(0).double(),
            num_present=(pixels > 0).any(1).sum().double(),
            num_images=pixels.new_full((), float(len(pixels))),
            num_pixels=pixels.new_full((), float(sum(sizes))),
            num_batches=len(windows),
        )

    def reduced(self, reduce: Callable[[Tensor], Tensor]) -> Normalizer:
        """Return the counts summed over ranks by `reduce`, in one call; every rank has as many micro-batches."""
        names = [field.name for field in fields(self) if field.name != "num_batches"]
        parts: list[Tensor] = [getattr(self, name) for name in names]
        summed = torch.split(reduce(torch.cat([part.flatten() for part in parts])), [part.numel() for part in parts])
        values = {name: value.view(part.shape) for name, value, part in zip(names, summed, parts, strict=True)}
        return Normalizer(**values, num_batches=self.num_batches)


def _count(
    target: Tensor, *, num_classes: int, ignore_index: int, pixel_weight: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return the pixels of each class and the pixels that could have held it, float64 `[N, C]` each."""
    if target.dim() == 3 and num_classes > 1:
        pixels = target_pixels(target, num_classes=num_classes, ignore_index=ignore_index, pixel_weight=pixel_weight)
        return pixels, pixels.sum(1, keepdim=True).expand_as(pixels)
    labels = target.unsqueeze(1) if target.dim() == 3 else target
    labels = labels.long().flatten(2)
    weight = torch.ones((), dtype=torch.float64, device=target.device)
    if pixel_weight is not None:
        weight = pixel_weight.double().flatten(1).unsqueeze(1)
    valid = torch.where(labels == ignore_index, 0.0, weight)
    return torch.where(labels == 1, valid, 0.0).sum(2), valid.sum(2)
