"""The layout `mask_per_class`: each class has a mask file of its own, and classes may overlap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segtrain.config.data import DataConfig
from segtrain.config.layouts import RAW_IGNORED
from segtrain.data.formats.base import (
    HeaderCheck,
    Layout,
    Listing,
    MaskReader,
    Sample,
    by_stem,
    file_names,
    require_folder,
    suffixes,
)
from segtrain.data.formats.folders import split_folder
from segtrain.data.formats.labels import raw_value
from segtrain.data.headers import read_header
from segtrain.data.images import AnyArray, read_checked
from segtrain.data.masks import LARGEST_RAW_VALUE, decode_mask, histogram, narrow
from segtrain.data.problems import FileProblem, Kind, Problem
from segtrain.errors import DataError, some

NO, YES, IGNORED, UNKNOWN = 0, 1, 2, 3  # what a value of a file means
MEANINGS = {"none": NO, "present": YES, "ignore": IGNORED}
Maps = NDArray[np.uint8]


def _find(data: DataConfig, root: Path, split: str) -> Listing:
    """images/<split>/a/b.jpg goes with the files that data.mask_per_class.pattern names, one for each class."""
    folder = root / split_folder(data.images, data.splits[split])
    require_folder(folder, split=split, keys=f"data.root / data.images / data.splits.{split}")
    images = by_stem(folder)
    if not images:
        raise DataError(f"split {split!r}: no images in {folder}; looked for {suffixes()}")
    samples, problems = [], []
    for name, found in images.items():
        files = [_expected(data, root, split, name=name, label=label) for label in data.class_names]
        missing = _missing(data, files)
        if len(found) > 1:
            problems.append(Problem(found[0], f"the same stem twice: {file_names(found)}", Kind.AMBIGUOUS))
        elif missing:
            told = some([f"{label} ({path})" for label, path in missing], limit=5)
            reason = f"no mask of {told}; where that means an absent class, say data.mask_per_class.missing: absent"
            problems.append(Problem(found[0], reason, Kind.MISSING))
        else:
            there = tuple(str(path) if path.is_file() else "" for path in files)
            samples.append(Sample(name, found[0], Path(next(filter(None, there), str(files[0]))), files=there))
    return Listing(samples, problems)


def _expected(data: DataConfig, root: Path, split: str, *, name: str, label: str) -> Path:
    return root / data.mask_per_class.pattern.format(**{"class": label, "split": data.splits[split], "name": name})


def _missing(data: DataConfig, files: Sequence[Path]) -> list[tuple[str, Path]]:
    """Return the classes whose file should be there and is not."""
    section = data.mask_per_class
    if section.missing == "absent":
        return []
    named = zip(data.class_names, files, strict=True)
    return [(label, path) for label, path in named if label != section.unlabeled and not path.is_file()]


def _exists(data: DataConfig, root: Path, split: str) -> bool:
    return (root / split_folder(data.images, data.splits[split])).exists()


def class_masks(data: DataConfig) -> MaskReader:
    """The reader of this layout: labels of each class, or one class number for each pixel."""
    section = data.mask_per_class
    files = ClassFiles(data.max_pixels, data.class_names, tuple(sorted(section.values.items())))
    if data.multi_label:
        return LabelMasks(files, data.ignore_index)
    rest = None if section.unlabeled is None else raw_value(data, section.unlabeled)
    return StackedMasks(files, section.overlap, rest)


@dataclass(frozen=True)
class ClassFiles:
    """Reads the mask files of a sample, one for each class, as maps of what their values mean."""

    max_pixels: int
    class_names: tuple[str, ...]
    values: tuple[tuple[int, str], ...]

    def __call__(self, sample: Sample, check: HeaderCheck | None) -> Maps:
        """Return uint8 [C, H, W] of NO, YES and IGNORED; NO throughout for a class without a file."""
        assert sample.files is not None
        maps = [self._map(Path(file), check) if file else None for file in sample.files]
        there = [(one, Path(file)) for one, file in zip(maps, sample.files, strict=True) if one is not None]
        shape = there[0][0].shape if there else self._image_shape(sample.image)
        for one, path in there:
            if one.shape != shape:
                sizes = f"{one.shape[1]}x{one.shape[0]}, and {there[0][1].name} is {shape[1]}x{shape[0]}"
                raise FileProblem(path, f"the mask is {sizes}", Kind.SIZE_MISMATCH)
        return np.stack([np.zeros(shape, np.uint8) if one is None else one for one in maps])

    def _map(self, path: Path, check: HeaderCheck | None) -> Maps:
        data, header = read_checked(path, max_pixels=self.max_pixels)
        if check is not None:
            check(header, path)
        try:
            raw = narrow(decode_mask(data, header, path=path))
        except FileProblem:
            raise
        except DataError as error:
            raise FileProblem(path, str(error), Kind.PIXEL_TYPE) from error
        found = self._meanings[raw]
        if (found == UNKNOWN).any():
            counts = histogram(raw)
            held = np.flatnonzero(counts)
            raise FileProblem(path, self._explain(counts), Kind.UNKNOWN_VALUES, values=np.stack([held, counts[held]]))
        return np.asarray(found)

    @cached_property
    def _meanings(self) -> Maps:
        """What each raw value means, uint8 [65536]."""
        table = np.full(LARGEST_RAW_VALUE + 1, UNKNOWN, np.uint8)
        for raw, word in self.values:
            table[raw] = MEANINGS[word]
        return table

    def _explain(self, counts: NDArray[np.int64]) -> str:
        values = np.flatnonzero(counts)
        unknown = [f"{value} ({counts[value]} pixels)" for value in values if self._meanings[value] == UNKNOWN]
        binary = set(values.tolist()) <= {0, 255}
        suggestion = "{0: none, 255: present}" if binary else "{0: none, 1: present, 255: ignore}"
        known = ", ".join(f"{raw}: {word}" for raw, word in self.values)
        return (
            f"unknown mask values: {some(unknown, limit=10)}; data.mask_per_class.values knows {{{known}}}: say what "
            f"they mean, such as {suggestion}"
        )

    def _image_shape(self, path: Path) -> tuple[int, int]:
        try:
            with path.open("rb") as stream:
                header = read_header(stream, path, max_pixels=self.max_pixels)
        except OSError as error:
            raise FileProblem(path, f"cannot be read ({error.strerror or error})") from error
        return header.height, header.width


@dataclass(frozen=True)
class LabelMasks:
    """Labels of classes that may overlap."""

    files: ClassFiles
    ignore_index: int

    def __call__(self, sample: Sample, *, check: HeaderCheck | None = None) -> AnyArray:
        """Return uint8 [C, H, W] of 0, 1 and ignore_index; see MaskReader."""
        maps = self.files(sample, check)
        maps[maps == IGNORED] = self.ignore_index
        return maps


@dataclass(frozen=True)
class StackedMasks:
    """One class number for each pixel, from files of which at most one should hold it.

    overlap: which counts where several do; rest: the raw value of pixels that none holds, None where that is an error.
    """

    files: ClassFiles
    overlap: str
    rest: int | None

    def __call__(self, sample: Sample, *, check: HeaderCheck | None = None) -> AnyArray:
        """Return uint16 [H, W]; see MaskReader."""
        maps = self.files(sample, check)
        present, ignored = maps == YES, (maps == IGNORED).any(axis=0)
        held = present.sum(axis=0)
        if self.overlap == "error" and (held > 1).any():
            raise FileProblem(self._place(sample), self._explain_overlap(present), Kind.AMBIGUOUS)
        last = len(present) - 1 - present[::-1].argmax(axis=0)
        chosen = last if self.overlap == "last" else present.argmax(axis=0)
        classes: AnyArray = chosen.astype(np.uint16)
        classes[(held == 0) & ignored] = RAW_IGNORED
        rest = (held == 0) & ~ignored
        if rest.any() and self.rest is None:
            reason = (
                f"{int(rest.sum())} pixels of {sample.name} are in no class's mask: say in "
                "data.mask_per_class.unlabeled which class they are, or 'ignore'"
            )
            raise FileProblem(self._place(sample), reason, Kind.UNKNOWN_VALUES)
        classes[rest] = self.rest or 0
        return classes

    def _place(self, sample: Sample) -> Path:
        return sample.image if sample.mask is None else sample.mask

    def _explain_overlap(self, present: NDArray[np.bool_]) -> str:
        row, column = np.argwhere(present.sum(axis=0) > 1)[0].tolist()
        names = [name for name, one in zip(self.files.class_names, present[:, row, column], strict=True) if one]
        return (
            f"{int((present.sum(axis=0) > 1).sum())} pixels are in the masks of several classes (row {row}, column "
            f"{column}: {', '.join(names)}): set data.labels: multi_label, or say in data.mask_per_class.overlap which "
            "counts"
        )


MASK_PER_CLASS = Layout(_find, _exists, class_masks)
