"""Images of any number of bands, of 8 and 16 bits, are read bit by bit, or it is said why they are not."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from segtrain.config.data import DataConfig
from segtrain.data import extras
from segtrain.data.frequencies import check_split
from segtrain.data.images import read_image
from segtrain.data.masks import read_mask
from segtrain.data.problems import FileProblem
from segtrain.data.sources import FilePairs
from segtrain.errors import ConfigError

Make = Callable[..., DataConfig]
LIMIT = 10**6
RNG = np.random.default_rng(0)


@pytest.fixture
def geotiff(tmp_path: Path) -> Callable[..., Path]:
    """Write bands [B, H, W] as GeoTIFF; further arguments go to GDAL."""
    rasterio = pytest.importorskip("rasterio", reason="the extra `geo` is not installed")

    def write(bands: Any, name: str = "image.tif", **options: Any) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        count, height, width = bands.shape
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
            shape = {"count": count, "height": height, "width": width}
            with rasterio.open(path, "w", driver="GTiff", dtype=bands.dtype, **shape, **options) as file:
                file.write(bands)
        return path

    return write


def noise(count: int, dtype: str, *, size: tuple[int, int] = (18, 33)) -> Any:
    return RNG.integers(0, np.iinfo(dtype).max, (count, *size), dtype=dtype, endpoint=True)


LAYOUTS: tuple[dict[str, Any], ...] = (
    {},
    {"interleave": "pixel", "compress": "deflate", "predictor": 2},
    {"tiled": True, "blockxsize": 16, "blockysize": 16, "BIGTIFF": "YES"},
)


@pytest.mark.parametrize("options", LAYOUTS, ids=["planes", "pixels", "tiles"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 12])
def test_all_bands_arrive_bit_by_bit(geotiff: Callable[..., Path], count: int, dtype: str, options: Any) -> None:
    bands = noise(count, dtype)
    image = read_image(geotiff(bands, **options), in_channels=count, max_pixels=LIMIT)
    assert image.dtype == bands.dtype
    np.testing.assert_array_equal(image, bands.transpose(1, 2, 0))


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("photometric", ["RGB", "MINISBLACK"])
def test_infrared_beside_colours_is_not_dropped_silently(
    geotiff: Callable[..., Path], photometric: str, dtype: str
) -> None:
    bands = noise(4, dtype)
    path = geotiff(bands, photometric=photometric, alpha="unspecified")
    with pytest.raises(FileProblem, match=r"4 bands, and model\.in_channels is 3: name those to use in data\.bands"):
        read_image(path, in_channels=3, max_pixels=LIMIT)
    chosen = read_image(path, in_channels=3, max_pixels=LIMIT, bands=(4, 1, 2))
    np.testing.assert_array_equal(chosen, bands[[3, 0, 1]].transpose(1, 2, 0))
    with pytest.raises(FileProblem, match=r"4 bands, and data\.bands names band 5"):
        read_image(path, in_channels=1, max_pixels=LIMIT, bands=(5,))


def test_two_bands_are_not_taken_for_grey(geotiff: Callable[..., Path]) -> None:
    with pytest.raises(FileProblem, match="2 bands"):
        read_image(geotiff(noise(2, "uint8")), in_channels=3, max_pixels=LIMIT)


def test_colours_behind_alpha_are_not_multiplied_by_it(tmp_path: Path) -> None:
    pixels = noise(4, "uint8").transpose(1, 2, 0).copy()
    for suffix in (".png", ".tif"):
        Image.fromarray(pixels).save(tmp_path / f"image{suffix}")
        np.testing.assert_array_equal(
            read_image(tmp_path / f"image{suffix}", in_channels=3, max_pixels=LIMIT), pixels[:, :, :3]
        )
        np.testing.assert_array_equal(read_image(tmp_path / f"image{suffix}", in_channels=4, max_pixels=LIMIT), pixels)


@pytest.mark.parametrize("mode", ["L", "LA", "RGB"])
def test_bands_of_ordinary_images_can_be_chosen(tmp_path: Path, mode: str) -> None:
    count = len(mode)
    pixels = noise(count, "uint8").transpose(1, 2, 0).copy()
    Image.fromarray(pixels.squeeze()).save(tmp_path / "image.png")
    chosen = read_image(tmp_path / "image.png", in_channels=2, max_pixels=LIMIT, bands=(count, 1))
    np.testing.assert_array_equal(chosen, pixels[:, :, [count - 1, 0]])


@pytest.mark.parametrize("dtype", ["int16", "uint32", "float32"])
@pytest.mark.parametrize("count", [1, 3, 5])
def test_pixels_that_are_not_8_or_16_bits_without_sign_are_refused(
    geotiff: Callable[..., Path], count: int, dtype: str
) -> None:
    path = geotiff(np.ones((count, 8, 9), dtype))
    with pytest.raises(FileProblem, match="8 or 16 bits without sign"):
        read_image(path, in_channels=count, max_pixels=LIMIT)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_ids_in_a_geotiff_are_read_unchanged(geotiff: Callable[..., Path], dtype: str) -> None:
    ids = noise(1, dtype)
    for options in LAYOUTS:
        np.testing.assert_array_equal(read_mask(geotiff(ids, **options), max_pixels=LIMIT), ids[0])


@pytest.mark.parametrize(
    ("count", "options", "message"),
    [
        (2, {}, "2 bands: a mask has one"),
        (1, {"photometric": "MINISWHITE"}, "white is 0"),
        (3, {"photometric": "YCBCR", "compress": "jpeg", "interleave": "pixel"}, "TIFF changes the values"),
    ],
)
def test_masks_whose_numbers_are_not_sure_are_refused(
    geotiff: Callable[..., Path], count: int, options: Any, message: str
) -> None:
    with pytest.raises(FileProblem, match=message):
        read_mask(geotiff(noise(count, "uint8"), **options), max_pixels=LIMIT)


def test_overviews_are_no_further_images_but_pages_are(geotiff: Callable[..., Path], tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio")
    bands = noise(1, "uint8", size=(64, 64))
    path = geotiff(bands)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(path, "r+") as file:
            file.build_overviews([2, 4])
    np.testing.assert_array_equal(read_mask(path, max_pixels=LIMIT), bands[0])
    pages = [Image.fromarray(np.full((4, 4), value, np.uint8)) for value in range(3)]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    for read in (read_mask, read_image):
        with pytest.raises(FileProblem, match="the TIFF holds 3 images, of which one would be read"):
            read(tmp_path / "pages.tif", max_pixels=LIMIT)


def test_more_bands_without_rasterio_are_told(geotiff: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path = geotiff(noise(5, "uint8"))

    def absent(name: str) -> None:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(extras.importlib, "import_module", absent)
    with pytest.raises(ConfigError, match=r"image\.tif has 5 bands, which takes rasterio .*its extra geo"):
        read_image(path, in_channels=5, max_pixels=LIMIT)


def test_a_cut_geotiff_is_told(geotiff: Callable[..., Path]) -> None:
    path = geotiff(noise(5, "uint16"))
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(FileProblem, match="truncated TIFF"):
        read_image(path, in_channels=5, max_pixels=LIMIT)


def test_the_configuration_chooses_the_bands_for_scan_and_training(
    data_config: Make, geotiff: Callable[..., Path], save: Callable[..., Path]
) -> None:
    bands = noise(6, "uint16", size=(4, 5))
    geotiff(bands, "images/train/a.tif")
    save("masks/train/a.png", np.zeros((4, 5), np.uint8))
    normalize = {"mean": [0.5, 0.5], "std": [0.2, 0.2]}
    config = data_config(bands=[6, 2], normalize=normalize)
    samples = check_split(config, "train", cache=False, show_progress=False).samples
    image, _ = FilePairs(samples, config, split="train").read(0)
    np.testing.assert_array_equal(image, bands[[5, 1]].transpose(1, 2, 0))
    with pytest.raises(ValidationError, match="bands names 3 bands, and normalize has 2 channels"):
        data_config(bands=[1, 2, 3], normalize=normalize)
