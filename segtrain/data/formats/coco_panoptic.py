"""Masks from panoptic PNGs of COCO: each segment has a colour, and the JSON file says of which category it is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segtrain.data.formats.base import HeaderCheck, Sample
from segtrain.data.formats.coco_index import open_index
from segtrain.data.formats.labels import NameRules
from segtrain.data.formats.readers import read_mask_file
from segtrain.data.images import AnyArray
from segtrain.data.masks import decode_colors
from segtrain.data.problems import FileProblem, Kind
from segtrain.errors import some

VOID = 0  # the id of pixels without a segment


@dataclass(frozen=True)
class PanopticMasks:
    """Masks whose colours are ids of segments, R + 256 G + 65536 B; the sample's files are the PNG and the JSON file.

    unlabeled: the raw value of pixels without a segment. crowd: that of crowd segments; None: that of their category.
    """

    max_pixels: int
    rules: NameRules
    unlabeled: int
    crowd: int | None

    def __call__(self, sample: Sample, *, check: HeaderCheck | None = None) -> AnyArray:
        """Return the raw values of the sample's segments, uint16 [H, W]; see MaskReader."""
        assert sample.files is not None, "see the layout coco"
        data, header, path = read_mask_file(sample, max_pixels=self.max_pixels, check=check)
        colors = decode_colors(data, header, path=path).astype(np.int32)
        ids = colors[..., 0] | colors[..., 1] << 8 | colors[..., 2] << 16
        numbers, values = self._values(sample, Path(sample.files[1]))
        held, places = np.unique(ids, return_inverse=True)
        slots = np.minimum(np.searchsorted(numbers, held), len(numbers) - 1)
        unknown = held[numbers[slots] != held]
        if unknown.size:
            reason = (
                f"pixels of segments that {sample.files[1]} does not list for {sample.name}: "
                f"{some(unknown.tolist(), limit=10)} (R + 256 G + 65536 B)"
            )
            raise FileProblem(path, reason, Kind.UNKNOWN_VALUES)
        return np.asarray(values[slots][places.reshape(ids.shape)])

    def _values(self, sample: Sample, source: Path) -> tuple[NDArray[np.int64], NDArray[np.uint16]]:
        """The ids of the segments of a sample in ascending order, VOID among them, and their raw values."""
        assert sample.key is not None
        index = open_index(source)
        _, _, segments = index.regions(sample.key)
        names = [index.categories[segment.category] for segment in segments]
        by_name = self.rules.values(set(names), source=source)
        values = {VOID: self.unlabeled}
        for segment, name in zip(segments, names, strict=True):
            values[segment.number] = self.crowd if segment.crowd and self.crowd is not None else by_name[name]
        numbers = sorted(values)
        return np.array(numbers, np.int64), np.array([values[number] for number in numbers], np.uint16)
