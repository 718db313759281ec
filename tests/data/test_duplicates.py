"""Copies of an image are found however they were turned, flipped, recompressed or resized, and other images are not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from segtrain.data.duplicates import DEFAULT_THRESHOLD, connected, matches_between, matches_within
from segtrain.data.hashing import HASH_BYTES, NUM_ORIENTATIONS, hash_file, orientations, perceptual_hash
from segtrain.data.problems import FileProblem

MAX_PIXELS = 10**7
HANDLINGS: dict[str, Callable[[Any], Any]] = {
    "as it is": lambda image: image,
    "flipped": lambda image: image[:, ::-1],
    "upside down": lambda image: image[::-1],
    "turned by 90": lambda image: np.rot90(image),
    "turned by 180": lambda image: np.rot90(image, 2),
    "turned by 270": lambda image: np.rot90(image, 3),
    "transposed": lambda image: image.transpose(1, 0, 2),
    "transposed the other way": lambda image: np.rot90(image, 2).transpose(1, 0, 2),
    "halved": lambda image: cv2.resize(image, (image.shape[1] // 2, image.shape[0] // 2), interpolation=cv2.INTER_AREA),
    "enlarged": lambda image: cv2.resize(image, None, fx=1.5, fy=1.5, interpolation=cv2.INTER_CUBIC),
    "squeezed": lambda image: cv2.resize(image, (200, 100), interpolation=cv2.INTER_AREA),
    "brighter": lambda image: (image * 0.8 + 40).astype(np.uint8),
    "trimmed": lambda image: image[2:-2, 3:-3],
}


def scene(seed: int, size: tuple[int, int] = (192, 256)) -> Any:
    """Blobs of all sizes on a slope of light that all scenes share, uint8 [H, W, 3]."""
    generator = np.random.default_rng(seed)
    image = np.linspace(60, 160, size[0])[:, None, None] * np.ones((*size, 3))
    for cells in (4, 8, 16, 32):
        noise = generator.normal(0, 160 / cells, (cells, cells, 3))
        image += cv2.resize(noise, size[::-1], interpolation=cv2.INTER_CUBIC)
    return image.clip(0, 255).astype(np.uint8)


def stored(folder: Path, image: Any, *, quality: int) -> Any:
    path = folder / "image.jpg"
    Image.fromarray(np.ascontiguousarray(image)).save(path, quality=quality)
    return hash_file(path, max_pixels=MAX_PIXELS)


def of(image: Any) -> Any:
    found = perceptual_hash(cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY))
    assert found is not None
    return found


@pytest.mark.parametrize("handling", HANDLINGS)
@pytest.mark.parametrize("quality", [95, 40])
def test_a_copy_is_found_whatever_was_done_to_it(tmp_path: Path, handling: str, quality: int) -> None:
    originals = np.stack([of(scene(seed)) for seed in range(12)])
    copy = stored(tmp_path, HANDLINGS[handling](scene(7)), quality=quality)
    found = matches_between(originals, copy[None])
    assert found.first.tolist() == [7]


def test_a_copy_is_nothing_like_its_original_to_a_hash_that_is_not_turned() -> None:
    for handling in ("flipped", "turned by 90", "turned by 180", "transposed"):
        plain = np.bitwise_count(of(scene(3)) ^ of(HANDLINGS[handling](scene(3)))).sum()
        assert plain > 2 * DEFAULT_THRESHOLD, handling


def test_orientations_are_the_hashes_of_the_turned_images() -> None:
    image = scene(5, (160, 160))
    turned = [np.rot90(image, turn)[:, ::step] for turn in range(4) for step in (1, -1)]
    ways = orientations(of(image)[None])[:, 0]
    nearest = [np.bitwise_count(ways ^ of(one)).sum(axis=1) for one in turned]
    assert sorted(int(np.argmin(one)) for one in nearest) == list(range(NUM_ORIENTATIONS))
    assert max(int(one.min()) for one in nearest) <= 2  # coefficients near 0 may round to the other sign


def test_scenes_that_share_nothing_but_their_light_are_not_found() -> None:
    hashes = np.stack([of(scene(seed)) for seed in range(60)])
    assert len(matches_within(hashes)) == 0


def test_a_plain_image_has_no_hash_and_noise_under_a_grey_level_is_no_detail() -> None:
    plain = np.full((64, 64), 100, np.uint8)
    assert perceptual_hash(plain) is None
    assert perceptual_hash(plain + np.random.default_rng(0).integers(0, 2, (64, 64)).astype(np.uint8)) is None
    holes = scene(0)[:, :, 0].astype(np.float32)
    holes[5, 5] = np.nan
    assert perceptual_hash(holes) is None


def test_images_of_16_bits_are_hashed_with_all_their_bits(save: Callable[..., Path]) -> None:
    gray = cv2.cvtColor(scene(1), cv2.COLOR_RGB2GRAY)
    deep = save("deep.png", gray.astype(np.uint16))  # 8 bits of detail at the low end of 16
    found = hash_file(deep, max_pixels=MAX_PIXELS)
    assert found is not None
    assert np.bitwise_count(found ^ perceptual_hash(gray)).sum() == 0


def test_a_damaged_or_huge_file_is_refused(tmp_path: Path, save: Callable[..., Path]) -> None:
    path = save("image.png", scene(1))
    with pytest.raises(FileProblem, match=r"more than data\.max_pixels"):
        hash_file(path, max_pixels=100)
    path.write_bytes(path.read_bytes()[:60] + b"\0" * 200)
    with pytest.raises(FileProblem):
        hash_file(path, max_pixels=MAX_PIXELS)


def random_hashes(num: int, seed: int) -> Any:
    """Hashes as far apart as chance has it, some of them copies with 0 to 60 bits turned over, in any orientation."""
    generator = np.random.default_rng(seed)
    hashes = generator.integers(0, 256, (num, HASH_BYTES), dtype=np.uint8)
    hashes[num // 2 :] = hashes[generator.integers(0, num // 2, num - num // 2)]
    bits = np.unpackbits(hashes, axis=1)
    for row in bits[num // 2 :]:
        row[generator.choice(256, generator.integers(0, 60), replace=False)] ^= 1
    return orientations(np.packbits(bits, axis=1))[0]  # in which the four bits that mean nothing are 0


def by_hand(first: Any, second: Any, threshold: int) -> dict[tuple[int, int], int]:
    distance = np.bitwise_count(orientations(first)[:, :, None] ^ second[None, None]).sum(axis=3, dtype=int).min(axis=0)
    near = np.argwhere(distance <= threshold).tolist()
    return {(row, column): int(distance[row, column]) for row, column in near}


@pytest.mark.parametrize("buckets", [True, False])
@pytest.mark.parametrize("threshold", [0, 10, 24, 40])
@pytest.mark.parametrize("sizes", [(40, 90), (90, 40)])
def test_the_search_finds_exactly_the_pairs_within_the_threshold(
    monkeypatch: pytest.MonkeyPatch, buckets: bool, threshold: int, sizes: tuple[int, int]
) -> None:
    monkeypatch.setattr("segtrain.data.duplicates.COST_OF_BUCKETS", 0 if buckets else 10**9)
    monkeypatch.setattr("segtrain.data.duplicates.CHUNK", 50)  # so that several parts are needed
    monkeypatch.setattr("segtrain.data.duplicates.CHUNK_IN_CACHE", 500)
    hashes = random_hashes(sum(sizes), seed=threshold)
    generator = np.random.default_rng(1)
    turned = orientations(hashes)[generator.integers(0, NUM_ORIENTATIONS, len(hashes)), np.arange(len(hashes))]
    ours, theirs = turned[: sizes[0]], hashes[sizes[0] :]
    found = matches_between(ours, theirs, threshold=threshold)
    rows = zip(found.first.tolist(), found.second.tolist(), found.distance.tolist(), strict=True)
    pairs = {(first, second): distance for first, second, distance in rows}
    assert found.complete
    assert pairs == by_hand(ours, theirs, threshold)
    assert list(pairs) == sorted(pairs)
    assert threshold == 0 or len(pairs) > 5


def test_pairs_of_one_set_are_named_once_and_no_image_is_a_copy_of_itself() -> None:
    hashes = random_hashes(80, seed=2)
    found = matches_within(hashes, threshold=30)
    pairs = set(zip(found.first.tolist(), found.second.tolist(), strict=True))
    assert pairs == {(first, second) for first, second in by_hand(hashes, hashes, 30) if first < second}
    assert pairs


def test_a_search_that_finds_too_much_stops_and_says_so() -> None:
    alike = np.repeat(random_hashes(2, seed=0)[:1], 400, axis=0)
    found = matches_between(alike, alike, max_pairs=1000)
    assert not found.complete
    assert len(found) >= 1000


def test_nothing_matches_an_empty_set() -> None:
    none = np.zeros((0, HASH_BYTES), np.uint8)
    assert len(matches_between(none, random_hashes(5, seed=0))) == len(matches_within(none)) == 0


def test_groups_are_what_pairs_connect_however_long_the_chain() -> None:
    order = np.random.default_rng(0).permutation(50)
    chain = connected(60, order[:-1].astype(np.int64), order[1:].astype(np.int64))
    assert len(set(chain[:50].tolist())) == 1
    assert len(set(chain.tolist())) == 11
    two = connected(6, np.array([5, 1]), np.array([0, 2]))
    assert two.tolist() == [0, 1, 1, 2, 3, 0]


@pytest.mark.camvid
def test_frames_of_different_drives_are_not_taken_for_copies(camvid: Path) -> None:
    files = sorted(camvid.glob("images/*/*.jpg"))[::6]
    drives = np.array([path.name[:6] for path in files])
    hashes = np.stack([hash_file(path, max_pixels=MAX_PIXELS) for path in files])  # type: ignore[arg-type]
    found = matches_within(hashes, threshold=47)
    assert (drives[found.first] == drives[found.second]).all()
    assert len(set(drives.tolist())) == 4
