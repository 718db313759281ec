"""Reads the header of an image file: kind, size, mode, orientation and completeness, before any pixel is decoded."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from io import SEEK_CUR, SEEK_END
from pathlib import Path
from typing import BinaryIO

from PIL import BmpImagePlugin, ImageFile, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin

from segtrain.data.problems import FileProblem, Kind
from segtrain.data.tiff import loses_bands, read_tags

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
MANY_BANDS = "bands"
_BROKEN = (SyntaxError, OSError, ValueError, EOFError, KeyError, TypeError, struct.error)
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
    """What the first bytes of an image file say.

    mode: Pillow's name for the kind of pixel, or MANY_BANDS where it has none for all bands. bands: of TIFF files, else
    those of the mode. bits: of each band of TIFF files. pages: whole images in the file. lossy: values are not those
    that were saved. white_is_zero: of grey, decoders differ in whether they invert it.
    """

    kind: str
    height: int
    width: int
    mode: str
    orientation: int
    complete: bool
    bands: int = 1
    bits: int | None = None
    pages: int = 1
    lossy: bool = False
    white_is_zero: bool = False

    @property
    def size(self) -> str:
        """Width and height as people write them."""
        return f"{self.width}x{self.height}"


def open_image(stream: BinaryIO, path: Path) -> ImageFile.ImageFile:
    """Open an image with Pillow without decoding its pixels; raises FileProblem."""
    kind = _known_kind(stream, path)
    try:
        return _READERS[kind](stream)
    except _BROKEN as error:
        raise _broken(kind, path, error) from error


def read_header(stream: BinaryIO, path: Path, *, max_pixels: int) -> Header:
    """Read the header of an open image file (seekable).

    Raises:
        FileProblem: empty file, unknown kind, broken header, or more than `max_pixels` pixels.
    """
    kind = _known_kind(stream, path)
    if kind == "TIFF":
        return _read_tiff(stream, path, max_pixels=max_pixels)
    return _read_other(kind, stream, path, max_pixels=max_pixels)


def _known_kind(stream: BinaryIO, path: Path) -> str:
    kind = _kind(stream.read(16))
    stream.seek(0)
    if kind is None:
        empty = not stream.read(1)
        raise FileProblem(path, "the file is empty" if empty else "not a PNG, JPEG, TIFF, WebP or BMP image")
    return kind


def _broken(kind: str, path: Path, error: Exception) -> FileProblem:
    return FileProblem(path, f"unreadable {kind}: its header is damaged or its end is missing ({error})")


def _check_size(width: int, height: int, path: Path, *, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise FileProblem(path, f"{width}x{height} pixels are more than data.max_pixels: {max_pixels}", Kind.TOO_LARGE)


def _read_other(kind: str, stream: BinaryIO, path: Path, *, max_pixels: int) -> Header:
    image = open_image(stream, path)
    start_of_pixels = stream.tell()
    width, height = image.size
    _check_size(width, height, path, max_pixels=max_pixels)
    return Header(
        kind=kind,
        height=height,
        width=width,
        mode=image.mode,
        orientation=_orientation(image, path),
        complete=_COMPLETE[kind](stream, start_of_pixels),
        bands=len(image.getbands()),
        pages=int(getattr(image, "n_frames", 1)),
        lossy=kind == "JPEG" or (kind == "WEBP" and not _webp_lossless(stream)),
    )


def _read_tiff(stream: BinaryIO, path: Path, *, max_pixels: int) -> Header:
    """The tags count: Pillow knows no mode for many files, and one of fewer bands for some."""
    try:
        tags = read_tags(stream)
    except _BROKEN as error:
        raise _broken("TIFF", path, error) from error
    _check_size(tags.width, tags.height, path, max_pixels=max_pixels)
    stream.seek(0)
    try:
        mode = _READERS["TIFF"](stream).mode
    except _BROKEN:
        mode = MANY_BANDS
    return Header(
        kind="TIFF",
        height=tags.height,
        width=tags.width,
        mode=MANY_BANDS if loses_bands(mode, tags) else mode,
        orientation=tags.orientation,
        complete=tags.complete,
        bands=tags.bands,
        bits=tags.bits,
        pages=tags.pages,
        lossy=tags.lossy,
        white_is_zero=tags.white_is_zero,
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
    if "exif" not in image.info:
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


def _jpeg_complete(stream: BinaryIO, start_of_pixels: int) -> bool:
    # Pixel data never contains the end marker, and a thumbnail's own marker lies before the pixels.
    return _ends_with(b"\xff\xd9", stream, start_of_pixels)


def _png_complete(stream: BinaryIO, start_of_pixels: int) -> bool:
    return _ends_with(b"IEND\xae\x42\x60\x82", stream, start_of_pixels)


def _webp_complete(stream: BinaryIO, start_of_pixels: int) -> bool:
    stream.seek(4)
    (size,) = struct.unpack("<I", stream.read(4))
    return int(size) + 8 <= stream.seek(0, SEEK_END)


def _bmp_complete(stream: BinaryIO, start_of_pixels: int) -> bool:
    stream.seek(2)
    (size,) = struct.unpack("<I", stream.read(4))
    return int(size) <= stream.seek(0, SEEK_END)


def _webp_lossless(stream: BinaryIO) -> bool:
    """Whether the pixels stand in a VP8L chunk; in the extended form it comes after others."""
    stream.seek(12)
    while len(chunk := stream.read(8)) == 8:
        if chunk[:4] in (b"VP8L", b"VP8 ", b"ANMF"):
            return chunk[:4] == b"VP8L"
        (size,) = struct.unpack("<I", chunk[4:])
        stream.seek(size + size % 2, SEEK_CUR)
    return False


_COMPLETE: dict[str, Callable[[BinaryIO, int], bool]] = {
    "PNG": _png_complete,
    "JPEG": _jpeg_complete,
    "WEBP": _webp_complete,
    "BMP": _bmp_complete,
}
