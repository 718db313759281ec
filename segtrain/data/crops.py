"""Crops that look at the target: centred on a rare class, or redrawn until no class fills them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from segtrain.config import transforms as sections
from segtrain.data.images import AnyArray
from segtrain.data.steps import Context, Draws, Pair, Step

REDRAWS = 10  # as in MMSegmentation

Window = tuple[slice, slice]


def class_crop(section: sections.Crop, context: Context) -> Step:
    """The crop of a section with center_on or cat_max_ratio.

    Raises:
        ConfigError: `rare`, and the training set is not known.
    """
    classes: tuple[int, ...] = ()
    if section.center_on is not None:
        classes = context.classes(section.center_on, key="data.train_transforms: crop.center_on")
    return ClassCrop(section, classes, context.ignore_index)


@dataclass(frozen=True)
class ClassCrop:
    """Cut a window of section.size, where the target says; what is smaller is padded around first.

    With probability p the window is centred on a pixel of `classes`: first one of those that the target holds is
    drawn, then one of its pixels, all evenly; at the edges the window is moved inside. Where the target holds none of
    them, and otherwise, every window is equally likely. A window in which one class has more than cat_max_ratio of
    the valid pixels (or in which none is valid) is drawn again, ten times at most.
    """

    section: sections.Crop
    classes: tuple[int, ...]
    ignore_index: int

    def __call__(self, image: AnyArray, target: AnyArray, draws: Draws) -> Pair:
        image, target = pad_around(image, target, self.section.size, ignore_index=self.ignore_index)
        window = self._draw(target, draws.generator)
        for _ in range(REDRAWS):
            if self._is_varied(target[window]):
                break
            window = self._draw(target, draws.generator)
        return image[window], target[window]

    def _draw(self, target: AnyArray, generator: np.random.Generator) -> Window:
        size = np.array(self.section.size)
        last = np.array(target.shape[:2]) - size
        place = self._centre(target, generator)
        corner = generator.integers(0, last + 1) if place is None else np.clip(place - size // 2, 0, last)
        top, left = corner.tolist()
        return slice(top, top + self.section.size[0]), slice(left, left + self.section.size[1])

    def _centre(self, target: AnyArray, generator: np.random.Generator) -> np.ndarray | None:
        """Row and column to centre on, or None for any window."""
        if not self.classes or generator.random() >= self.section.p:
            return None
        present = [c for c in self.classes if pixels_of(target, c).any()]
        if not present:
            return None
        pixels = np.flatnonzero(pixels_of(target, present[generator.integers(len(present))]))
        return np.array(np.unravel_index(pixels[generator.integers(len(pixels))], target.shape[:2]))

    def _is_varied(self, target: AnyArray) -> bool:
        if self.section.cat_max_ratio is None:
            return True
        pixels = np.bincount(target[target != self.ignore_index].ravel())
        return bool(pixels.size) and bool(pixels.max() <= self.section.cat_max_ratio * pixels.sum())


def pad_around(image: AnyArray, target: AnyArray, size: tuple[int, int], *, ignore_index: int) -> Pair:
    """Pad to at least `size` [height, width] on all sides: image with zeros, target with ignore_index."""
    missing = [max(0, wanted - found) for wanted, found in zip(size, target.shape[:2], strict=True)]
    if not any(missing):
        return image, target
    sides = [(count // 2, count - count // 2) for count in missing]
    around = [*sides, (0, 0)]
    return np.pad(image, around), np.pad(target, around[: target.ndim], constant_values=ignore_index)


def pixels_of(target: AnyArray, label: int) -> AnyArray:
    """Where a target [H, W] is the class, or one of [H, W, K] holds it: bool [H, W]."""
    return np.asarray(target == label if target.ndim == 2 else target[:, :, label] == 1)
