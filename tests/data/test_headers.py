"""Headers are read before pixels: kinds, sizes, limits, rotation, and files whose end is missing."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segtrain.data.headers import SUFFIXES, Header, read_header
from segtrain.data.problems import FileProblem

LIMIT = 10**8


def header_of(path: Path, *, max_pixels: int = LIMIT) -> Header:
    with path.open("rb") as stream:
        return read_header(stream, path, max_pixels=max_pixels)


def photo(height: int = 40, width: int = 56) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_kind_tells_its_size_and_is_complete(save: Callable[..., Path], suffix: str) -> None:
    header = header_of(save(f"photo{suffix}", photo()))
    assert (header.kind, header.height, header.width) == (SUFFIXES[suffix], 40, 56)
    assert header.complete
    assert header.orientation == 1


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".webp", ".bmp"])
@pytest.mark.parametrize("kept", [0.6, 0.99])
def test_a_file_without_its_end_is_incomplete(save: Callable[..., Path], suffix: str, kept: float) -> None:
    path = save(f"photo{suffix}", photo())
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    if suffix == ".webp":  # is read as a whole
        with pytest.raises(FileProblem, match="its end is missing"):
            header_of(path)
    else:
        assert not header_of(path).complete


def test_a_jpeg_cut_after_its_thumbnail_is_incomplete(save: Callable[..., Path]) -> None:
    thumbnail = BytesIO()
    Image.fromarray(photo(8, 8)).save(thumbnail, "JPEG")
    exif = b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0" + thumbnail.getvalue()
    path = save("photo.jpg", photo(), exif=exif)
    data = path.read_bytes()
    assert data.count(b"\xff\xd9") == 2
    path.write_bytes(data[:-400])
    assert not header_of(path).complete


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_bytes_after_the_end_are_no_fault(save: Callable[..., Path], suffix: str) -> None:
    path = save(f"photo{suffix}", photo())
    path.write_bytes(path.read_bytes() + b"\0" * 9000)
    assert header_of(path).complete


def test_rotation_is_read_from_exif(save: Callable[..., Path]) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert header_of(save("photo.jpg", photo(), exif=exif)).orientation == 6


def test_a_decompression_bomb_is_refused_by_its_header(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(_png_header(60000, 60000))
    with pytest.raises(FileProblem, match=r"60000x60000 pixels are more than data.max_pixels: 100000000"):
        header_of(path)


def test_a_raised_limit_is_the_only_limit(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    path.write_bytes(_png_header(20000, 20000))
    assert header_of(path, max_pixels=10**9).width == 20000


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "empty"), (b"hello, I am text", "not a PNG"), (b"\x89PNG\r\n\x1a\n" + b"\0" * 40, "unreadable PNG")],
)
def test_what_is_no_image_is_told(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "photo.png"
    path.write_bytes(content)
    with pytest.raises(FileProblem, match=reason) as caught:
        header_of(path)
    assert str(path) in str(caught.value)


def _png_header(width: int, height: int) -> bytes:
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    ihdr = struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    return b"\x89PNG\r\n\x1a\n" + ihdr + struct.pack(">I", 4) + b"IDAT" + b"\0" * 8
