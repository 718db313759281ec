"""What the tags of a TIFF file say: size, bands, and whether the values that a decoder gives are those stored."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from io import SEEK_END
from typing import Any, BinaryIO

WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, ORIENTATION, BANDS = 256, 257, 258, 259, 262, 274, 277
STRIPS, TILES = (273, 279), (324, 325)  # offsets and byte counts
SUBFILE_TYPE = 254
REDUCED_OR_MASK = 0b101  # overviews and transparency masks beside the image itself
WHITE_IS_ZERO = 0
JPEG_COMPRESSIONS = (6, 7, 34892)
MAX_PAGES = 1000
NUMBER_TYPES = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}  # the types of whole numbers without sign
# How many bands Pillow keeps of the modes in which neither it nor OpenCV loses any.
MODE_BANDS = {"1": 1, "L": 1, "P": 1, "I": 1, "F": 1, "RGB": 3, "YCbCr": 3, "LAB": 3, "RGBA": 4, "CMYK": 4}

Tags = dict[int, tuple[int, ...]]


@dataclass(frozen=True)
class TiffTags:
    """The first image of a TIFF file, and how many whole images the file holds."""

    height: int
    width: int
    bands: int
    bits: int
    orientation: int
    lossy: bool
    white_is_zero: bool
    complete: bool
    pages: int


def read_tags(stream: BinaryIO) -> TiffTags:
    """Read the tags of an open TIFF file; raises struct.error, KeyError or ValueError where they are damaged.

    Not by Pillow, which knows no mode for many files, and warns of damage in place of raising.
    """
    size = stream.seek(0, SEEK_END)
    stream.seek(0)
    start = stream.read(16)
    order = "<" if start[:2] == b"II" else ">"
    big = struct.unpack(f"{order}H", start[2:4])[0] == 43
    (first,) = struct.unpack(f"{order}Q", start[8:16]) if big else struct.unpack(f"{order}I", start[4:8])
    tags, following = _read_directory(stream, first, order=order, big=big, size=size)
    pages, seen = 1, {first}
    while following and following not in seen and len(seen) < MAX_PAGES:
        seen.add(following)
        other, following = _read_directory(stream, following, order=order, big=big, size=size)
        pages += not other.get(SUBFILE_TYPE, (0,))[0] & REDUCED_OR_MASK
    return TiffTags(
        height=tags[HEIGHT][0],
        width=tags[WIDTH][0],
        bands=tags.get(BANDS, (1,))[0],
        bits=max(tags.get(BITS, (1,))),
        orientation=tags.get(ORIENTATION, (1,))[0],
        lossy=tags.get(COMPRESSION, (1,))[0] in JPEG_COMPRESSIONS,
        white_is_zero=tags.get(PHOTOMETRIC, (1,))[0] == WHITE_IS_ZERO,
        complete=_is_complete(tags, size),
        pages=pages,
    )


def loses_bands(mode: str, tags: TiffTags) -> bool:
    """Whether Pillow's mode does not stand for all bands of the file, as that of two bands, or of red, green and blue
    beside infrared."""
    return not (mode.startswith("I;16") and tags.bands == 1) and MODE_BANDS.get(mode) != tags.bands


def _read_directory(stream: BinaryIO, start: int, *, order: str, big: bool, size: int) -> tuple[Tags, int]:
    """The whole numbers of one directory by their tags, and where the next one starts (0: there is none)."""
    count_form, entry_form, room = ("Q", "HHQ8s", 8) if big else ("H", "HHI4s", 4)
    stream.seek(start)
    (count,) = _unpack(stream, order + count_form)
    if count * struct.calcsize(order + entry_form) > size:
        raise ValueError(f"a directory of {count} tags")
    entries = [_unpack(stream, order + entry_form) for _ in range(count)]
    (following,) = _unpack(stream, order + ("Q" if big else "I"))
    tags = {}
    for tag, kind, number, value in entries:
        if kind not in NUMBER_TYPES or not number:
            continue
        form = f"{order}{number}{NUMBER_TYPES[kind]}"
        length = struct.calcsize(form)
        if length > size:
            raise ValueError(f"tag {tag} of {number} numbers")
        if length > room:
            stream.seek(struct.unpack(order + ("Q" if big else "I"), value)[0])
            value = stream.read(length)
        tags[tag] = struct.unpack(form, value[:length])
    return tags, following


def _unpack(stream: BinaryIO, form: str) -> tuple[Any, ...]:
    return struct.unpack(form, stream.read(struct.calcsize(form)))


def _is_complete(tags: Tags, size: int) -> bool:
    for offsets, counts in (STRIPS, TILES):
        ends = zip(tags.get(offsets, ()), tags.get(counts, ()), strict=False)
        if any(offset + count > size for offset, count in ends):
            return False
    return True
