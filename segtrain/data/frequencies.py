"""Counts the pixels and images of each class in a split, and finds bad samples before training does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segtrain.config.data import DataConfig
from segtrain.console import progress
from segtrain.data.formats import Sample, bad_files, data_root, find_samples
from segtrain.data.inspection import Inspector
from segtrain.data.masks import LabelRules, suggest_binary_map
from segtrain.data.problems import Problem
from segtrain.data.samples import Samples
from segtrain.data.scan import look_at_all
from segtrain.data.scan_cache import ScanCache
from segtrain.distributed import rank, world_size
from segtrain.errors import DataError

Counts = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class ClassFrequencies:
    """How often each class occurs in a split.

    pixels: int64 [C], pixels of the class. images: int64 [C], images that hold it. image_pixels: int64 [C], valid
    pixels (those not ignored) of the images that hold it. ignored: pixels without a class. num_images: all images.
    """

    pixels: Counts
    images: Counts
    image_pixels: Counts
    ignored: int
    num_images: int

    @property
    def share(self) -> NDArray[np.float64]:
        """Share of each class in the valid pixels, float64 [C]; zeros where there are none."""
        return self.pixels / max(1, int(self.pixels.sum()))

    @property
    def ignored_share(self) -> float:
        """Share of the ignored pixels in all pixels."""
        return self.ignored / max(1, int(self.pixels.sum()) + self.ignored)

    @property
    def imbalance_ratio(self) -> float:
        """Pixels of the most frequent class over those of the rarest class that occurs; NaN where none does."""
        present = self.pixels[self.pixels > 0]
        return float(present.max() / present.min()) if present.size else float("nan")

    @classmethod
    def from_counts(cls, counts: Counts) -> ClassFrequencies:
        """From pixels per image and class, int64 [num_images, C + 1]; the last column counts ignored pixels."""
        classes = counts[:, :-1]
        valid = classes.sum(axis=1)
        # class by class: another [num_images, C] would be as large as all that is known of a large split
        held = [column > 0 for column in classes.T]
        return cls(
            pixels=classes.sum(axis=0),
            images=np.array([one.sum() for one in held], np.int64),
            image_pixels=np.array([valid[one].sum() for one in held], np.int64),
            ignored=int(counts[:, -1].sum()),
            num_images=len(counts),
        )

    @classmethod
    def from_targets(cls, targets: Iterable[Any], num_classes: int, *, ignore_index: int) -> ClassFrequencies:
        """From targets [H, W] of any integer type (arrays or CPU tensors), one for each image.

        Raises:
            DataError: a label that is neither a class nor ignore_index.
        """
        rows = [count_target(np.asarray(target), num_classes, ignore_index) for target in targets]
        return cls.from_counts(np.array(rows, np.int64).reshape(-1, num_classes + 1))

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and numbers, for checkpoints and JSON."""
        return {
            "pixels": self.pixels.tolist(),
            "images": self.images.tolist(),
            "image_pixels": self.image_pixels.tolist(),
            "ignored": self.ignored,
            "num_images": self.num_images,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ClassFrequencies:
        """The inverse of to_dict."""
        pixels, images, image_pixels = (
            np.asarray(values[key], np.int64) for key in ("pixels", "images", "image_pixels")
        )
        return cls(pixels, images, image_pixels, ignored=int(values["ignored"]), num_images=int(values["num_images"]))


def count_target(target: NDArray[Any], num_classes: int, ignore_index: int) -> Counts:
    """Count the classes of a target [H, W], int64 [C + 1] (last: ignored); raises DataError for other labels."""
    ignored = target == ignore_index
    labels = target[~ignored].astype(np.int64)
    if labels.size and not 0 <= labels.min() <= labels.max() < num_classes:
        raise DataError(
            f"labels run from {labels.min()} to {labels.max()}; expected 0 to {num_classes - 1}, or {ignore_index}"
        )
    return np.append(np.bincount(labels, minlength=num_classes), np.int64(ignored.sum()))


@dataclass(frozen=True, eq=False)
class ScanResult:
    """What a scan found: good samples with their counts, int64 [num_images, C + 1] (last: ignored), and bad files.

    unused_masks: masks without an image, which are no error. good: of all samples that were found, the indices of
    the good ones.
    """

    frequencies: ClassFrequencies
    samples: Samples[Sample]
    counts: Counts
    problems: list[Problem]
    num_read: int
    good: NDArray[np.int64]
    unused_masks: list[Path] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        """Names of the good samples, in the order of the rows of `counts`."""
        return list(self.samples.column("name"))


def scan_frequencies(
    data: DataConfig,
    split: str = "train",
    *,
    workers: int | None = None,
    verify: bool = False,
    cache: bool = True,
    show_progress: bool = True,
) -> ClassFrequencies:
    """Count the classes of a split; see check_split."""
    result = check_split(data, split, workers=workers, verify=verify, cache=cache, show_progress=show_progress)
    return result.frequencies


def check_split(
    data: DataConfig,
    split: str,
    *,
    workers: int | None = None,
    verify: bool = False,
    cache: bool = True,
    show_progress: bool = True,
) -> ScanResult:
    """Look at every sample of a split: decode its image and its mask, and count the mask's pixels.

    Good samples whose files kept size and time of change since an earlier scan are taken from the cache; with
    `verify` they are read again too, and the cache is written anew. In a process group each rank reads its share,
    and all get the same result.

    Raises:
        DataError: bad files, all in one message (with data.on_bad: skip only if nothing else is left), or masks
            of 0 and 255 throughout, in training for two classes, without a label_map.
    """
    listing = find_samples(data, split)
    samples = Samples.pack(listing.samples)
    store = ScanCache(data, split, rules=LabelRules.from_config(data))
    known = store.load() if cache and not verify else store.nothing()
    shown = (
        progress(f"check {split}: images and masks", -(-len(samples) // world_size()))
        if show_progress and rank() == 0
        else nullcontext(lambda count: None)
    )
    with shown as advance:
        looks = look_at_all(Inspector(data), samples, known=known, workers=workers, advance=advance)
    good, counts = samples.select(looks.good), looks.counts[looks.good]
    num_read = len(samples) - int(looks.remembered.sum())
    if cache and num_read and rank() == 0:
        store.save(list(good.column("name")), looks.signatures[looks.good], counts)
    problems = [*listing.problems, *looks.problems]
    if problems and (data.on_bad == "error" or not len(good)):
        raise bad_files(problems, data, split=split, nothing_left=not len(good))
    if split == "train":
        _refuse_unmapped_binary(data, counts)
    frequencies = ClassFrequencies.from_counts(counts)
    return ScanResult(frequencies, good, counts, problems, num_read, np.flatnonzero(looks.good), listing.unused_masks)


def _refuse_unmapped_binary(data: DataConfig, counts: Counts) -> None:
    """Refuse 255 as ignore_index where it seems to be the second of two classes: masks of 0 and 255 throughout.

    Only training masks tell: other splits of rare defects may well hold nothing but background and ignored borders.
    """
    if len(data.class_names) != 2:
        return
    totals = counts.sum(axis=0)
    only_first = totals[0] > 0 and not totals[1:-1].any()
    if data.raw_labels() is None and data.ignore_index == 255 and only_first and totals[-1] > 0:
        names = data.class_names
        raise DataError(
            f"the masks of split 'train' of {data_root(data)} hold nothing but 0 and 255, and 255 is ignore_index. "
            f"If 255 is a class, write data.label_map: {suggest_binary_map(names)}; "
            f"if these pixels are to be ignored, say so: {{0: {names[0]}, 255: ignore}}"
        )
