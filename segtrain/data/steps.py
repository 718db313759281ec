"""What the training augmentations share: their type, the sources of their randomness, what they know of the data."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from segtrain.config.sampling import ClassChoice
from segtrain.data.images import AnyArray
from segtrain.data.schemes import chosen_classes
from segtrain.errors import ConfigError

Pair = tuple[AnyArray, AnyArray]


@dataclass(frozen=True)
class Draws:
    """The sources of randomness of one call: albumentations wants one of each. index: the sample's, where known."""

    generator: np.random.Generator
    python: random.Random
    index: int | None = None

    @classmethod
    def from_seed(cls, seed: int, *, index: int | None = None) -> Draws:
        return cls(np.random.default_rng(seed), random.Random(seed), index)


Step = Callable[[AnyArray, AnyArray, Draws], Pair]  # of image [H, W, C] and target [H, W], multi-label [H, W, K]


@dataclass(frozen=True, eq=False)
class TrainingSet:
    """The training set as a step may see it.

    counts: pixels of each class in each sample, int64 [N, C + 1]; the last column counts ignored pixels.
    read: sample number -> image [H, W, C] and target [H, W] as they are stored.
    """

    counts: NDArray[np.int64]
    read: Callable[[int], Pair]


@dataclass(frozen=True, eq=False)
class Context:
    """What steps are built from besides their section; training is None where the set is not known."""

    class_names: tuple[str, ...]
    ignore_index: int
    input_size: tuple[int, int] | None = None
    training: TrainingSet | None = None

    def known_training(self, key: str) -> TrainingSet:
        """The training set; raises ConfigError where there is none."""
        if self.training is None:
            raise ConfigError(
                f"{key} goes by the pixels of each class in each image, which are not known here: give them to "
                "TrainDataset as counts, such as those of check_split(data, 'train').counts"
            )
        return self.training

    def classes(self, choice: ClassChoice, *, key: str) -> tuple[int, ...]:
        """Numbers of the chosen classes; `rare` is the rarest third by training pixels."""
        pixels = np.zeros(0, np.int64)
        if choice == "rare":
            pixels = self.known_training(f"{key}: rare").counts[:, :-1].sum(axis=0)
        return chosen_classes(choice, pixels, self.class_names, key=key)


def resize_image(image: AnyArray, size: tuple[int, int]) -> AnyArray:
    """Resize [H, W, C] to `size` [height, width]: pixel areas when both sides shrink, else bilinear."""
    height, width = image.shape[:2]
    if (height, width) == size:
        return image
    shrinks = size[0] <= height and size[1] <= width
    resized = cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return resized if resized.ndim == 3 else resized[:, :, None]  # OpenCV drops a single channel


def resize_target(target: AnyArray, size: tuple[int, int]) -> AnyArray:
    """Resize [H, W] or [H, W, K] to `size` [height, width] by the nearest pixel, so that no class is invented."""
    if target.shape[:2] == size:
        return target
    # INTER_NEAREST takes the upper left of the pixels that fall together: a shift against the image.
    resized = cv2.resize(target, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
    return resized if resized.ndim == target.ndim else resized[:, :, None]  # OpenCV drops a single channel
