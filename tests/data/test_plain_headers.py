"""The quick look at headers and the small decode of the scan say what the full ones say, of damaged files too."""

from __future__ import annotations

import random
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from segtrain.data.headers import read_header
from segtrain.data.images import check_image, decode_image, read_checked
from segtrain.data.plain_headers import has_end, plain_header
from segtrain.data.problems import FileProblem, Kind

SIZE = (97, 61)


def saved(mode: str, kind: str, **options: Any) -> bytes:
    noise = np.random.default_rng(0).integers(0, 255, (7, 9, 3), np.uint8)
    pixels = cv2.resize(noise, SIZE, interpolation=cv2.INTER_CUBIC)
    stream = BytesIO()
    Image.fromarray(pixels).convert(mode).save(stream, kind, **options)
    return stream.getvalue()


def rotated() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def noted(keyword: str, note: str = "a note") -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    info.add_text(keyword, note)
    return info


PLAIN = [
    *(saved("RGB", "JPEG", subsampling=sampling, progressive=late) for sampling in (0, 1, 2) for late in (False, True)),
    saved("L", "JPEG"),
    saved("CMYK", "JPEG"),
    saved("RGB", "JPEG", restart_marker_blocks=3),
    saved("RGB", "JPEG", dpi=(72, 72), comment=b"a note"),
    *(saved(mode, "PNG") for mode in ("L", "P", "RGB", "RGBA")),
    saved("P", "PNG", bits=4),
    saved("L", "PNG", dpi=(72, 72), pnginfo=noted("Software")),
]
OTHERS = [
    saved("RGB", "JPEG", exif=rotated()),
    saved("L", "PNG", exif=rotated()),
    saved("L", "PNG", pnginfo=noted("exif")),
    saved("I;16", "PNG"),
    saved("LA", "PNG"),
    saved("L", "PNG", save_all=True, append_images=[Image.new("L", SIZE)]),
    saved("RGB", "WEBP"),
    saved("RGB", "TIFF"),
    saved("RGB", "BMP"),
    b"",
]


def damaged(whole: bytes, draw: random.Random) -> bytes:
    """Some bytes changed, most of them near the start, or the end cut off."""
    if draw.random() < 0.3:
        return whole[: draw.randrange(20, len(whole))]
    changed = bytearray(whole)
    for _ in range(draw.choice([1, 1, 3, 20])):
        changed[draw.randrange(min(len(whole), draw.choice([64, 700, 10**6])))] = draw.randrange(256)
    return bytes(changed)


@pytest.mark.parametrize("whole", PLAIN)
def test_plain_files_have_the_header_that_pillow_finds(whole: bytes) -> None:
    found = plain_header(whole)
    assert found is not None
    assert has_end(whole, found[0].kind, found[1])
    assert found[0] == read_header(BytesIO(whole), Path("a"), max_pixels=10**6)


@pytest.mark.parametrize("whole", OTHERS)
def test_files_that_are_rotated_animated_or_rare_get_the_closer_look(whole: bytes) -> None:
    assert plain_header(whole) is None


@pytest.mark.parametrize("whole", PLAIN)
def test_no_damage_that_pillow_finds_is_passed_over(whole: bytes) -> None:
    draw = random.Random(0)
    for _ in range(150):
        data = damaged(whole, draw)
        found = plain_header(data)
        if found is None:
            continue
        full = read_header(BytesIO(data), Path("a"), max_pixels=2**62)
        assert has_end(data, full.kind, found[1]) == full.complete
        if full.complete:
            assert found[0] == full


def test_more_pixels_than_allowed_and_a_missing_end_are_told_as_ever(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(PLAIN[0])
    with pytest.raises(FileProblem, match=r"more than data\.max_pixels: 5916"):
        read_checked(path, max_pixels=SIZE[0] * SIZE[1] - 1)
    assert read_checked(path, max_pixels=SIZE[0] * SIZE[1])[0] == PLAIN[0]
    path.write_bytes(PLAIN[0][:-2])
    assert not read_checked(path, max_pixels=10**6)[1].complete


@pytest.mark.parametrize("whole", [one for one in PLAIN if one.startswith(b"\xff\xd8")])
def test_the_small_decode_of_the_scan_fails_where_the_full_one_does(whole: bytes) -> None:
    draw, path, told = random.Random(1), Path("a.jpg"), {True: 0, False: 0}
    for data in [whole, *(damaged(whole, draw) for _ in range(150))]:
        try:
            header = read_header(BytesIO(data), path, max_pixels=10**6)
        except FileProblem:
            continue
        problems: list[Kind | None] = []
        for read in (decode_image, check_image):
            try:
                read(data, header, path=path, in_channels=3)
                problems.append(None)
            except FileProblem as error:
                problems.append(error.problem.kind)
        assert problems[0] == problems[1]
        told[problems[0] is None] += 1
    assert min(told.values()) > 10


@pytest.mark.parametrize(
    "whole",
    [
        saved("RGB", "JPEG", comment=b"\xff\xda"),
        saved("RGB", "JPEG", comment=b"a\xff\xda\0\x0c" + bytes(40)),
        saved("RGB", "JPEG", comment=b"\xff\xc0\0\x11\x08\0\x09\0\x09\x03" + bytes(9) + b"\xff\xda\0\x08\x03"),
        saved("L", "PNG", pnginfo=noted("note", "IDAT")),
        saved("L", "PNG", pnginfo=noted("note", "aIDATIDAT" + "\0" * 9)),
    ],
)
def test_a_note_that_looks_like_the_start_of_the_pixels_is_none(whole: bytes) -> None:
    found = plain_header(whole)
    assert found is not None
    assert found[0] == read_header(BytesIO(whole), Path("a"), max_pixels=10**6)
    assert whole[found[1] - 4 : found[1]] == b"IDAT" or whole[found[1] - 14 :].startswith(b"\xff\xda\0\x0c\x03")


@pytest.mark.parametrize(("mode", "kind"), [("RGB", "JPEG"), ("L", "PNG")])
def test_headers_are_remembered_by_their_bytes_alone(mode: str, kind: str) -> None:
    def of_size(width: int, height: int) -> bytes:
        stream = BytesIO()
        Image.new(mode, (width, height)).save(stream, kind)
        return stream.getvalue()

    low, high = of_size(16, 8), of_size(8, 16)
    for whole, height in ((low, 8), (high, 16), (low, 8)):
        found = plain_header(whole)
        assert found is not None
        assert found[0].height == height
        assert plain_header(whole[: found[1]]) == found
        assert plain_header(whole[: found[1] - 1]) is None  # ends before the pixels begin
