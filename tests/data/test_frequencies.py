"""Counts are exact, the cache is never wrong, and every kind of bad file is found before training."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import platformdirs
import pytest
import torch
from PIL import Image

from segtrain.config.data import DataConfig
from segtrain.data import ClassFrequencies, check_split, scan_frequencies
from segtrain.errors import DataError

Make = Callable[..., DataConfig]
Pair = Callable[..., tuple[Path, Path]]
MASK = np.array([[0, 0, 1], [2, 0, 255]], np.uint8)
OTHER = np.array([[0, 0, 0], [1, 1, 0]], np.uint8)


@pytest.fixture
def users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "users_cache"
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda name: folder / name)
    return folder


def quiet(data: DataConfig, **options: bool | int) -> ClassFrequencies:
    return scan_frequencies(data, show_progress=False, **options)


# --- numbers


def test_counts_of_pixels_and_images(data_config: Make, pair: Pair) -> None:
    pair("a", MASK), pair("b", OTHER)
    frequencies = quiet(data_config())
    assert frequencies.pixels.tolist() == [7, 3, 1]
    assert frequencies.images.tolist() == [2, 2, 1]
    assert frequencies.image_pixels.tolist() == [11, 11, 5]
    assert (frequencies.ignored, frequencies.num_images) == (1, 2)
    assert frequencies.pixels.dtype == np.int64
    np.testing.assert_allclose(frequencies.share, np.array([7, 3, 1]) / 11)
    assert frequencies.imbalance_ratio == 7
    assert frequencies.ignored_share == 1 / 12


def test_counts_do_not_depend_on_the_number_of_workers(data_config: Make, pair: Pair) -> None:
    generator = np.random.default_rng(0)
    for number in range(20):
        pair(f"{number:02}", generator.integers(0, 3, (8, 9)))
    alone, together = (check_split(data_config(), "train", workers=workers, cache=False) for workers in (1, 4))
    assert alone.names == together.names == sorted(alone.names)
    np.testing.assert_array_equal(alone.counts, together.counts)


def test_from_targets_agrees_with_the_scan_and_refuses_other_labels(data_config: Make, pair: Pair) -> None:
    pair("a", MASK), pair("b", OTHER)
    for targets in ([MASK, OTHER], [torch.from_numpy(MASK), torch.from_numpy(OTHER).long()]):
        assert ClassFrequencies.from_targets(targets, 3, ignore_index=255).to_dict() == quiet(data_config()).to_dict()
    with pytest.raises(DataError, match="run from 0 to 2; expected 0 to 1"):
        ClassFrequencies.from_targets([MASK], 2, ignore_index=255)
    with pytest.raises(DataError, match="run from -1 to 2"):
        ClassFrequencies.from_targets([MASK.astype(np.int16) - (MASK == 1) * 2], 3, ignore_index=255)


def test_sums_stay_exact_above_the_range_of_float32_and_int32() -> None:
    counts = np.array([[20_000_001, 3_000_000_001, 0, 7]] * 2, np.int64)
    frequencies = ClassFrequencies.from_counts(counts)
    assert frequencies.pixels.tolist() == [40_000_002, 6_000_000_002, 0]
    assert frequencies.image_pixels.tolist() == [6_040_000_004, 6_040_000_004, 0]
    assert frequencies.imbalance_ratio == pytest.approx(6_000_000_002 / 40_000_002)  # absent classes do not count


def test_frequencies_survive_a_checkpoint() -> None:
    frequencies = ClassFrequencies.from_targets([MASK, OTHER], 3, ignore_index=255)
    again = ClassFrequencies.from_dict(frequencies.to_dict())
    assert again.to_dict() == frequencies.to_dict()
    assert again.image_pixels.dtype == np.int64


# --- cache


def test_a_second_scan_reads_nothing_and_a_changed_mask_only_itself(data_config: Make, pair: Pair) -> None:
    pair("a", MASK), pair("b", OTHER)
    first = check_split(data_config(), "train", show_progress=False)
    second = check_split(data_config(), "train", show_progress=False)
    assert (first.num_read, second.num_read) == (2, 0)
    np.testing.assert_array_equal(first.counts, second.counts)
    pair("b", np.full((2, 3), 2))
    third = check_split(data_config(), "train", show_progress=False)
    assert third.num_read == 1
    assert third.frequencies.pixels.tolist() == [3, 1, 7]


def test_added_removed_and_touched_samples_are_noticed(data_config: Make, pair: Pair) -> None:
    image, mask = pair("a", MASK)
    pair("b", OTHER)
    quiet(data_config())
    image.unlink(), mask.unlink()
    pair("c", MASK)
    assert check_split(data_config(), "train", show_progress=False).names == ["b", "c"]
    os.utime(pair("b", OTHER)[0], ns=(1, 1))
    assert check_split(data_config(), "train", show_progress=False).num_read == 1


def test_other_rules_never_use_old_counts(data_config: Make, pair: Pair) -> None:
    pair("a", MASK)
    quiet(data_config())
    changes = [
        {"label_map": {0: "dot", 1: 1, 2: 0, 255: "ignore"}},
        {"classes": ["background", "block", "dot", "more"]},
        {"max_pixels": 1000},
        {"label_map": {0: 0, 1: 1, 2: "ignore", 255: "ignore"}},
    ]
    for change in changes:
        assert check_split(data_config(**change), "train", show_progress=False).num_read == 1
        assert check_split(data_config(**change), "train", show_progress=False).num_read == 0


def test_verify_notices_what_size_and_time_hide(data_config: Make, pair: Pair) -> None:
    image, mask = pair("a", MASK)
    quiet(data_config())
    before = mask.stat()
    image_before = image.stat()
    pair("a", [[0, 2, 1], [2, 0, 255]])
    assert mask.stat().st_size == before.st_size
    os.utime(mask, ns=(before.st_atime_ns, before.st_mtime_ns))
    os.utime(image, ns=(image_before.st_atime_ns, image_before.st_mtime_ns))
    assert quiet(data_config()).pixels.tolist() == [3, 1, 1]
    assert quiet(data_config(), verify=True).pixels.tolist() == [2, 1, 2]
    assert quiet(data_config()).pixels.tolist() == [2, 1, 2]  # and remembers


@pytest.mark.parametrize("fill", [b"\0", b"\x55"])
def test_damage_in_the_middle_of_an_image_is_found_by_the_first_scan(
    data_config: Make, pair: Pair, fill: bytes
) -> None:
    generator = np.random.default_rng(0)
    pair("good", generator.integers(0, 3, (64, 64)))
    image = pair("a", generator.integers(0, 3, (64, 64)))[0]
    content = bytearray(image.read_bytes())
    content[100:3000] = fill * 2900
    image.write_bytes(content)
    with pytest.raises(DataError, match=r"a\..*: the pixels cannot be decoded"):
        quiet(data_config())
    for _ in range(2):  # what is cached are the good ones
        assert check_split(data_config(on_bad="skip"), "train", show_progress=False).names == ["good"]


@pytest.mark.parametrize("content", [b"", b"rubbish", b"PK\x03\x04 half a zip"])
def test_a_damaged_cache_is_rebuilt(data_config: Make, pair: Pair, tmp_path: Path, content: bytes) -> None:
    pair("a", MASK)
    quiet(data_config())
    (cache,) = (tmp_path / ".segtrain").iterdir()
    cache.write_bytes(content)
    assert check_split(data_config(), "train", show_progress=False).num_read == 1
    assert check_split(data_config(), "train", show_progress=False).num_read == 0


def test_a_cache_of_the_wrong_shape_is_rebuilt(data_config: Make, pair: Pair, tmp_path: Path) -> None:
    pair("a", MASK)
    quiet(data_config())
    (cache,) = (tmp_path / ".segtrain").iterdir()
    with np.load(cache) as arrays:
        content = dict(arrays)
    np.savez(cache, **(content | {"counts": content["counts"][:, :-1]}))
    assert quiet(data_config()).pixels.tolist() == [3, 1, 1]


def test_read_only_data_are_cached_for_the_user(
    data_config: Make, pair: Pair, tmp_path: Path, users_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair("a", MASK)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    (tmp_path / ".segtrain").write_text("no folder can be made here")
    assert check_split(data_config(), "train", show_progress=False).num_read == 1
    assert list(users_cache.rglob("*.npz"))
    assert check_split(data_config(), "train", show_progress=False).num_read == 0


def test_no_cache_leaves_no_trace(data_config: Make, pair: Pair, tmp_path: Path) -> None:
    pair("a", MASK)
    quiet(data_config(), cache=False)
    assert not (tmp_path / ".segtrain").exists()


# --- bad files


def test_every_kind_of_bad_file_is_listed_with_its_reason(data_config: Make, pair: Pair) -> None:
    pair("good", MASK)
    reasons = _spoil(pair)
    with pytest.raises(DataError) as caught:
        quiet(data_config())
    message = str(caught.value)
    assert f"{len(reasons)} bad files in split 'train'" in message
    for name, reason in reasons.items():
        line = next(line for line in message.splitlines() if f"/{name}." in line.split(": ")[0])
        assert reason in line
    result = check_split(data_config(on_bad="skip"), "train", show_progress=False)
    assert result.names == ["good"]
    assert len(result.problems) == len(reasons)
    assert result.frequencies.num_images == 1
    assert check_split(data_config(on_bad="skip"), "train", show_progress=False).num_read == len(reasons) - 1


def test_skip_with_nothing_left_is_an_error(data_config: Make, pair: Pair) -> None:
    pair("a", np.full((2, 3), 9))
    with pytest.raises(DataError, match="nothing is left to use"):
        quiet(data_config(on_bad="skip"))


def test_a_bomb_is_found_by_its_header(data_config: Make, pair: Pair) -> None:
    pair("a", MASK)
    with pytest.raises(DataError, match=r"3x2 pixels are more than data\.max_pixels: 5"):
        quiet(data_config(max_pixels=5))


def test_masks_of_0_and_255_throughout_are_never_guessed(data_config: Make, pair: Pair) -> None:
    pair("a", [[0, 255]]), pair("b", [[0, 0]])
    cracks = {"classes": ["background", "crack"]}
    with pytest.raises(DataError, match=r"\{0: background, 255: crack\}.*\{0: background, 255: ignore\}"):
        quiet(data_config(**cracks))
    assert quiet(data_config(**cracks, label_map={0: 0, 255: "crack"})).pixels.tolist() == [3, 1]
    assert quiet(data_config(**cracks, label_map={0: 0, 255: "ignore"})).ignored == 1


def test_ignored_borders_are_no_second_class(data_config: Make, pair: Pair) -> None:
    pair("a", [[0, 1, 255]])
    pair("b", [[0, 0, 255]], split="val")
    cracks = data_config(classes=["background", "crack"])
    assert check_split(cracks, "train", cache=False, show_progress=False).frequencies.pixels.tolist() == [1, 1]
    assert check_split(cracks, "val", cache=False, show_progress=False).frequencies.ignored == 1


def test_among_several_classes_255_is_what_ignore_index_says(data_config: Make, pair: Pair) -> None:
    pair("a", [[0, 0, 255]])
    assert quiet(data_config()).ignored == 1


@pytest.mark.camvid
def test_camvid_counts_are_those_of_its_readme(camvid: Path, data_config: Make) -> None:
    names = ["sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist"]
    frequencies = quiet(data_config(root=str(camvid), classes=names, ignore_index=11), cache=False)
    total = frequencies.pixels.sum() + frequencies.ignored
    percents = (100 * frequencies.pixels / total).round(2)
    assert percents.tolist() == [16.85, 23.26, 0.98, 31.66, 4.49, 9.72, 1.17, 1.13, 5.87, 0.64, 0.29]
    assert round(100 * frequencies.ignored_share, 2) == 3.95
    assert frequencies.num_images == 367


def _spoil(pair: Pair) -> dict[str, str]:
    """One bad sample of each kind; returns the reason expected for each name."""
    pair("unknown_label", [[0, 7, 7]])
    pair("size_mismatch", MASK, image_size=(5, 4))
    pair("missing_mask", MASK)[1].unlink()
    pair("empty_image", MASK)[0].write_bytes(b"")
    pair("empty_mask", MASK)[1].write_bytes(b"")
    pair("corrupt", MASK)[0].write_bytes(b"\x89PNG\r\n\x1a\n" + b"rubbish" * 20)
    pair("text", MASK)[0].write_text("I am no image, but say so in my name")
    noise = np.random.default_rng(0).integers(0, 3, (64, 64), dtype=np.uint8)
    cut = pair("truncated", noise, image_suffix=".jpg")[0]
    cut.write_bytes(cut.read_bytes()[:-200])
    cut_mask = pair("truncated_mask", noise)[1]
    cut_mask.write_bytes(cut_mask.read_bytes()[:-40])
    misnamed = pair("wrong_extension", MASK)[0]
    Image.new("RGB", (3, 2)).save(misnamed, "JPEG")
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.new("RGB", (3, 2)).save(pair("rotated", MASK, image_suffix=".jpg")[0], exif=exif)
    Image.new("RGB", (3, 2), "red").save(pair("colours", MASK)[1])
    return {
        "unknown_label": "unknown mask values: 7 (2 pixels)",
        "size_mismatch": "the mask is 3x2, its image 4x5",
        "missing_mask": "no mask: expected",
        "empty_image": "the file is empty",
        "empty_mask": "the file is empty",
        "corrupt": "unreadable PNG",
        "text": "not a PNG, JPEG, TIFF, WebP or BMP image",
        "truncated": "truncated JPEG",
        "truncated_mask": "truncated PNG",
        "wrong_extension": "the name ends in .png, but the file is JPEG",
        "rotated": "EXIF orientation 3",
        "colours": "colour masks are not index masks",
    }
