"""How raw masks are read from one image file for each sample: numbers as they are stored, or colours of a table."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segtrain.config.data import DataConfig
from segtrain.data.formats.base import HeaderCheck, MaskReader, Sample
from segtrain.data.formats.labels import raw_value
from segtrain.data.headers import Header
from segtrain.data.images import AnyArray, read_checked
from segtrain.data.masks import decode_colors, decode_mask
from segtrain.data.problems import FileProblem, Kind
from segtrain.errors import some

MAX_COLORS_SHOWN = 10
ColorTable = tuple[tuple[tuple[int, int, int], int], ...]


def file_masks(data: DataConfig) -> MaskReader:
    """The reader of layouts whose masks are image files."""
    if data.colors is None:
        return FileMasks(data.max_pixels)
    return ColorMasks(data.max_pixels, tuple((color, raw_value(data, label)) for color, label in data.color_table()))


@dataclass(frozen=True)
class FileMasks:
    """Masks that are image files: palette indices and numbers of 8 or 16 bits as they are stored."""

    max_pixels: int

    def __call__(self, sample: Sample, *, check: HeaderCheck | None = None) -> AnyArray:
        """Return the raw values of the sample's mask file, [H, W]; see MaskReader."""
        data, header, path = read_mask_file(sample, max_pixels=self.max_pixels, check=check)
        return decode_mask(data, header, path=path)


@dataclass(frozen=True)
class ColorMasks:
    """Masks that are image files whose colours (those of the palette, where there is one) stand for raw values."""

    max_pixels: int
    table: ColorTable

    def __call__(self, sample: Sample, *, check: HeaderCheck | None = None) -> AnyArray:
        """Return the raw values of the sample's colours, uint16 [H, W]; raises FileProblem for other colours."""
        data, header, path = read_mask_file(sample, max_pixels=self.max_pixels, check=check)
        packed = pack_colors(decode_colors(data, header, path=path))
        slots, values = _lookup(self.table)
        found = slots[packed]
        if (found == len(values)).any():
            raise FileProblem(path, _explain_colors(packed[found == len(values)], header), Kind.UNKNOWN_VALUES)
        return np.asarray(values[found])


def read_mask_file(sample: Sample, *, max_pixels: int, check: HeaderCheck | None) -> tuple[bytes, Header, Path]:
    """The bytes of a sample's mask file, its checked header and its path; raises FileProblem."""
    if sample.mask is None:
        raise FileProblem(sample.image, "has no mask", Kind.MISSING)
    data, header = read_checked(sample.mask, max_pixels=max_pixels)
    if check is not None:
        check(header, sample.mask)
    return data, header, sample.mask


def pack_colors(colors: NDArray[np.uint8]) -> NDArray[np.int32]:
    """One number for each RGB colour: uint8 [..., 3] -> int32 [...]."""
    red, green, blue = (colors[..., channel].astype(np.int32) for channel in range(3))
    return (red << 16) | (green << 8) | blue


@lru_cache(maxsize=4)
def _lookup(table: ColorTable) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
    """For each packed colour its place in the table (its length: unknown), uint16 [2^24]; and the table's values."""
    slots = np.full(2**24, len(table), np.uint16)
    for place, (color, _) in enumerate(table):
        slots[pack_colors(np.array(color, np.uint8))] = place
    return slots, np.array([value for _, value in table], np.uint16)


def _explain_colors(packed: NDArray[np.int32], header: Header) -> str:
    colors, counts = np.unique(packed, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    pairs = zip(colors[order].tolist(), counts[order].tolist(), strict=True)
    names = [f"[{color >> 16}, {color >> 8 & 255}, {color & 255}] ({count} pixels)" for color, count in pairs]
    advice = (
        "JPEG changes colours: use PNG" if header.kind == "JPEG" else "name them in data.colors, or in labelmap.txt"
    )
    return f"unknown mask colours: {some(names, limit=MAX_COLORS_SHOWN)}; {advice}"
