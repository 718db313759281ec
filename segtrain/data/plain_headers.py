"""Reads the headers of plain JPEG and PNG files from their first bytes; all others are left to headers.py."""

from __future__ import annotations

import struct
import zlib
from functools import lru_cache

from segtrain.data.headers import NOT_ROTATED, Header

JPEG_START, JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
PNG_START, PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xae\x42\x60\x82"
JPEG_MODES = {1: "L", 3: "RGB", 4: "CMYK"}
PNG_MODES = {(8, 0): "L", (8, 2): "RGB", (1, 3): "P", (2, 3): "P", (4, 3): "P", (8, 3): "P", (8, 6): "RGBA"}
JPEG_PIXELS, PNG_PIXELS = b"\xff\xda", b"IDAT"
HEADERS_KEPT = 32  # the files of a data set often come from one program, and begin with the same bytes
NUM_BANDS = {"L": 1, "P": 1, "RGB": 3, "RGBA": 4, "CMYK": 4}
# Chunks that say nothing of the pixels' meaning, with the lengths that they may have.
PNG_ASIDES = {
    b"gAMA": (4, 4),
    b"pHYs": (9, 9),
    b"sRGB": (1, 1),
    b"cHRM": (32, 32),
    b"tIME": (7, 7),
    b"bKGD": (1, 6),
    b"sBIT": (1, 4),
    b"tEXt": (0, 65535),
}

_SIZE, _LENGTH, _CHUNK, _SHAPE = (
    struct.Struct(">HH"),
    struct.Struct(">H"),
    struct.Struct(">I4s"),
    struct.Struct(">II5B"),
)


def plain_header(first: bytes) -> tuple[Header, int] | None:
    """The header of a file that begins with these bytes, and where its pixels begin; None where it takes a closer look.

    Nothing here is damaged, rotated, animated or rare: whatever might be is left to `read_header`, which says the same
    of plain files and takes ten times as long. That the file is complete is yet to be seen: `has_end`.
    """
    try:
        if first.startswith(JPEG_START):
            return _seen_jpeg(first) or _plain_jpeg(first)
        return _seen_png(first) or _plain_png(first) if first.startswith(PNG_START) else None
    except (struct.error, IndexError):  # it ends before the pixels begin
        return None


def _seen_jpeg(first: bytes) -> tuple[Header, int] | None:
    """What `_plain_jpeg` says, looked up where a file began with these bytes before; else None, as in doubt."""
    place = first.find(JPEG_PIXELS, 2)
    if place < 0:
        return None
    (length,) = _LENGTH.unpack_from(first, place + 2)
    return _of_jpeg(first[: place + 2 + length])


def _seen_png(first: bytes) -> tuple[Header, int] | None:
    place = first.find(PNG_PIXELS, 8)
    # without the length of the first pixels, which differs from file to file and says nothing of them
    return None if place < 4 else _of_png(first[: place - 4])


@lru_cache(HEADERS_KEPT)
def _of_jpeg(begin: bytes) -> tuple[Header, int] | None:
    """The header in all that comes before the pixels; None where these bytes are not that."""
    try:
        return _plain_jpeg(begin)
    except (struct.error, IndexError):
        return None


@lru_cache(HEADERS_KEPT)
def _of_png(begin: bytes) -> tuple[Header, int] | None:
    try:
        return _plain_png(begin + bytes(4) + PNG_PIXELS)
    except (struct.error, IndexError):
        return None


def has_end(data: bytes, kind: str, start_of_pixels: int) -> bool:
    """Whether the end marker of a JPEG or PNG file comes after the start of its pixels."""
    return data.rfind(JPEG_END if kind == "JPEG" else PNG_END, start_of_pixels) >= 0


def _plain_jpeg(first: bytes) -> tuple[Header, int] | None:
    header, place = None, 2
    while first[place] == 0xFF:
        marker = first[place + 1]
        (length,) = _LENGTH.unpack_from(first, place + 2)
        end = place + 2 + length
        if length < 2 or end > len(first):
            return None
        if marker == 0xDA:  # the pixels follow
            return None if header is None else (header, end)
        content = first[place + 4 : end]
        if marker in (0xC0, 0xC1, 0xC2):
            if header is not None:
                return None
            header = _jpeg_frame(content)
            if header is None:
                return None
        elif not _is_aside(marker, content):
            return None
        place = end
    return None


def _jpeg_frame(content: bytes) -> Header | None:
    height, width = _SIZE.unpack_from(content, 1)
    mode = JPEG_MODES.get(content[5])
    if content[0] != 8 or mode is None or not (height and width) or len(content) != 6 + 3 * content[5]:
        return None
    return _header("JPEG", height, width, mode)


def _is_aside(marker: int, content: bytes) -> bool:
    """Whether a segment is one that every plain file has, or a note that changes nothing; EXIF is neither."""
    if marker == 0xDB:  # quantisation tables of 8 bits
        return len(content) % 65 == 0 and all(number < 16 for number in content[::65])
    if marker == 0xE0:
        return len(content) >= 14
    if marker == 0xE1:
        return content.startswith(b"http://ns.adobe.com/xap/1.0/\0")
    if marker == 0xE2:
        return content.startswith(b"ICC_PROFILE\0") and len(content) > 14
    if marker == 0xEE:
        return len(content) >= 12
    return marker in (0xC4, 0xDD, 0xFE)  # Huffman tables, restart interval, comment


def _plain_png(first: bytes) -> tuple[Header, int] | None:
    header, place = None, 8
    while True:
        length, kind = _CHUNK.unpack_from(first, place)
        start, end = place + 8, place + 8 + length
        if kind == b"IDAT":
            return None if header is None else (header, start)
        if end + 4 > len(first) or zlib.crc32(first[place + 4 : end]) != _CHUNK.unpack_from(first, end)[0]:
            return None
        if kind == b"IHDR":
            width, height, bits, color, packed, filtered, _ = _SHAPE.unpack_from(first, start)
            mode = PNG_MODES.get((bits, color))
            if header is not None or length != 13 or mode is None or packed or filtered or not (width and height):
                return None
            header = _header("PNG", height, width, mode)
        elif kind == b"PLTE":
            if length % 3 or length > 768:
                return None
        elif not _is_png_aside(kind, first[start:end]):
            return None
        place = end + 4


def _is_png_aside(kind: bytes, content: bytes) -> bool:
    least, most = PNG_ASIDES.get(kind, (1, 0))
    return least <= len(content) <= most and not (kind == b"tEXt" and b"exif" in content.lower())


def _header(kind: str, height: int, width: int, mode: str) -> Header:
    return Header(
        kind=kind,
        height=height,
        width=width,
        mode=mode,
        orientation=NOT_ROTATED,
        complete=True,
        bands=NUM_BANDS[mode],
        lossy=kind == "JPEG",
    )
