"""The training augmentations: names of the config turned into steps that move image and target together."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # the import below would ask the network for updates

import albumentations as A

from segtrain.config import transforms as sections
from segtrain.config.data import DataConfig
from segtrain.data.copy_paste import copy_paste
from segtrain.data.crops import class_crop
from segtrain.data.images import AnyArray
from segtrain.data.steps import Context, Draws, Pair, Step, TrainingSet, resize_image, resize_target
from segtrain.errors import ConfigError, DataError

__all__ = ["TRANSFORMS", "TrainTransform", "resize_image", "resize_target"]


class TrainTransform:
    """data.input_size and data.train_transforms, as a function of image, target and seed alone.

    albumentations keeps random state in its objects: every worker would draw the same numbers and every epoch
    repeat the last, and Compose.set_random_seed gives all transforms one and the same stream, so that two flips
    always agree. Here each call draws from streams of its own, which all steps share in turn.
    """

    def __init__(self, data: DataConfig, *, training: TrainingSet | None = None) -> None:
        """Build the steps; `training` is for those that look at other samples, or at how rare the classes are.

        Raises:
            ConfigError: a step that needs RGB images, or a training set, without one.
        """
        if len(data.normalize.mean) != 3 and any(step.name == "color" for step in data.train_transforms):
            raise ConfigError("data.train_transforms: color needs RGB images, and model.in_channels is not 3")
        self._input_size = data.input_size
        context = Context(data.class_names, data.ignore_index, data.input_size, training)
        self._steps = [TRANSFORMS[step.name](step, context) for step in data.train_transforms]

    def __call__(self, image: AnyArray, target: AnyArray, *, seed: int, index: int | None = None) -> Pair:
        """Transform image [H, W, C] and target [H, W], or [K, H, W], together; types stay, sizes may change.

        `seed` lies in 0 to 2^64 − 1. `index` is the sample's, for steps that take from other samples. Each step moves
        all K maps of a multi-label target alike.
        """
        return self.drawn(image, target, Draws.from_seed(seed, index=index))

    def drawn(self, image: AnyArray, target: AnyArray, draws: Draws) -> Pair:
        """The same from fresh draws: to make those of some images in a row is quicker."""
        if target.ndim == 3:  # to steps as images are: [H, W, K]
            moved, maps = self._transformed(image, np.ascontiguousarray(np.moveaxis(target, 0, 2)), draws)
            return moved, np.ascontiguousarray(np.moveaxis(maps, 2, 0))
        return self._transformed(image, target, draws)

    def _transformed(self, image: AnyArray, target: AnyArray, draws: Draws) -> Pair:
        if self._input_size is not None:
            image, target = resize_image(image, self._input_size), resize_target(target, self._input_size)
        for step in self._steps:
            image, target = step(image, target, draws)
        return np.ascontiguousarray(image), np.ascontiguousarray(target)


@dataclass(frozen=True)
class Albumentation:
    """One transform of albumentations, without a memory."""

    transform: Any

    def __call__(self, image: AnyArray, target: AnyArray, draws: Draws) -> Pair:
        transform = copy.copy(self.transform)  # the state set below, and the drawn parameters, stay in the copy
        transform.set_random_state(draws.generator, draws.python)
        moved = transform(image=image, mask=target)
        return moved["image"], moved["mask"]


@dataclass(frozen=True)
class RandomScaleStep:
    """Resize both by one factor, drawn log-uniformly."""

    section: sections.RandomScale

    def __call__(self, image: AnyArray, target: AnyArray, draws: Draws) -> Pair:
        if draws.python.random() >= self.section.p:
            return image, target
        factor = float(np.exp(draws.generator.uniform(*np.log(self.section.limits))))
        size = (max(1, round(image.shape[0] * factor)), max(1, round(image.shape[1] * factor)))
        return resize_image(image, size), resize_target(target, size)


@dataclass(frozen=True)
class ColorStep:
    """Colour jitter, for 8-bit RGB only."""

    inner: Albumentation

    def __call__(self, image: AnyArray, target: AnyArray, draws: Draws) -> Pair:
        if image.dtype != np.uint8:
            raise DataError(f"the transform color needs 8-bit images, found {image.dtype}: leave it out")
        return self.inner(image, target, draws)


@dataclass(frozen=True)
class NoiseStep:
    """Gaussian noise, its deviation a share of white; albumentations has it for 8 bits only."""

    section: sections.Noise

    def __call__(self, image: AnyArray, target: AnyArray, draws: Draws) -> Pair:
        if draws.python.random() >= self.section.p:
            return image, target
        whole = image.dtype.kind == "u"
        largest = np.iinfo(image.dtype).max if whole else 1.0
        noise = draws.generator.standard_normal(image.shape, dtype=np.float32)
        noise *= draws.generator.uniform(*self.section.std) * largest
        noise += image
        np.clip(noise, 0, largest, out=noise)
        return (np.rint(noise, out=noise) if whole else noise).astype(image.dtype), target


def _crop(section: sections.Crop, context: Context) -> Step:
    if section.center_on is not None or section.cat_max_ratio is not None:
        return class_crop(section, context)
    height, width = section.size
    return Albumentation(A.RandomCrop(height, width, pad_if_needed=True, **_border(context)))


def _pad(section: sections.Pad, context: Context) -> Step:
    height, width = section.size
    return Albumentation(A.PadIfNeeded(height, width, p=1.0, **_border(context)))


def _rotate(section: sections.Rotate, context: Context) -> Step:
    limits = (-section.degrees, section.degrees)
    return Albumentation(A.Rotate(limit=limits, p=section.p, **_border(context)))


def _border(context: Context) -> dict[str, Any]:
    return {"border_mode": cv2.BORDER_CONSTANT, "fill": 0, "fill_mask": context.ignore_index}


def _color(section: sections.Color, context: Context) -> Step:
    def factors(change: float) -> tuple[float, float]:
        return 1 - change, 1 + change

    jitter = A.ColorJitter(
        brightness=factors(section.brightness),
        contrast=factors(section.contrast),
        saturation=factors(section.saturation),
        hue=(-section.hue, section.hue),
        p=section.p,
    )
    return ColorStep(Albumentation(jitter))


def _blur(section: sections.Blur, context: Context) -> Step:
    # blur_limit 0: the kernel's size follows from sigma
    return Albumentation(A.GaussianBlur(blur_limit=0, sigma_limit=section.sigma, p=section.p))


TRANSFORMS: dict[str, Callable[[Any, Context], Step]] = {
    "random_scale": lambda section, context: RandomScaleStep(section),
    "crop": _crop,
    "copy_paste": copy_paste,
    "pad": _pad,
    "horizontal_flip": lambda section, context: Albumentation(A.HorizontalFlip(p=section.p)),
    "vertical_flip": lambda section, context: Albumentation(A.VerticalFlip(p=section.p)),
    "rotate90": lambda section, context: Albumentation(A.RandomRotate90(p=section.p)),
    "rotate": _rotate,
    "color": _color,
    "blur": _blur,
    "noise": lambda section, context: NoiseStep(section),
}
