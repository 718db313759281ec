"""Finds the images on which the named classes fare worst, holding no more of them than will be shown."""

from __future__ import annotations

import bisect
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from segtrain.config import Config
from segtrain.data import ClassFrequencies
from segtrain.data.dataset import EvalDataset
from segtrain.engine.evaluate import evaluate, make_confusion
from segtrain.errors import ConfigError, DataError, suggest
from segtrain.metrics import MultiLabelConfusion, tail_classes


@dataclass(frozen=True)
class WorstImage:
    """One image: its place in the data, its name, and how the named classes that it holds or is said to hold fare.

    iou: mean of class_iou. invented: those of class_iou that the target does not hold; their IoU is 0. num_wrong:
    pixels missed or invented, summed over the named classes.
    """

    index: int
    name: str
    iou: float
    class_iou: dict[str, float]
    invented: tuple[str, ...]
    num_wrong: int
    packed: bytes
    dtype: str
    shape: tuple[int, ...]

    @property
    def prediction(self) -> npt.NDArray[Any]:
        """The predicted classes, [H, W]; of multi-label data which are present, [K, H, W]."""
        return np.frombuffer(zlib.decompress(self.packed), dtype=self.dtype).reshape(self.shape)

    @property
    def rank(self) -> tuple[float, int, str]:
        """Sorts worst first: lowest IoU, then most wrong pixels, then by name."""
        return self.iou, -self.num_wrong, self.name


@dataclass(frozen=True)
class Worst:
    """Images, worst first; split_iou: IoU of the named classes over all images.

    num_concerned: how many images hold any of the classes, or were predicted to.
    """

    images: list[WorstImage]
    classes: tuple[int, ...]
    class_names: tuple[str, ...]
    num_concerned: int
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


def present_classes(
    classes: tuple[int, ...],
    *,
    pixels: Sequence[int] | npt.NDArray[np.int64],
    split_pixels: Sequence[int] | npt.NDArray[np.int64],
    tail_fraction: float,
) -> tuple[int, ...]:
    """Return `classes`, or, where the split holds none of them, the rarest that it holds.

    pixels: count of each class in training; split_pixels: in the split; both [C].
    """
    held = np.asarray(split_pixels) > 0
    if held[list(classes)].any():
        return classes
    # What the split holds but training does not has no place in the order of training.
    return tail_classes(np.asarray(pixels) * held, tail_fraction) or tail_classes(split_pixels, tail_fraction)


def find_worst(
    config: Config,
    *,
    model: nn.Module,
    normalize: Callable[[Tensor], Tensor],
    data: EvalDataset,
    split: str,
    classes: Sequence[int],
    num_worst: int,
    frequencies: ClassFrequencies | None = None,
    thresholds: Mapping[str, float] | None = None,
    show_progress: bool = True,
) -> Worst:
    """Evaluate `data` and return the images with the lowest IoU over the named classes; ties: most wrong pixels first.

    An image counts if any of the classes is in its target or predicted where the target is not ignored. Its IoU is the
    mean over these classes: a class that is predicted but absent from the target has IoU 0. `frequencies` are those of
    the training data, which config.evaluate.prior_tau needs; `thresholds` were chosen on val, for tune_thresholds.

    Raises:
        DataError: no image holds any of the classes, and none was predicted to.
    """
    keeper = _Keeper(config, data, classes, num_worst)
    evaluation = evaluate(
        config,
        model=model,
        normalize=normalize,
        data=data,
        split=split,
        frequencies=frequencies,
        thresholds=thresholds,
        on_image=keeper.take,
        show_progress=show_progress,
    )
    names = tuple(config.data.class_names[index] for index in classes)
    if not keeper.num_concerned:
        raise DataError(
            f"no image of split {split!r} holds {' or '.join(names)}, or was predicted to: choose other --classes, or "
            "another --split"
        )
    return Worst(
        images=keeper.images,
        classes=tuple(classes),
        class_names=names,
        num_concerned=keeper.num_concerned,
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
        self.num_concerned = 0

    def take(self, index: int, image: Tensor, target: Tensor, prediction: Tensor) -> None:
        """Keep the image if it is among the worst so far; the signature of `evaluate`'s on_image."""
        names = self._config.data.class_names
        confusion = make_confusion(self._config)
        confusion.update(prediction[None], target[None])
        each = confusion.iou()
        concerned = [number for number in self._classes if not each[number].isnan()]  # in target or prediction
        if not concerned:
            return
        self.num_concerned += 1
        hits = confusion.hits if isinstance(confusion, MultiLabelConfusion) else confusion.matrix.diagonal()
        wrong = confusion.support + confusion.predicted - 2 * hits
        iou, num_wrong = float(each[concerned].mean()), int(wrong[concerned].sum())
        name = self._data.samples[index].name
        if len(self.images) == self._num_worst and (iou, -num_wrong, name) > self.images[-1].rank:
            return
        classes = prediction.numpy()
        kept = WorstImage(
            index=index,
            name=name,
            iou=iou,
            class_iou={names[number]: float(each[number]) for number in concerned},
            invented=tuple(names[number] for number in concerned if not confusion.images[number]),
            num_wrong=num_wrong,
            packed=zlib.compress(classes.tobytes(), 1),
            dtype=classes.dtype.str,
            shape=classes.shape,
        )
        bisect.insort(self.images, kept, key=lambda one: one.rank)
        del self.images[self._num_worst :]
