"""Copy-paste of rare classes: objects of other training images are put into this one."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from segtrain.config import transforms as sections
from segtrain.data.images import AnyArray
from segtrain.data.steps import Context, Draws, Pair, Step, TrainingSet, resize_image, resize_target
from segtrain.errors import DataError

Mask = NDArray[np.uint8]

PLACES = 10  # that are tried for a region
ON_PLACE = 0.9  # of its pixels on the wished classes


def copy_paste(section: sections.CopyPaste, context: Context) -> Step:
    """The step of a section.

    Raises:
        ConfigError: the training set is not known.
    """
    training = context.known_training("data.train_transforms: copy_paste")
    classes = context.classes(section.classes, key="data.train_transforms: copy_paste.classes")
    onto = None
    if section.onto is not None:
        onto = np.array(context.classes(section.onto, key="data.train_transforms: copy_paste.onto"))
    donors = {c: np.flatnonzero(training.counts[:, c] >= section.min_pixels) for c in classes}
    return CopyPaste(
        section, {c: found for c, found in donors.items() if found.size}, training, context.input_size, onto
    )


@dataclass(frozen=True, eq=False)
class CopyPaste:
    """Paste connected regions of one rare class from one other training image, at any place.

    After Ghiasi et al., *Simple Copy-Paste Is a Strong Data Augmentation Method for Instance Segmentation*, CVPR
    2021, with regions of the masks for instances: a class is drawn, then an image that holds it and is not this one,
    then up to max_objects of its regions, all evenly. Each region is scaled and mirrored, and fits whole into the
    image; a class that the images hold in traces alone changes nothing.

    donors: samples that may give a class, by its number. onto: the classes that regions may cover, None for any;
    a region that finds no such place in ten draws is left out.
    """

    section: sections.CopyPaste
    donors: dict[int, NDArray[np.intp]]
    training: TrainingSet
    input_size: tuple[int, int] | None
    onto: NDArray[np.int64] | None = None

    def __call__(self, image: AnyArray, target: AnyArray, draws: Draws) -> Pair:
        if draws.index is None:
            raise ValueError("copy_paste takes from other samples, and needs the index of this one")
        if not self.donors or draws.python.random() >= self.section.p:
            return image, target
        generator = draws.generator
        label = list(self.donors)[generator.integers(len(self.donors))]
        others = self.donors[label][self.donors[label] != draws.index]
        if not others.size:
            return image, target
        parts = self._parts(int(others[generator.integers(len(others))]), label, image.dtype)
        chosen = generator.permutation(len(parts))[: generator.integers(1, self.section.max_objects + 1)]
        if not chosen.size:
            return image, target
        image, target = image.copy(), target.copy()
        for number in chosen:
            self._paste(*parts[number], image=image, target=target, label=label, draws=draws)
        return image, target

    def _parts(self, donor: int, label: int, dtype: np.dtype[np.generic]) -> list[tuple[AnyArray, Mask]]:
        image, target = self.training.read(donor)
        if image.dtype != dtype:
            raise DataError(f"copy_paste: training images are {dtype} and {image.dtype}; they must have one type")
        if self.input_size is not None:
            image, target = resize_image(image, self.input_size), resize_target(target, self.input_size)
        return regions(image, target == label, min_pixels=self.section.min_pixels)

    def _paste(
        self, part: AnyArray, mask: Mask, *, image: AnyArray, target: AnyArray, label: int, draws: Draws
    ) -> None:
        """Put one region into image and target, in place."""
        generator = draws.generator
        factor = float(np.exp(generator.uniform(*np.log(self.section.scale))))
        factor = min(factor, *(room / side for room, side in zip(target.shape, mask.shape, strict=True)))
        height, width = (max(1, int(side * factor)) for side in mask.shape)
        part, mask = resize_image(part, (height, width)), resize_target(mask, (height, width))
        if draws.python.random() < self.section.flip:
            part, mask = part[:, ::-1], mask[:, ::-1]
        inside = mask > 0
        window = self._place(inside, target, generator) if inside.any() else None  # shrunk to nothing
        if window is None:
            return
        blended = blend(image[window], part, opacity(mask, feather=self.section.feather))
        image[window][inside] = blended[inside]
        target[window][inside] = label

    def _place(
        self, inside: NDArray[np.bool_], target: AnyArray, generator: np.random.Generator
    ) -> tuple[slice, slice] | None:
        """A window of the region's size where it may lie, None where none was found."""
        height, width = inside.shape
        for _ in range(PLACES):
            top, left = (
                int(generator.integers(0, room - side + 1))
                for room, side in zip(target.shape, inside.shape, strict=True)
            )
            window = slice(top, top + height), slice(left, left + width)
            if self.onto is None or np.isin(target[window][inside], self.onto).mean() >= ON_PLACE:
                return window
        return None


def regions(image: AnyArray, mask: NDArray[np.bool_], *, min_pixels: int) -> list[tuple[AnyArray, Mask]]:
    """Connected regions (8 neighbours) of at least `min_pixels` pixels: cut-outs [h, w, C] and masks uint8 [h, w]."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    found = []
    for number in range(1, count):
        left, top, width, height, pixels = stats[number].tolist()
        if pixels >= min_pixels:
            window = slice(top, top + height), slice(left, left + width)
            found.append((image[window], (labels[window] == number).astype(np.uint8)))
    return found


def opacity(mask: Mask, *, feather: float) -> NDArray[np.float32]:
    """Opacity [h, w] of a region: 1/2 at its rim, 1 from `feather` pixels inwards on, 0 outside; 1 for feather 0.

    Never below 1/2 inside: a thin object would else be labelled where it can no longer be seen.
    """
    if not feather:
        return mask.astype(np.float32)
    # 1 at the pixels that touch the outside, which begins beyond the cut-out too
    depth = cv2.distanceTransform(np.pad(mask, 1), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
    return np.asarray(mask * (0.5 + 0.5 * np.clip((depth - 1) / feather, 0, 1)), np.float32)


def blend(below: AnyArray, above: AnyArray, alpha: NDArray[np.float32]) -> AnyArray:
    """alpha × above + (1 − alpha) × below, [h, w, C], rounded, in the type of `below`."""
    weight = alpha[:, :, None].astype(np.float64)  # float32 would lose the last bits of 16
    return np.asarray(np.rint(weight * above + (1 - weight) * below), below.dtype)
