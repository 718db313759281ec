"""The training augmentations: names of the config turned into steps that move image and target together."""

from __future__ import annotations

import copy
import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # the import below would ask the network for updates

import albumentations as A

from segtrain.config import transforms as sections
from segtrain.config.data import DataConfig
from segtrain.data.images import AnyArray
from segtrain.errors import ConfigError, DataError

Pair = tuple[AnyArray, AnyArray]


@dataclass(frozen=True)
class Draws:
    """The sources of randomness of one call: albumentations wants one of each."""

    generator: np.random.Generator
    python: random.Random

    @classmethod
    def from_seed(cls, seed: int) -> Draws:
        return cls(np.random.default_rng(seed), random.Random(seed))


Step = Callable[[AnyArray, AnyArray, Draws], Pair]


class TrainTransform:
    """data.input_size and data.train_transforms, as a function of image, target and seed alone.

    albumentations keeps random state in its objects: every worker would draw the same numbers and every epoch
    repeat the last, and Compose.set_random_seed gives all transforms one and the same stream, so that two flips
    always agree. Here each call draws from streams of its own, which all steps share in turn.
    """

    def __init__(self, data: DataConfig) -> None:
        if len(data.normalize.mean) != 3 and any(step.name == "color" for step in data.train_transforms):
            raise ConfigError("data.train_transforms: color needs RGB images, and model.in_channels is not 3")
        self._input_size = data.input_size
        self._steps = [TRANSFORMS[step.name](step, data.ignore_index) for step in data.train_transforms]

    def __call__(self, image: AnyArray, target: AnyArray, *, seed: int) -> Pair:
        """Transform image [H, W, C] and target [H, W] together; types stay, sizes may change.

        `seed` lies in 0 to 2^64 − 1.
        """
        if self._input_size is not None:
            image, target = resize_image(image, self._input_size), resize_target(target, self._input_size)
        draws = Draws.from_seed(seed)
        for step in self._steps:
            image, target = step(image, target, draws)
        return np.ascontiguousarray(image), np.ascontiguousarray(target)


def resize_image(image: AnyArray, size: tuple[int, int]) -> AnyArray:
    """Resize [H, W, C] to `size` [height, width]: pixel areas when both sides shrink, else bilinear."""
    height, width = image.shape[:2]
    if (height, width) == size:
        return image
    shrinks = size[0] <= height and size[1] <= width
    resized = cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return resized if resized.ndim == 3 else resized[:, :, None]  # OpenCV drops a single channel


def resize_target(target: AnyArray, size: tuple[int, int]) -> AnyArray:
    """Resize [H, W] to `size` [height, width] by the nearest pixel, so that no class is invented."""
    if target.shape == size:
        return target
    # INTER_NEAREST takes the upper left of the pixels that fall together: a shift against the image.
    return cv2.resize(target, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)


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
    """Gaussian noise; albumentations has it for 8 bits only."""

    section: sections.Noise

    def __call__(self, image: AnyArray, target: AnyArray, draws: Draws) -> Pair:
        if draws.python.random() >= self.section.p:
            return image, target
        largest = np.iinfo(image.dtype).max
        noise = draws.generator.standard_normal(image.shape, dtype=np.float32)
        noise *= draws.generator.uniform(*self.section.std) * largest
        noise += image
        return np.rint(np.clip(noise, 0, largest, out=noise), out=noise).astype(image.dtype), target


def _crop(section: sections.Crop, ignore_index: int) -> Step:
    height, width = section.size
    return Albumentation(A.RandomCrop(height, width, pad_if_needed=True, **_border(ignore_index)))


def _pad(section: sections.Pad, ignore_index: int) -> Step:
    height, width = section.size
    return Albumentation(A.PadIfNeeded(height, width, p=1.0, **_border(ignore_index)))


def _rotate(section: sections.Rotate, ignore_index: int) -> Step:
    limits = (-section.degrees, section.degrees)
    return Albumentation(A.Rotate(limit=limits, p=section.p, **_border(ignore_index)))


def _border(ignore_index: int) -> dict[str, Any]:
    return {"border_mode": cv2.BORDER_CONSTANT, "fill": 0, "fill_mask": ignore_index}


def _color(section: sections.Color, ignore_index: int) -> Step:
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


def _blur(section: sections.Blur, ignore_index: int) -> Step:
    # blur_limit 0: the kernel's size follows from sigma
    return Albumentation(A.GaussianBlur(blur_limit=0, sigma_limit=section.sigma, p=section.p))


TRANSFORMS: dict[str, Callable[[Any, int], Step]] = {
    "random_scale": lambda section, ignore_index: RandomScaleStep(section),
    "crop": _crop,
    "pad": _pad,
    "horizontal_flip": lambda section, ignore_index: Albumentation(A.HorizontalFlip(p=section.p)),
    "vertical_flip": lambda section, ignore_index: Albumentation(A.VerticalFlip(p=section.p)),
    "rotate90": lambda section, ignore_index: Albumentation(A.RandomRotate90(p=section.p)),
    "rotate": _rotate,
    "color": _color,
    "blur": _blur,
    "noise": lambda section, ignore_index: NoiseStep(section),
}
