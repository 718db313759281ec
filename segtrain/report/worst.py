"""Finds the images on which the named classes fare worst, holding no more of them than will be shown."""

from __future__ import annotations

import bisect
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from segtrain.config import Config
from segtrain.data.dataset import EvalDataset
from segtrain.engine.evaluate import evaluate
from segtrain.errors import ConfigError, DataError, suggest
from segtrain.metrics import ConfusionMatrix, tail_classes


@dataclass(frozen=True)
class WorstImage:
    """One image: its place in the data, its name, its IoU over the named classes that it holds, and that of each."""

    index: int
    name: str
    iou: float
    class_iou: dict[str, float]
    packed: bytes
    dtype: str
    shape: tuple[int, int]

    @property
    def prediction(self) -> npt.NDArray[Any]:
        """The predicted classes, [H, W]."""
        return np.frombuffer(zlib.decompress(self.packed), dtype=self.dtype).reshape(self.shape)


@dataclass(frozen=True)
class Worst:
    """Images, worst first; num_holding: how many images hold the classes; split_iou: of the classes on all images."""

    images: list[WorstImage]
    classes: tuple[int, ...]
    class_names: tuple[str, ...]
    num_holding: int
    num_images: int
    split: str
    split_iou: dict[str, float]


def choose_classes(
    wanted: str | None, names: Sequence[str], *, pixels: Sequence[int] | npt.NDArray[np.int64], tail_fraction: float
) -> tuple[int, ...]:
    """Return the numbers of the classes that `wanted` names (separated by commas), or of the rarest ones.

    Raises:
        ConfigError: a name is no class; the closest one is suggested.
    """
    if wanted is None:
        return tail_classes(pixels, tail_fraction)
    chosen: list[int] = []
    # A class name may hold a comma itself: the whole text is tried first.
    for name in [wanted] if wanted in names else [part.strip() for part in wanted.split(",") if part.strip()]:
        if name not in names:
            raise ConfigError(f"--classes: {name!r} is not a class; classes: {', '.join(names)}{suggest(name, names)}")
        if names.index(name) not in chosen:
            chosen.append(names.index(name))
    if not chosen:
        raise ConfigError(f"--classes names no class; classes: {', '.join(names)}")
    return tuple(chosen)


def find_worst(
    config: Config,
    *,
    model: nn.Module,
    normalize: Callable[[Tensor], Tensor],
    data: EvalDataset,
    split: str,
    classes: Sequence[int],
    num_worst: int,
    show_progress: bool = True,
) -> Worst:
    """Evaluate `data` and return the images with the lowest IoU over the named classes, ties by name.

    An image counts if its target holds any of the classes; its IoU is the mean over those that it holds.

    Raises:
        DataError: no image holds any of the classes.
    """
    keeper = _Keeper(config, data, classes, num_worst)
    evaluation = evaluate(
        config,
        model=model,
        normalize=normalize,
        data=data,
        split=split,
        on_image=keeper.take,
        show_progress=show_progress,
    )
    names = tuple(config.data.class_names[index] for index in classes)
    if not keeper.num_holding:
        raise DataError(
            f"no image of split {split!r} holds {' or '.join(names)}: choose other --classes, or another --split"
        )
    return Worst(
        images=keeper.images,
        classes=tuple(classes),
        class_names=names,
        num_holding=keeper.num_holding,
        num_images=evaluation.num_images,
        split=split,
        split_iou={name: evaluation.scores[f"iou/{name}"] for name in names},
    )


class _Keeper:
    """Keeps the worst images while an evaluation passes over them, predictions compressed."""

    def __init__(self, config: Config, data: EvalDataset, classes: Sequence[int], num_worst: int) -> None:
        self._config = config
        self._data = data
        self._classes = classes
        self._num_worst = num_worst
        self.images: list[WorstImage] = []
        self.num_holding = 0

    def take(self, index: int, image: Tensor, target: Tensor, prediction: Tensor) -> None:
        """Keep the image if it is among the worst so far; the signature of `evaluate`'s on_image."""
        names = self._config.data.class_names
        confusion = ConfusionMatrix(len(names), ignore_index=self._config.data.ignore_index)
        confusion.update(prediction[None], target[None])
        held = [number for number in self._classes if confusion.images[number]]
        if not held:
            return
        self.num_holding += 1
        each = confusion.iou()
        iou = float(each[held].mean())
        name = self._data.samples[index].name
        if len(self.images) == self._num_worst and (iou, name) > (self.images[-1].iou, self.images[-1].name):
            return
        classes = prediction.numpy()
        kept = WorstImage(
            index=index,
            name=name,
            iou=iou,
            class_iou={names[number]: float(each[number]) for number in held},
            packed=zlib.compress(classes.tobytes(), 1),
            dtype=classes.dtype.str,
            shape=(classes.shape[0], classes.shape[1]),
        )
        bisect.insort(self.images, kept, key=lambda one: (one.iou, one.name))
        del self.images[self._num_worst :]
