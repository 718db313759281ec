"""Looks at one sample as the scan does: decodes both files, counts the mask's values, finds what is wrong."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segtrain.config.data import DataConfig
from segtrain.data.formats import Sample, mask_reader
from segtrain.data.headers import NOT_ROTATED, SUFFIXES, Header
from segtrain.data.images import check_image, read_checked
from segtrain.data.labels import count_labels, label_rules
from segtrain.data.masks import histogram, narrow
from segtrain.data.problems import FileProblem, Kind, Problem
from segtrain.errors import DataError


class Inspector:
    """Looks at samples under the rules of a data section; threads may share it."""

    def __init__(self, data: DataConfig) -> None:
        self.rules = label_rules(data)
        self._read_mask = mask_reader(data)
        self._max_pixels = data.max_pixels
        self._in_channels = len(data.normalize.mean)
        self._bands = data.bands

    def __call__(self, sample: Sample) -> tuple[NDArray[np.int64], list[Problem]]:
        """Count the mask, int64 [C + 1] (the last entry: ignored pixels), and list what is wrong.

        Of multi-label data int64 [3 C]: the positives, negatives and ignored pixels of each class.
        """
        problems: list[Problem] = []
        counts = np.zeros(self.rules.num_counts, np.int64)
        image: Header | None = None
        try:
            image = self._check_image(sample.image)
        except FileProblem as error:
            problems.append(error.problem)
        try:
            counts = self._count_mask(sample, image)
        except FileProblem as error:
            problems.append(error.problem)
        return counts, problems

    def _check_image(self, path: Path) -> Header:
        data, header = read_checked(path, max_pixels=self._max_pixels)
        _check_header(header, path)
        # Damage in the middle of a file shows in no header: only decoding finds it before training does.
        check_image(data, header, path=path, in_channels=self._in_channels, bands=self._bands)
        return header

    def _count_mask(self, sample: Sample, image: Header | None) -> NDArray[np.int64]:
        path = sample.mask
        if path is None:
            raise FileProblem(sample.image, "has no mask", Kind.MISSING)
        try:
            raw = narrow(self._read_mask(sample, check=partial(_check_mask_header, image=image)))
        except FileProblem:
            raise
        except DataError as error:
            raise FileProblem(path, str(error), Kind.PIXEL_TYPE) from error
        if image is not None and raw.shape[-2:] != (image.height, image.width):  # of masks that come from no header
            size = f"{raw.shape[-1]}x{raw.shape[-2]}"
            raise FileProblem(path, f"the mask of {sample.name} is {size}, its image {image.size}", Kind.SIZE_MISMATCH)
        if raw.ndim == 3:
            return count_labels(raw, num_classes=self.rules.num_classes, ignore_index=self.rules.ignore_index)
        values = histogram(raw)
        unknown = self.rules.explain_unknown(values)
        if unknown:
            held = np.flatnonzero(values)
            raise FileProblem(path, unknown, Kind.UNKNOWN_VALUES, values=np.stack([held, values[held]]))
        return self.rules.count(values)


def _check_mask_header(header: Header, path: Path, *, image: Header | None) -> None:
    _check_header(header, path)
    if image is not None and (header.height, header.width) != (image.height, image.width):
        raise FileProblem(path, f"the mask is {header.size}, its image {image.size}", Kind.SIZE_MISMATCH)


def _check_header(header: Header, path: Path) -> None:
    """Raise FileProblem for what is wrong with a file by its header alone."""
    if not header.complete:
        raise FileProblem(path, f"truncated {header.kind}: the end of the file is missing", Kind.TRUNCATED)
    if SUFFIXES.get(path.suffix.lower()) != header.kind:
        reason = f"the name ends in {path.suffix}, but the file is {header.kind}: rename it"
        raise FileProblem(path, reason, Kind.MISNAMED)
    if header.orientation != NOT_ROTATED:
        reason = (
            f"EXIF orientation {header.orientation}: viewers turn this file, its partner is stored as it is. Turn the "
            "pixels (mogrify -auto-orient) if the pair then fits, else remove the tag (exiftool -Orientation=)"
        )
        raise FileProblem(path, reason, Kind.ROTATED)
