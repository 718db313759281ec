"""Turns image files into arrays: pixels as they are stored, in the channels that the model takes."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from io import BytesIO, FileIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from segtrain.data.extras import require
from segtrain.data.headers import MANY_BANDS, Header, open_image, read_header
from segtrain.data.plain_headers import has_end, plain_header
from segtrain.data.problems import FileProblem, Kind

AnyArray = NDArray[Any]
# JPEG is decoded to RGB at once where OpenCV can (from 4.11 on): the same values, without a pass that turns BGR around.
DECODE_RGB: int | None = (
    cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION if hasattr(cv2, "IMREAD_COLOR_RGB") else None
)

REDUCED = {
    "RGB": {2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4, 8: cv2.IMREAD_REDUCED_COLOR_8},
    "L": {2: cv2.IMREAD_REDUCED_GRAYSCALE_2, 4: cv2.IMREAD_REDUCED_GRAYSCALE_4, 8: cv2.IMREAD_REDUCED_GRAYSCALE_8},
}
PLAIN_PATH = type(Path())
FIRST_BYTES = 2**16  # of a file, in which its header stands as a rule
GRAY_MODES = ("1", "L", "LA", "La", "I;16", "I;16B", "I;16L", "I;16N")
COLOR_MODES = ("RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "LAB", "P", "PA")
KNOWN_MODES = frozenset((*GRAY_MODES, *COLOR_MODES))


def read_image(path: Path, *, in_channels: int = 3, max_pixels: int, bands: Sequence[int] | None = None) -> AnyArray:
    """Read an image as it is stored.

    With `in_channels` 3 a grey image is repeated in each channel, and an alpha channel is dropped with 1 and 3. Any
    other number is that of the bands in the file, or of those that `bands` names, from 1, in this order. EXIF
    orientation is not applied, because masks carry none: the scan reports rotated images.

    Returns:
        uint8 or uint16 [H, W, in_channels], RGB.

    Raises:
        FileProblem: unreadable or truncated file, colours where one channel is expected, another number of bands, a
            type of pixel other than 8 or 16 bits without sign, more than `max_pixels` pixels.
        ConfigError: bands that take rasterio, and it is missing.
    """
    data, header = read_checked(path, max_pixels=max_pixels)
    return decode_image(data, header, path=path, in_channels=in_channels, bands=bands)


def decode_image(
    data: bytes,
    header: Header,
    *,
    path: Path,
    in_channels: int,
    bands: Sequence[int] | None = None,
    at_least: tuple[int, int] | None = None,
) -> AnyArray:
    """Decode the bytes of an image file whose header is known; see read_image.

    With `at_least` [height, width] JPEG files of RGB or grey come at the smallest of 1/1, 1/2, 1/4 and 1/8 of their
    size that is whole and has as many pixels in both directions.
    """
    check_whole(header, path)
    if bands is not None or in_channels not in (1, 3) or header.mode == MANY_BANDS:
        return _choose(_all_bands(data, header, path), path, in_channels=in_channels, bands=bands)
    reason = explain_mode(header, in_channels)
    if reason:
        raise FileProblem(path, reason, Kind.PIXEL_TYPE)
    if at_least is not None and header.kind == "JPEG" and header.mode in REDUCED:
        factor = _reduction(header, at_least)
        if factor > 1:
            return _decode_reduced(data, header, path, factor=factor, in_channels=in_channels)
    if (header.kind, header.mode) == ("JPEG", "RGB") and DECODE_RGB is not None:
        return _decode(data, path, DECODE_RGB)
    pixels = _unsigned(decode_pixels(data, header, path), path)
    if pixels.ndim == 2 or header.mode in GRAY_MODES:
        channel = pixels if pixels.ndim == 2 else pixels[:, :, 0]
        return np.ascontiguousarray(np.repeat(channel[:, :, None], in_channels, axis=2))
    code = cv2.COLOR_BGRA2RGB if pixels.shape[2] == 4 else cv2.COLOR_BGR2RGB
    return cv2.cvtColor(pixels, code)


def _reduction(header: Header, at_least: tuple[int, int]) -> int:
    """By how much a JPEG file may be shrunk as it is decoded: 1, 2, 4 or 8, and what divides both of its sides.

    Other sides are rounded up to whole pixels, with which the image would not quite lie on its target.
    """
    sides = list(zip((header.height, header.width), at_least, strict=True))
    return next((f for f in (8, 4, 2) if all(side % f == 0 and side >= f * least for side, least in sides)), 1)


def _decode_reduced(data: bytes, header: Header, path: Path, *, factor: int, in_channels: int) -> AnyArray:
    pixels = _decode(data, path, REDUCED[header.mode][factor] | cv2.IMREAD_IGNORE_ORIENTATION)
    if header.mode == "RGB":
        return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
    return np.ascontiguousarray(np.repeat(pixels[:, :, None], in_channels, axis=2))


def check_image(
    data: bytes, header: Header, *, path: Path, in_channels: int, bands: Sequence[int] | None = None
) -> None:
    """Raise what decode_image raises, without all of its work where that tells as much.

    Of JPEG files all coefficients are read whatever the size of the result, and nothing after that finds damage:
    here it is an eighth of the size.
    """
    check_whole(header, path)
    if bands is not None or in_channels not in (1, 3) or header.kind != "JPEG" or header.mode not in REDUCED:
        decode_image(data, header, path=path, in_channels=in_channels, bands=bands)
        return
    reason = explain_mode(header, in_channels)
    if reason:
        raise FileProblem(path, reason, Kind.PIXEL_TYPE)
    _decode(data, path, REDUCED[header.mode][8])


def check_whole(header: Header, path: Path) -> None:
    """Raise FileProblem for a file whose end is missing, or of which more than one image would have to be read."""
    if not header.complete:
        raise FileProblem(path, f"truncated {header.kind}: the end of the file is missing", Kind.TRUNCATED)
    if header.pages > 1:
        reason = f"the {header.kind} holds {header.pages} images, of which one would be read: save each as a file"
        raise FileProblem(path, reason, Kind.PIXEL_TYPE)


def explain_mode(header: Header, in_channels: int) -> str:
    """Say why an image of this kind of pixel does not fit `in_channels` (1 or 3); empty when it does."""
    if header.mode not in KNOWN_MODES:
        return f"{header.kind} pixels of mode {header.mode}; images have 8 or 16 bits without sign"
    if in_channels == 1 and header.mode in COLOR_MODES:
        return "a colour image, but model.in_channels is 1: convert it to grey, or use 3"
    return ""


def _choose(stored: AnyArray, path: Path, *, in_channels: int, bands: Sequence[int] | None) -> AnyArray:
    count = stored.shape[2]
    if bands is None:
        if count != in_channels:
            reason = f"{count} bands, and model.in_channels is {in_channels}: name those to use in data.bands"
            raise FileProblem(path, reason, Kind.PIXEL_TYPE)
        return np.ascontiguousarray(stored)
    if max(bands) > count:
        raise FileProblem(path, f"{count} bands, and data.bands names band {max(bands)}", Kind.PIXEL_TYPE)
    return np.ascontiguousarray(stored[:, :, [band - 1 for band in bands]])


def _all_bands(data: bytes, header: Header, path: Path) -> AnyArray:
    """All bands as they are stored, [H, W, B]; those of colours in the order RGB, alpha last."""
    if header.mode == MANY_BANDS:
        return _unsigned(_with_rasterio(data, header, path), path)
    if header.mode not in ("1", "L", "LA", "RGB", "RGBA", "P", "PA", *GRAY_MODES):
        raise FileProblem(path, f"{header.kind} pixels of mode {header.mode} are no bands to choose", Kind.PIXEL_TYPE)
    pixels = _unsigned(decode_pixels(data, header, path), path)
    if pixels.ndim == 2:
        return pixels[:, :, None]
    if header.mode in GRAY_MODES:  # with alpha: OpenCV repeats the grey
        return pixels[:, :, [0, 3]]
    return pixels[:, :, [2, 1, 0, *range(3, pixels.shape[2])]]


def _with_rasterio(data: bytes, header: Header, path: Path) -> AnyArray:
    what = f"{path} has {header.bands} bands"
    rasterio, errors = (require(f"rasterio.{name}", extra="geo", what=what) for name in ("io", "errors"))
    # Again each time, for others may have reset the filters: most images of many bands have no place on Earth.
    warnings.filterwarnings("ignore", category=errors.NotGeoreferencedWarning)
    try:
        with rasterio.MemoryFile(data) as file, file.open() as image:
            return np.asarray(image.read()).transpose(1, 2, 0)
    except errors.RasterioError as error:
        raise FileProblem(path, f"the pixels cannot be decoded ({error})") from error


def _unsigned(pixels: AnyArray, path: Path) -> AnyArray:
    if pixels.dtype not in (np.uint8, np.uint16):
        raise FileProblem(path, f"pixels are {pixels.dtype}; images have 8 or 16 bits without sign", Kind.PIXEL_TYPE)
    return pixels


def decode_pixels(data: bytes, header: Header, path: Path) -> AnyArray:
    """The pixels of an image file as OpenCV stores them (BGR), [H, W] or [H, W, C]; raises FileProblem."""
    if header.kind == "TIFF" and header.bits == 8 and header.mode in ("L", "RGB", "RGBA"):
        # OpenCV multiplies these colours by alpha, and fails with some tiles.
        stored = decode_with_pillow(data, path)
        return stored if stored.ndim == 2 else stored[:, :, [2, 1, 0, *range(3, stored.shape[2])]]
    # IMREAD_UNCHANGED keeps 16 bits and alpha, and never applies EXIF orientation.
    return _decode(data, path, cv2.IMREAD_UNCHANGED)


def _decode(data: bytes, path: Path, flags: int) -> AnyArray:
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise FileProblem(path, f"the pixels cannot be decoded ({error})") from error
    if pixels is None:
        raise FileProblem(path, "the pixels cannot be decoded: the file is damaged")
    return np.asarray(pixels)


def decode_with_pillow(data: bytes, path: Path) -> AnyArray:
    """The pixels of an image file as Pillow stores them: palette indices, 0 and 1; raises FileProblem."""
    try:
        with open_image(BytesIO(data), path) as image:
            return np.array(image)  # a copy: Pillow's own memory is read-only
    except (SyntaxError, OSError, ValueError, EOFError) as error:
        raise FileProblem(path, f"the pixels cannot be decoded ({error})") from error


def read_checked(path: Path, *, max_pixels: int) -> tuple[bytes, Header]:
    """The bytes of an image file and its header, which is checked before the rest is read; raises FileProblem."""
    try:
        # The same for files as their own `open`, which takes longer than to read some; tar members have another.
        with FileIO(path) if type(path) is PLAIN_PATH else path.open("rb", buffering=0) as stream:
            first = stream.read(FIRST_BYTES)
            plain = plain_header(first)
            if plain is not None and plain[0].height * plain[0].width <= max_pixels:
                header, start_of_pixels = plain
                rest = stream.readall()
                data = first + rest if rest else first
                if has_end(data, header.kind, start_of_pixels):
                    return data, header
        with path.open("rb") as buffered:  # files that want a closer look, which says what is wrong
            header = read_header(buffered, path, max_pixels=max_pixels)
            buffered.seek(0)
            return buffered.read(), header
    except OSError as error:
        raise FileProblem(path, f"cannot be read ({error.strerror or error})") from error
