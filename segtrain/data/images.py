"""Turns image files into arrays: pixels as they are stored, in the channels that the model takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from segtrain.data.headers import Header, read_header
from segtrain.data.problems import FileProblem, Kind

AnyArray = NDArray[Any]

GRAY_MODES = ("1", "L", "LA", "La", "I;16", "I;16B", "I;16L", "I;16N")
COLOR_MODES = ("RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "LAB", "P", "PA")


def read_image(path: Path, *, in_channels: int = 3, max_pixels: int) -> AnyArray:
    """Read an image as it is stored.

    With `in_channels` 3 a grey image is repeated in each channel; an alpha channel is dropped. EXIF
    orientation is not applied, because masks carry none: the scan reports rotated images.

    Returns:
        uint8 or uint16 [H, W, in_channels], RGB.

    Raises:
        FileProblem: unreadable or truncated file, colours where one channel is expected, a type of pixel
            other than 8 or 16 bits without sign, more than `max_pixels` pixels.
    """
    data, header = read_checked(path, max_pixels=max_pixels)
    return decode_image(data, header, path=path, in_channels=in_channels)


def decode_image(data: bytes, header: Header, *, path: Path, in_channels: int) -> AnyArray:
    """Decode the bytes of an image file whose header is known; see read_image."""
    if not header.complete:
        raise FileProblem(path, f"truncated {header.kind}: the end of the file is missing", Kind.TRUNCATED)
    reason = explain_mode(header, in_channels)
    if reason:
        raise FileProblem(path, reason, Kind.PIXEL_TYPE)
    pixels = decode_pixels(data, path)
    if pixels.dtype not in (np.uint8, np.uint16):
        raise FileProblem(path, f"pixels are {pixels.dtype}; images have 8 or 16 bits without sign", Kind.PIXEL_TYPE)
    if pixels.ndim == 2 or header.mode in GRAY_MODES:
        channel = pixels if pixels.ndim == 2 else pixels[:, :, 0]
        return np.ascontiguousarray(np.repeat(channel[:, :, None], in_channels, axis=2))
    code = cv2.COLOR_BGRA2RGB if pixels.shape[2] == 4 else cv2.COLOR_BGR2RGB
    return cv2.cvtColor(pixels, code)


def explain_mode(header: Header, in_channels: int) -> str:
    """Say why an image of this kind of pixel does not fit `in_channels` (1 or 3); empty when it does."""
    if header.mode not in (*GRAY_MODES, *COLOR_MODES):
        return f"{header.kind} pixels of mode {header.mode}; images have 8 or 16 bits without sign"
    if in_channels == 1 and header.mode in COLOR_MODES:
        return "a colour image, but model.in_channels is 1: convert it to grey, or use 3"
    return ""


def decode_pixels(data: bytes, path: Path) -> AnyArray:
    """The pixels of an image file as OpenCV stores them (BGR), [H, W] or [H, W, C]; raises FileProblem."""
    try:
        # IMREAD_UNCHANGED keeps 16 bits and alpha, and never applies EXIF orientation.
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise FileProblem(path, f"the pixels cannot be decoded ({error})") from error
    if pixels is None:
        raise FileProblem(path, "the pixels cannot be decoded: the file is damaged")
    return np.asarray(pixels)


def read_checked(path: Path, *, max_pixels: int) -> tuple[bytes, Header]:
    """The bytes of an image file and its header, which is checked before the rest is read; raises FileProblem."""
    try:
        with path.open("rb") as stream:
            header = read_header(stream, path, max_pixels=max_pixels)
            stream.seek(0)
            return stream.read(), header
    except OSError as error:
        raise FileProblem(path, f"cannot be read ({error.strerror or error})") from error
