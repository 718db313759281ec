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
from segtrain.data.labels import count_labels, label_rules, suggest_label_map
from segtrain.data.masks import suggest_binary_map
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

    Where classes do not exclude each other, `valid` int64 [C] are the pixels at which each class is labelled, yes or
    no; `pixels` are then those of a yes, and `ignored` counts (pixel, class) pairs. Else `valid` is None.
    """

    pixels: Counts
    images: Counts
    image_pixels: Counts
    ignored: int
    num_images: int
    valid: Counts | None = None

    @property
    def share(self) -> NDArray[np.float64]:
        """Share of each class in the valid pixels (its own, with `valid`), float64 [C]; zeros where there are none."""
        return self.pixels / np.maximum(1, self.pixels.sum() if self.valid is None else self.valid)

    @property
    def ignored_share(self) -> float:
        """Share of the ignored pixels in all pixels."""
        return self.ignored / max(1, int((self.pixels if self.valid is None else self.valid).sum()) + self.ignored)

    @property
    def imbalance_ratio(self) -> float:
        """Pixels of the most frequent class over those of the rarest class that occurs; NaN where none does.

        With `valid`: the highest ratio of no to yes that any class has.
        """
        present = self.pixels[self.pixels > 0]
        if self.valid is not None and present.size:
            return float((self.valid[self.pixels > 0] / present).max() - 1)
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

    @classmethod
    def from_label_counts(cls, counts: Counts) -> ClassFrequencies:
        """From the positives, negatives and ignored pixels of each image and class, int64 [num_images, 3 C]."""
        positives, negatives, ignored = np.split(counts, 3, axis=1)
        valid, held = positives + negatives, positives > 0
        return cls(
            pixels=positives.sum(axis=0),
            images=held.sum(axis=0),
            image_pixels=(held * valid).sum(axis=0),
            ignored=int(ignored.sum()),
            num_images=len(counts),
            valid=valid.sum(axis=0),
        )

    @classmethod
    def from_label_targets(cls, targets: Iterable[Any], num_classes: int, *, ignore_index: int) -> ClassFrequencies:
        """From targets [C, H, W] of 0, 1 and ignore_index (arrays or CPU tensors), one for each image.

        Raises:
            DataError: another label.
        """
        rows = [
            count_labels(np.asarray(target), num_classes=num_classes, ignore_index=ignore_index) for target in targets
        ]
        return cls.from_label_counts(np.array(rows, np.int64).reshape(-1, 3 * num_classes))

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and numbers, for checkpoints and JSON."""
        labelled = {} if self.valid is None else {"valid": self.valid.tolist()}
        return labelled | {
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
        valid = np.asarray(values["valid"], np.int64) if "valid" in values else None
        ignored, num_images = int(values["ignored"]), int(values["num_images"])
        return cls(pixels, images, image_pixels, ignored=ignored, num_images=num_images, valid=valid)


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
    the good ones. labels: where classes do not exclude each other, positives, negatives and ignored pixels of each
    class in each good sample, int64 [num_images, 3 C]; else None.
    """

    frequencies: ClassFrequencies
    samples: Samples[Sample]
    counts: Counts
    problems: list[Problem]
    num_read: int
    good: NDArray[np.int64]
    unused_masks: list[Path] = field(default_factory=list)
    labels: Counts | None = None

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
    result = scan_split(data, split, workers=workers, verify=verify, cache=cache, show_progress=show_progress)
    nothing_left = not len(result.samples)
    if result.problems and (data.on_bad == "error" or nothing_left):
        raise bad_files(result.problems, data, split=split, nothing_left=nothing_left)
    if split == "train":
        _refuse_unmapped_binary(data, result.counts)
    return result


def scan_split(
    data: DataConfig,
    split: str,
    *,
    workers: int | None = None,
    verify: bool = False,
    cache: bool = True,
    show_progress: bool = True,
) -> ScanResult:
    """Look at every sample as check_split does, but only list what is wrong.

    Raises:
        DataError: the split has no samples at all.
    """
    listing = find_samples(data, split)
    samples = Samples.pack(listing.samples)
    store = ScanCache(data, split, rules=label_rules(data))
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
    frequencies, pixels = frequencies_of(counts, data)
    return ScanResult(
        frequencies,
        good,
        pixels,
        problems,
        num_read,
        np.flatnonzero(looks.good),
        listing.unused_masks,
        labels=counts if data.multi_label else None,
    )


def frequencies_of(rows: Counts, data: DataConfig) -> tuple[ClassFrequencies, Counts]:
    """Frequencies of what was counted in each image, and its pixels of each class, int64 [N, C + 1] (last: ignored).

    rows: int64 [N, C + 1] as they are, or with multi-label [N, 3 C] (see segtrain.data.labels.count_labels); of these
    the pixels are the positives, and the ignored ones (pixel, class) pairs.
    """
    if not data.multi_label:
        return ClassFrequencies.from_counts(rows), rows
    positives, _, ignored = np.split(rows, 3, axis=1)
    return ClassFrequencies.from_label_counts(rows), np.append(positives, ignored.sum(axis=1, keepdims=True), axis=1)


def _refuse_unmapped_binary(data: DataConfig, counts: Counts) -> None:
    """Refuse 255 as ignore_index where it seems to be the second of two classes: masks of 0 and 255 throughout.

    Only training masks tell: other splits of rare defects may well hold nothing but background and ignored borders.
    """
    names = data.class_names
    if len(names) != (1 if data.multi_label else 2) or data.raw_labels() is not None or data.ignore_index != 255:
        return
    totals = counts.sum(axis=0)
    second, first = totals[:2] if data.multi_label else totals[1::-1]
    if first == 0 or second > 0 or totals[-1] == 0:
        return
    zero, wanted = names[0], suggest_binary_map(names[:2]) if len(names) > 1 else suggest_label_map(names[0])
    raise DataError(
        f"the masks of split 'train' of {data_root(data)} hold nothing but 0 and 255, and 255 is ignore_index. "
        f"If 255 is a class, write data.label_map: {wanted}; "
        f"if these pixels are to be ignored, say so: {{0: {'none' if data.multi_label else zero}, 255: ignore}}"
    )
