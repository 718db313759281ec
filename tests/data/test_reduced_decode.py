"""data.decode: reduced gives nearly the images of the exact way, of JPEG files alone, and never too few pixels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from segtrain.config.data import DataConfig
from segtrain.data import pair_cache
from segtrain.data.dataset import EvalDataset, TrainDataset
from segtrain.data.formats import Sample
from segtrain.data.pair_cache import CachedPairs, with_cache
from segtrain.data.sources import FilePairs

HEIGHT, WIDTH = 136, 200
STEPS = [{"name": "crop", "size": [24, 32]}, {"name": "horizontal_flip"}]


@pytest.fixture
def picture() -> NDArray[np.uint8]:
    """Soft shapes of all brightnesses and a hard edge, [136, 200, 3]."""
    noise = np.random.default_rng(0).integers(0, 256, (8, 11, 3), np.uint8)
    soft = cv2.resize(noise, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    soft[40:90, 60:130] = (220, 30, 60)
    return np.asarray(soft, np.uint8)


@pytest.fixture
def files(data_config: Callable[..., DataConfig], tmp_path: Path, picture: NDArray[np.uint8]) -> Callable[..., Any]:
    """One pair under data sections of these changes; `mode` and `suffix` are those of its image."""

    def make(*, mode: str = "RGB", suffix: str = ".jpg", exif: Image.Exif | None = None, **changes: Any) -> FilePairs:
        image, mask = tmp_path / f"a{suffix}", tmp_path / "mask.png"
        options: dict[str, Any] = {"quality": 95, "exif": exif} if suffix == ".jpg" and exif else {}
        Image.fromarray(picture).convert(mode).save(image, **options)
        classes = (np.arange(HEIGHT)[:, None] // 40 + np.arange(WIDTH) // 70) % 3
        Image.fromarray(classes.astype(np.uint8)).save(mask)
        data = data_config(**{"decode": "reduced", "input_size": [30, 40], "train_transforms": STEPS} | changes)
        return FilePairs([Sample(name="a", image=image, mask=mask)], data, split="train")

    return make


def test_the_reduced_way_wants_a_size(data_config: Callable[..., DataConfig]) -> None:
    with pytest.raises(ValueError, match="decode: reduced goes by input_size"):
        data_config(decode="reduced")


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((69, 100), (136, 200)),
        ((68, 101), (136, 200)),
        ((68, 100), (68, 100)),
        ((34, 51), (68, 100)),
        ((34, 50), (34, 50)),
        ((17, 25), (17, 25)),
        ((2, 2), (17, 25)),
        ((2, 100), (68, 100)),
    ],
)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_the_smallest_size_with_enough_pixels_is_decoded(
    files: Callable[..., Any], size: tuple[int, int], expected: tuple[int, int], mode: str
) -> None:
    image, target = files(mode=mode, input_size=list(size)).read(0)
    assert image.shape == (*expected, 3)
    assert target.shape == (HEIGHT, WIDTH)


@pytest.mark.parametrize(
    ("size", "mean"), [((68, 100), 1.5), ((34, 50), 1.5), ((17, 25), 1.5), ((66, 98), 3.0), ((30, 40), 3.0)]
)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_pixels_differ_by_no_more_than_is_stated(
    files: Callable[..., Any], size: tuple[int, int], mean: float, mode: str
) -> None:
    both = [files(mode=mode, input_size=list(size), decode=decode) for decode in ("reduced", "exact")]
    reduced, exact = (EvalDataset(pairs, pairs.data)[0] for pairs in both)
    difference = reduced["image"].float() - exact["image"].float()
    assert difference.abs().mean() < mean
    assert difference.mean().abs() < 0.5
    assert reduced["target"].equal(exact["target"])


def test_training_gets_the_same_targets_and_draws(files: Callable[..., Any]) -> None:
    both = [files(decode=decode) for decode in ("reduced", "exact")]
    reduced, exact = (TrainDataset(pairs, pairs.data)[0, 7] for pairs in both)
    assert reduced["target"].equal(exact["target"])
    assert reduced["image"].shape == exact["image"].shape
    assert (reduced["image"].float() - exact["image"].float()).abs().mean() < 2


def test_other_files_and_chosen_bands_are_read_as_ever(files: Callable[..., Any]) -> None:
    for options in ({"suffix": ".png"}, {"bands": [3, 2, 1]}):
        reduced, exact = (files(decode=decode, **options).read(0)[0] for decode in ("reduced", "exact"))
        assert np.array_equal(reduced, exact)


@pytest.mark.parametrize(
    ("shape", "decoded"), [((133, 202), (133, 202)), ((134, 198), (67, 99)), ((136, 204), (34, 51))]
)
def test_no_size_is_rounded_which_would_move_the_image_against_its_target(
    files: Callable[..., Any], tmp_path: Path, shape: tuple[int, int], decoded: tuple[int, int]
) -> None:
    pairs = files()
    Image.fromarray(np.zeros((*shape, 3), np.uint8)).save(tmp_path / "a.jpg")
    Image.fromarray(np.zeros(shape, np.uint8)).save(tmp_path / "mask.png")
    assert pairs.read(0)[0].shape[:2] == decoded


def test_exif_does_not_turn_the_image(files: Callable[..., Any]) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert files(exif=exif).read(0)[0].shape == (34, 50, 3)


def test_the_cache_keeps_the_reduced_images_apart_from_others(
    files: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pair_cache, "SHARED_MEMORY", tmp_path)
    found = {}
    for changes in ({"decode": "exact"}, {}, {"input_size": [60, 80]}):
        pairs = files(cache="disk", **changes)
        kept = with_cache(pairs, pairs.data, tell=lambda text: None)
        assert isinstance(kept, CachedPairs)
        assert np.array_equal(kept.read(0)[0], pairs.read(0)[0])
        found[str(changes)] = kept.read(0)[0].shape
    assert len(set(found.values())) == 3
