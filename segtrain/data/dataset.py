"""Samples as tensors: what the loader's workers do for one image."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from segtrain.config.data import DataConfig
from segtrain.data.distance import signed_distance
from segtrain.data.formats import Sample
from segtrain.data.images import AnyArray
from segtrain.data.sources import FilePairs, Opened, Pairs
from segtrain.data.steps import Draws, TrainingSet
from segtrain.data.transforms import TrainTransform, resize_image
from segtrain.errors import ConfigError, some

Item = dict[str, Any]
READ_AHEAD_BYTES = 2**22  # little beside what the processor's caches and a batch hold


class SegmentationDataset(Dataset[Item]):
    """What the two data sets share: reading image and target of a sample."""

    def __init__(self, samples: Sequence[Sample] | Pairs, data: DataConfig, *, split: str) -> None:
        self.pairs = samples if isinstance(samples, Pairs) else FilePairs(samples, data, split=split)
        self.samples = self.pairs.samples
        self.name = self.pairs.name
        self.data = data

    def __len__(self) -> int:
        return len(self.samples)

    def read(self, index: int, *, seed: int = 0) -> tuple[AnyArray, AnyArray]:
        """Read image [H, W, C] uint8 or uint16 and target [H, W] as stored; raises FileProblem.

        Where classes do not exclude each other (data.multi_label) the target is [K, H, W] of 0, 1 and ignore_index.
        """
        return self.pairs.read(index, seed=seed)

    def read_target(self, index: int, *, seed: int = 0) -> AnyArray:
        """Read the target alone, as `read` gives it, without decoding the image where that is possible."""
        return self.pairs.read_target(index, seed=seed)


class TrainDataset(SegmentationDataset):
    """Augmented samples; an item's key is (index, seed), and the item depends on nothing else."""

    def __init__(
        self,
        samples: Sequence[Sample] | Pairs,
        data: DataConfig,
        *,
        split: str = "train",
        distance_classes: Sequence[int] | None = None,
        counts: NDArray[np.int64] | None = None,
    ) -> None:
        """Read `samples` as `data` says.

        Args:
            samples: image and mask files, or pairs from elsewhere.
            data: the data section.
            split: for messages.
            distance_classes: the K classes whose signed distance maps an item holds as well, measured in the
                transformed target: what the boundary loss takes. None: no maps.
            counts: pixels of each class in each sample, int64 [N, C + 1], as the scan gives them: for transforms
                that look for rare classes.

        Raises:
            ConfigError: a number that is no class, or a transform that needs `counts`, without them.
        """
        super().__init__(samples, data, split=split)
        self.counts = counts
        self._transform, self._of_targets = (
            TrainTransform(data, training=None if counts is None else TrainingSet(counts, read))
            for read in (self.read, self._without_image)
        )
        wrong = [c for c in distance_classes or () if not 0 <= c < len(data.classes)]
        if wrong:
            last = len(data.classes) - 1
            raise ConfigError(
                f"distance maps of the classes {some(wrong, limit=5)} were asked for; there are 0 to {last}"
            )
        self.distance_classes = None if distance_classes is None else tuple(distance_classes)

    def __getitem__(self, key: tuple[int, int]) -> Item:
        """image uint8 or uint16 [C, H, W], target uint8 or int16 [H, W], index int; distances float16 [K, H, W].

        The target of multi-label data is uint8 [K, H, W] of 0, 1 and ignore_index.
        """
        (arrays,) = self.each([key])
        item = as_item(arrays["image"], arrays["target"], arrays["index"])
        if "distances" in arrays:
            item["distances"] = torch.from_numpy(arrays["distances"])
        return item

    def each(self, keys: Iterable[tuple[int, int]]) -> Iterator[Item]:
        """The items of these keys as arrays, the image [H, W, C]: a step less for who makes a batch of them.

        Targets, the bytes of images and random numbers come ahead of the images, up to READ_AHEAD_BYTES of them: of the
        same small steps the processor does some in a row in a fraction of the time that they take between images, which
        push them out of its caches.
        """
        ahead: deque[tuple[Opened, Draws]] = deque()
        num_bytes = 0
        for index, seed in keys:
            opened = self._open(index, seed=seed)
            ahead.append((opened, Draws.from_seed(seed, index=index)))
            num_bytes += opened.num_bytes
            if num_bytes >= READ_AHEAD_BYTES:
                yield from self._made(ahead)
                num_bytes = 0
        yield from self._made(ahead)

    def _open(self, index: int, *, seed: int) -> Opened:
        if type(self).read is not TrainDataset.read:  # a subclass reads in a way of its own
            return Opened(0, partial(self.read, index, seed=seed))
        return self.pairs.open(index, seed=seed)

    def _made(self, ahead: deque[tuple[Opened, Draws]]) -> Iterator[Item]:
        while ahead:
            opened, draws = ahead.popleft()
            image, target = self._transform.drawn(*opened.read(), draws)
            item: Item = {"image": image, "target": target, "index": draws.index}
            if self.distance_classes is not None:
                item["distances"] = self._distances(target)
            yield item

    def _distances(self, target: AnyArray) -> AnyArray:
        """The maps of the wanted classes, each against all other pixels, float16 [K, H, W]."""
        classes, ignore_index = self.distance_classes or (), self.data.ignore_index
        if target.ndim == 2:
            num_classes = len(self.data.classes)
            return signed_distance(target, num_classes=num_classes, ignore_index=ignore_index, classes=classes)
        each = [signed_distance(target[c], num_classes=2, ignore_index=ignore_index, classes=[1]) for c in classes]
        return np.concatenate(each)

    def target(self, key: tuple[int, int]) -> AnyArray:
        """The target of item `key`, for which no image is decoded where that is possible: to count an epoch."""
        index, seed = key
        return self._of_targets(*self._without_image(index, seed=seed), seed=seed, index=index)[1]

    def _without_image(self, index: int, *, seed: int = 0) -> tuple[AnyArray, AnyArray]:
        target = self.read_target(index, seed=seed)
        # a blank image of the same shape: the transforms draw the same numbers
        return np.zeros((*target.shape[-2:], len(self.data.normalize.mean)), np.uint8), target


class EvalDataset(SegmentationDataset):
    """Samples as they are: the target at its own size, the image at data.input_size where that is set."""

    def __init__(self, samples: Sequence[Sample] | Pairs, data: DataConfig, *, split: str = "val") -> None:
        super().__init__(samples, data, split=split)

    def __getitem__(self, index: int) -> Item:
        """image uint8 or uint16 [C, H, W], target uint8 or int16 [h, w] (multi-label: uint8 [K, h, w]), index int."""
        image, target = self.read(index)
        if self.data.input_size is not None:
            image = resize_image(image, self.data.input_size)
        return as_item(image, target, index)


def as_item(image: AnyArray, target: AnyArray, index: int) -> Item:
    """Tensors of an image [H, W, C] and a target [H, W] or [K, H, W], without a copy where that is possible."""
    # A view with the channels first: collating copies it into the batch anyway.
    return {"image": torch.from_numpy(image).permute(2, 0, 1), "target": torch.from_numpy(target), "index": index}
