"""Reads the header of an image file: kind, size, mode, orientation and completeness, before any pixel is decoded."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from io import SEEK_END
from pathlib import Path
from typing import BinaryIO

from PIL import BmpImagePlugin, ImageFile, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin

from segtrain.data.problems import FileProblem, Kind

SUFFIXES = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".webp": "WEBP",
    ".bmp": "BMP",
}
ORIENTATION_TAG = 0x0112
NOT_ROTATED = 1
TAIL_BYTES = 4096  # some writers append a few bytes after the end marker

# Pillow's classes are called directly: Image.open would apply Pillow's own limit on pixels, which knows
# nothing of data.max_pixels and warns or raises below and above it.
_READERS: dict[str, Callable[[BinaryIO], ImageFile.ImageFile]] = {
    "PNG": PngImagePlugin.PngImageFile,
    "JPEG": JpegImagePlugin.JpegImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
}


@dataclass(frozen=True)
class Header:
    """What the first bytes of an image file say."""

    kind: str
    height: int
    width: int
    mode: str
    orientation: int
    complete: bool

    @property
    def size(self) -> str:
        """Width and height as people write them."""
        return f"{self.width}x{self.height}"


def open_image(stream: BinaryIO, path: Path) -> ImageFile.ImageFile:
    """Open an image with Pillow without decoding its pixels; raises FileProblem."""
    kind = _kind(stream.read(16))
    stream.seek(0)
    if kind is None:
        empty = not stream.read(1)
        raise FileProblem(path, "the file is empty" if empty else "not a PNG, JPEG, TIFF, WebP or BMP image")
    try:
        return _READERS[kind](stream)
    except (SyntaxError, OSError, ValueError, EOFError) as error:
        raise FileProblem(path, f"unreadable {kind}: its header is damaged or its end is missing ({error})") from error


def read_header(stream: BinaryIO, path: Path, *, max_pixels: int) -> Header:
    """Read the header of an open image file (seekable).

    Raises:
        FileProblem: empty file, unknown kind, broken header, or more than `max_pixels` pixels.
    """
    image = open_image(stream, path)
    start_of_pixels = stream.tell()
    width, height = image.size
    if width * height > max_pixels:
        raise FileProblem(path, f"{width}x{height} pixels are more than data.max_pixels: {max_pixels}", Kind.TOO_LARGE)
    return Header(
        kind=str(image.format),
        height=height,
        width=width,
        mode=image.mode,
        orientation=_orientation(image, path),
        complete=_COMPLETE[str(image.format)](stream, image, start_of_pixels),
    )


def _kind(first: bytes) -> str | None:
    if first.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if first.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if first.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return "TIFF"
    if first.startswith(b"RIFF") and first[8:12] == b"WEBP":
        return "WEBP"
    if first.startswith(b"BM"):
        return "BMP"
    return None


def _orientation(image: ImageFile.ImageFile, path: Path) -> int:
    if "exif" not in image.info and not isinstance(image, TiffImagePlugin.TiffImageFile):
        return NOT_ROTATED
    try:
        return int(image.getexif().get(ORIENTATION_TAG, NOT_ROTATED))
    except (SyntaxError, OSError, ValueError, TypeError, KeyError, struct.error) as error:
        raise FileProblem(path, f"unreadable EXIF data ({error})") from error


def _ends_with(marker: bytes, stream: BinaryIO, start_of_pixels: int) -> bool:
    """Whether `marker` comes after the start of the pixels; near the end first, as it nearly always is."""
    size = stream.seek(0, SEEK_END)
    for first in (max(start_of_pixels, size - TAIL_BYTES), start_of_pixels):
        stream.seek(first)
        if marker in stream.read():
            return True
    return False


def _jpeg_complete(stream: BinaryIO, image: ImageFile.ImageFile, start_of_pixels: int) -> bool:
    # Pixel data never contains the end marker, and a thumbnail's own marker lies before the pixels.
    return _ends_with(b"\xff\xd9", stream, start_of_pixels)


def _png_complete(stream: BinaryIO, image: ImageFile.ImageFile, start_of_pixels: int) -> bool:
    return _ends_with(b"IEND\xae\x42\x60\x82", stream, start_of_pixels)


def _webp_complete(stream: BinaryIO, image: ImageFile.ImageFile, start_of_pixels: int) -> bool:
    stream.seek(4)
    (size,) = struct.unpack("<I", stream.read(4))
    return int(size) + 8 <= stream.seek(0, SEEK_END)


def _bmp_complete(stream: BinaryIO, image: ImageFile.ImageFile, start_of_pixels: int) -> bool:
    stream.seek(2)
    (size,) = struct.unpack("<I", stream.read(4))
    return int(size) <= stream.seek(0, SEEK_END)


def _tiff_complete(stream: BinaryIO, image: ImageFile.ImageFile, start_of_pixels: int) -> bool:
    assert isinstance(image, TiffImagePlugin.TiffImageFile)
    tags = image.tag_v2
    size = stream.seek(0, SEEK_END)
    for offsets, counts in ((273, 279), (324, 325)):  # strips, tiles
        ends = zip(tags.get(offsets, ()), tags.get(counts, ()), strict=False)
        if any(offset + count > size for offset, count in ends):
            return False
    return True


_COMPLETE: dict[str, Callable[[BinaryIO, ImageFile.ImageFile, int], bool]] = {
    "PNG": _png_complete,
    "JPEG": _jpeg_complete,
    "TIFF": _tiff_complete,
    "WEBP": _webp_complete,
    "BMP": _bmp_complete,
}
