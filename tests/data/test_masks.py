"""Mask values arrive unchanged, become targets by the written rules only, and images keep their depth."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from segtrain.config.data import DataConfig
from segtrain.data import masks
from segtrain.data.images import read_image
from segtrain.data.masks import LabelRules, histogram, read_mask
from segtrain.data.problems import FileProblem
from segtrain.errors import DataError

LIMIT = 10**8
IDS = np.array([[0, 1, 15], [255, 15, 1]], np.uint8)


def rules(num_classes: int = 3, ignore_index: int = 255, mapping: dict[int, int] | None = None) -> LabelRules:
    names = tuple(f"class{number}" for number in range(num_classes))
    return LabelRules(num_classes=num_classes, ignore_index=ignore_index, mapping=mapping, names=names)


# --- masks as they are stored


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp"])
def test_palette_masks_give_indices_not_colours(save: Callable[..., Path], suffix: str) -> None:
    palette = Image.frombytes("P", (IDS.shape[1], IDS.shape[0]), IDS.tobytes())
    palette.putpalette(np.random.default_rng(0).integers(0, 256, 768).tolist())
    path = save(f"mask{suffix}", palette)
    mask = read_mask(path, max_pixels=LIMIT)
    np.testing.assert_array_equal(mask, IDS)
    assert mask.flags.writeable  # torch warns of tensors over read-only memory


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bit_ids_survive(save: Callable[..., Path], suffix: str) -> None:
    ids = np.array([[0, 300, 65535], [7, 256, 1]], np.uint16)
    read = read_mask(save(f"mask{suffix}", ids), max_pixels=LIMIT)
    assert read.dtype == np.uint16
    np.testing.assert_array_equal(read, ids)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp"])
def test_grey_masks_are_read_unchanged(save: Callable[..., Path], suffix: str) -> None:
    np.testing.assert_array_equal(read_mask(save(f"mask{suffix}", IDS), max_pixels=LIMIT), IDS)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp"])
def test_one_bit_masks_are_0_and_1(save: Callable[..., Path], suffix: str) -> None:
    bits = np.array([[True, False, True]])
    np.testing.assert_array_equal(read_mask(save(f"mask{suffix}", bits), max_pixels=LIMIT), bits.astype(np.uint8))


@pytest.mark.parametrize(("bits", "ids"), [(2, [0, 1, 2, 3]), (4, [0, 5, 11, 15])])
def test_grey_masks_of_2_and_4_bits_are_not_stretched(tmp_path: Path, bits: int, ids: list[int]) -> None:
    path = tmp_path / "mask.png"
    path.write_bytes(_grey_png(ids, bits))
    np.testing.assert_array_equal(read_mask(path, max_pixels=LIMIT), [ids])


@pytest.mark.parametrize("channel", [0, 1, 2])
@pytest.mark.parametrize("channels", [3, 4])
def test_colour_masks_are_refused_with_what_to_do(save: Callable[..., Path], channels: int, channel: int) -> None:
    pixels = np.full((4, 4, channels), 255, np.uint8)
    pixels[3, 2, channel] = 254
    with pytest.raises(FileProblem, match=r"colour masks are not index masks.*palette indices"):
        read_mask(save("mask.png", pixels), max_pixels=LIMIT)


@pytest.mark.parametrize(("suffix", "channels"), [(".webp", 3), (".webp", 4), (".png", 3), (".png", 4), (".png", 2)])
def test_grey_stored_as_colour_is_read_as_grey(save: Callable[..., Path], suffix: str, channels: int) -> None:
    pixels = np.repeat(IDS[:, :, None], channels, axis=2)
    if channels in (2, 4):
        pixels[:, :, -1] = 255
    options = {"lossless": True} if suffix == ".webp" else {}
    mask = read_mask(save(f"mask{suffix}", pixels, **options), max_pixels=LIMIT)
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, IDS)


@pytest.mark.parametrize("channels", [2, 4])
def test_transparent_pixels_of_masks_are_refused(save: Callable[..., Path], channels: int) -> None:
    pixels = np.zeros((4, 4, channels), np.uint8)
    pixels[1:, :, -1] = 255
    with pytest.raises(FileProblem, match="some pixels are transparent"):
        read_mask(save("mask.png", pixels), max_pixels=LIMIT)


def test_masks_of_fractions_are_refused(save: Callable[..., Path]) -> None:
    with pytest.raises(FileProblem, match="whole numbers"):
        read_mask(save("mask.tif", np.zeros((2, 2), np.float32)), max_pixels=LIMIT)


# --- values become targets


def test_values_as_they_are_keep_classes_and_ignored() -> None:
    target = rules().encode(np.array([[0, 1], [2, 255]], np.uint8))
    assert target.dtype == np.uint8
    np.testing.assert_array_equal(target, [[0, 1], [2, 255]])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32])
def test_label_map_is_followed_for_every_type(dtype: type) -> None:
    target = rules(mapping={10: 2, 20: 0, 30: 255}).encode(np.array([[10, 20], [30, 10]], dtype))
    assert target.dtype == np.uint8
    np.testing.assert_array_equal(target, [[2, 0], [255, 2]])


def test_label_map_accepts_names_numbers_and_ignore(data_config: Callable[..., DataConfig]) -> None:
    config = data_config(label_map={0: "background", 7: 1, 9: "dot", 255: "ignore"})
    target = LabelRules.from_config(config).encode(np.array([[0, 7, 9, 255]], np.uint8))
    np.testing.assert_array_equal(target, [[0, 1, 2, 255]])


def test_more_than_255_classes_are_int16_with_minus_one() -> None:
    many = rules(num_classes=300, ignore_index=-1, mapping={0: -1} | {raw: raw - 1 for raw in range(1, 301)})
    target = many.encode(np.array([[0, 1, 300]], np.uint16))
    assert target.dtype == np.int16
    np.testing.assert_array_equal(target, [[-1, 0, 299]])


def test_unknown_values_are_counted_and_named() -> None:
    raw = np.array([[0, 7, 7], [2, 9, 1]], np.uint8)
    with pytest.raises(DataError, match=r"7 \(2 pixels\), 9 \(1 pixels\).*data.label_map"):
        rules().encode(raw)


def test_a_value_missing_from_the_label_map_is_unknown_even_if_it_is_ignore_index() -> None:
    with pytest.raises(DataError, match=r"255 \(1 pixels\).*knows 0, 1"):
        rules(mapping={0: 0, 1: 1}).encode(np.array([[0, 255]], np.uint8))


def test_masks_of_0_and_255_get_the_map_to_write() -> None:
    with pytest.raises(DataError, match=r"data.label_map: \{0: class0, 255: class1\}"):
        rules(num_classes=2, ignore_index=254).encode(np.array([[0, 255]], np.uint8))


def test_masks_numbered_from_1_get_a_hint() -> None:
    with pytest.raises(DataError, match="numbered from 0"):
        rules().encode(np.array([[1, 2, 3]], np.uint8))


def test_negative_values_are_refused() -> None:
    with pytest.raises(DataError, match="from -1 to 3"):
        rules().encode(np.array([[-1, 3]], np.int32))


@settings(deadline=None, max_examples=50)
@given(st.data())
def test_counts_agree_with_the_encoded_target(data: st.DataObject) -> None:
    num_classes = data.draw(st.integers(2, 255))
    known = st.integers(0, num_classes - 1) | st.just(255)
    raw = np.array([data.draw(st.lists(known, min_size=1, max_size=60))], np.uint8)
    one = rules(num_classes=num_classes)
    target = one.encode(raw)
    expected = [int((target == number).sum()) for number in [*range(num_classes), 255]]
    assert one.count(histogram(raw)).tolist() == expected


def test_histogram_stays_exact_above_the_limit_of_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = np.random.default_rng(0).integers(0, 5, (50, 41), dtype=np.uint8)
    monkeypatch.setattr(masks, "CALC_HIST_LIMIT", 100)
    np.testing.assert_array_equal(histogram(raw), np.bincount(raw.ravel(), minlength=256))
    assert histogram(raw).dtype == np.int64


def test_histogram_counts_20_million_pixels_exactly() -> None:
    raw = np.zeros((1, 20_000_001), np.uint8)
    assert histogram(raw)[0] == 20_000_001


# --- images


def test_images_are_rgb(save: Callable[..., Path]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    for suffix in (".png", ".bmp", ".tif"):
        np.testing.assert_array_equal(read_image(save(f"image{suffix}", pixels), max_pixels=LIMIT), pixels)


@pytest.mark.parametrize("channels", [3, 1])
def test_sixteen_bit_images_are_never_cut(tmp_path: Path, channels: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 65536, (5, 7, channels), dtype=np.uint16)
    path = tmp_path / "image.png"
    cv2.imwrite(str(path), pixels[:, :, ::-1])
    image = read_image(path, in_channels=channels, max_pixels=LIMIT)
    assert image.dtype == np.uint16
    np.testing.assert_array_equal(image, pixels)


def test_grey_images_are_repeated_for_three_channels(save: Callable[..., Path]) -> None:
    path = save("image.png", IDS)
    np.testing.assert_array_equal(read_image(path, max_pixels=LIMIT), np.stack([IDS] * 3, axis=2))
    np.testing.assert_array_equal(read_image(path, in_channels=1, max_pixels=LIMIT), IDS[:, :, None])


def test_alpha_is_dropped(save: Callable[..., Path]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 4), dtype=np.uint8)
    np.testing.assert_array_equal(read_image(save("image.png", pixels), max_pixels=LIMIT), pixels[:, :, :3])
    grey = read_image(save("grey.png", pixels[:, :, :2]), in_channels=1, max_pixels=LIMIT)
    np.testing.assert_array_equal(grey, pixels[:, :, :1])


def test_colours_for_one_channel_are_refused(save: Callable[..., Path]) -> None:
    path = save("image.png", np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(FileProblem, match=r"colour image, but model\.in_channels is 1"):
        read_image(path, in_channels=1, max_pixels=LIMIT)


def test_images_of_fractions_are_refused(save: Callable[..., Path]) -> None:
    with pytest.raises(FileProblem, match="8 or 16 bits"):
        read_image(save("image.tif", np.zeros((4, 4), np.float32)), max_pixels=LIMIT)


def test_exif_rotation_is_not_applied(save: Callable[..., Path]) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = save("image.jpg", np.zeros((4, 9, 3), np.uint8), exif=exif)
    assert read_image(path, max_pixels=LIMIT).shape == (4, 9, 3)


def test_a_truncated_jpeg_is_refused_though_opencv_would_fill_it(save: Callable[..., Path]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = save("image.jpg", noise)
    path.write_bytes(path.read_bytes()[:3000])
    assert cv2.imread(str(path)) is not None
    with pytest.raises(FileProblem, match="truncated JPEG"):
        read_image(path, max_pixels=LIMIT)


def test_damaged_pixels_are_told(save: Callable[..., Path], capfd: pytest.CaptureFixture[str]) -> None:
    noise = np.random.default_rng(0).integers(0, 3, (64, 64), dtype=np.uint8)
    path = save("mask.png", noise)
    data = bytearray(path.read_bytes())
    data[60:400] = b"\x55" * 340
    path.write_bytes(data)
    with pytest.raises(FileProblem, match="cannot be decoded"):
        read_mask(path, max_pixels=LIMIT)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileProblem, match=r"nowhere.png: cannot be read \(No such file"):
        read_image(tmp_path / "nowhere.png", max_pixels=LIMIT)


@pytest.mark.parametrize("read", [read_image, read_mask])
def test_files_over_the_limit_are_refused_before_they_are_read(save: Callable[..., Path], read: Any) -> None:
    path = save("image.png", np.zeros((4, 4), np.uint8))
    os.truncate(path, 2**42)  # a hole: takes no space, and has no room in memory
    with pytest.raises(FileProblem, match=r"4x4 pixels are more than data\.max_pixels"):
        read(path, max_pixels=15)


def _grey_png(values: list[int], bits: int) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    joined = sum(value << (bits * (len(values) - 1 - place)) for place, value in enumerate(values))
    row = b"\0" + joined.to_bytes(len(values) * bits // 8, "big")
    header = struct.pack(">IIBBBBB", len(values), 1, bits, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (64, 96)])
@pytest.mark.parametrize("noisy", [False, True])
def test_values_are_counted_alike_in_long_runs_and_in_noise(dtype: Any, shape: tuple[int, int], noisy: bool) -> None:
    top = np.iinfo(dtype).max
    generator = np.random.default_rng(0)
    raw = generator.integers(0, top, shape, endpoint=True).astype(dtype)
    if not noisy:
        raw = np.sort(raw.ravel() % 3).reshape(shape).astype(dtype) * dtype(top // 2)
    counts = histogram(raw)
    assert (counts.dtype, counts.shape) == (np.int64, (top + 1,))
    values, numbers = np.unique(raw, return_counts=True)
    np.testing.assert_array_equal(np.flatnonzero(counts), values)
    np.testing.assert_array_equal(counts[values], numbers)


@pytest.mark.parametrize("strange", [3, 11, 200, 254])
def test_one_strange_pixel_is_found_beside_ignored_ones(data_config: Callable[..., DataConfig], strange: int) -> None:
    rules = LabelRules.from_config(data_config())
    raw = np.zeros((40, 50), np.uint8)
    raw[:, 30:] = 255
    rules.encode(raw)
    raw[17, 5] = strange
    with pytest.raises(DataError, match=rf"unknown mask values: {strange} \(1 pixels\)"):
        rules.encode(raw)


@pytest.mark.parametrize("moved", [{}, {5: 255}, {5: 4}, {5: 255, 9: 255}, {0: 255}])
def test_targets_are_those_of_the_label_map_whichever_way_they_are_found(moved: dict[int, int]) -> None:
    mapping = {value: value for value in range(10)} | {255: 255} | moved
    rules = LabelRules(num_classes=10, ignore_index=255, mapping=mapping, names=tuple("abcdefghij"))
    raw = np.array([[*range(10), 255]] * 3, np.uint8)
    assert rules.encode(raw).tolist() == [[mapping[value] for value in (*range(10), 255)]] * 3
    assert raw[0].tolist() == [*range(10), 255]
