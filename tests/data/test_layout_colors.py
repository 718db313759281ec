"""Masks of colours: a table or CVAT's labelmap.txt says what each means, and no other colour passes for a class."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from segtrain.config.data import DataConfig
from segtrain.data.formats import find_samples
from segtrain.data.frequencies import check_split
from segtrain.data.sources import FilePairs
from segtrain.errors import DataError

Make = Callable[..., DataConfig]
Save = Callable[..., Path]
Targets = Callable[..., dict[str, Any]]

TABLE = {"background": [0, 0, 0], "block": [[128, 64, 0], [128, 64, 1]], "dot": [0, 64, 128], "ignore": [255, 255, 255]}
PIXELS = np.array([[[0, 0, 0], [128, 64, 0], [128, 64, 1]], [[0, 64, 128], [255, 255, 255], [0, 0, 0]]], np.uint8)
EXPECTED = [[0, 1, 1], [2, 255, 0]]


def as_palette(pixels: Any) -> Image.Image:
    """The same colours through a palette, whose indices are no class numbers."""
    colors, indices = np.unique(pixels.reshape(-1, 3), axis=0, return_inverse=True)
    image = Image.frombytes("P", (pixels.shape[1], pixels.shape[0]), indices.astype(np.uint8).tobytes())
    image.putpalette(colors.astype(np.uint8).ravel().tolist())
    return image


def with_alpha(pixels: Any, alpha: int) -> Any:
    return np.dstack([pixels, np.full(pixels.shape[:2], alpha, np.uint8)])


@pytest.fixture
def one(data_config: Make, save: Save) -> Callable[..., DataConfig]:
    """One pair whose mask is given, and the data section with the table of colours."""

    def make(mask: Any, *, suffix: str = ".png", **changes: Any) -> DataConfig:
        path = save(f"masks/train/a{suffix}", mask)
        with Image.open(path) as image:
            save("images/train/a.png", np.zeros((image.height, image.width, 3), np.uint8))
        return data_config(**{"colors": TABLE} | changes)

    return make


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif"])
@pytest.mark.parametrize("kind", ["rgb", "palette", "rgba"])
def test_colours_become_their_classes_however_they_are_stored(
    one: Make, targets_of: Targets, kind: str, suffix: str
) -> None:
    mask = {"rgb": PIXELS, "palette": as_palette(PIXELS), "rgba": with_alpha(PIXELS, 255)}[kind]
    assert targets_of(one(mask, suffix=suffix))["a"].tolist() == EXPECTED


def test_unknown_colours_are_errors_that_list_them_with_how_often(one: Make) -> None:
    pixels = PIXELS.copy()
    pixels[0, 0], pixels[1, 2], pixels[1, 1] = (1, 0, 0), (1, 0, 0), (64, 128, 0)
    message = r"unknown mask colours: \[1, 0, 0\] \(2 pixels\), \[64, 128, 0\] \(1 pixels\); name them in data\.colors"
    with pytest.raises(DataError, match=message):
        check_split(one(pixels), "train", cache=False, show_progress=False)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (with_alpha(PIXELS, 254), "some pixels are transparent"),
        (np.zeros((2, 3), np.uint16), "a mask of colours is RGB or has a palette, with 8 bits"),
    ],
)
def test_masks_that_hold_no_plain_colours_are_refused(one: Make, mask: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        check_split(one(mask), "train", cache=False, show_progress=False)


def test_colours_that_jpeg_changed_are_refused_with_the_reason(one: Make) -> None:
    noise = np.random.default_rng(0).integers(0, 2, (16, 16))
    mask = np.array([TABLE["background"], TABLE["dot"]], np.uint8)[noise]
    with pytest.raises(DataError, match="JPEG"):
        check_split(one(mask, suffix=".jpg"), "train", cache=False, show_progress=False)


def test_white_and_black_that_are_classes_and_ignored_do_not_look_like_an_unmapped_binary_mask(
    one: Make, targets_of: Targets
) -> None:
    mask = np.array([[0, 255]], np.uint8)
    config = one(mask, classes=["road", "sky"], colors={"road": [0, 0, 0], "sky": [1, 1, 1], "ignore": [255, 255, 255]})
    assert targets_of(config)["a"].tolist() == [[0, 255]]
    assert check_split(config, "train", cache=False, show_progress=False).counts.tolist() == [[1, 0, 1]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"colors": {"background": [0, 0, 0], "block": [[0, 0, 0]]}},
            r"\[0, 0, 0\] stands for both background and block",
        ),
        ({"colors": {"blok": [0, 0, 0]}}, r"colors\[blok\]: 'blok' is not a class"),
        ({"colors": {"dot": [0, 0, 256]}}, "less than or equal to 255"),
        ({"label_map": {0: 0}}, "either colours .colors. or numbers .label_map."),
        ({"layout": "ade20k"}, "colors: belongs to layout"),
    ],
)
def test_tables_that_contradict_themselves_are_refused(
    data_config: Make, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        data_config(**{"colors": TABLE} | changes)


def test_another_table_is_another_scan(one: Make) -> None:
    config = one(PIXELS)
    assert check_split(config, "train", show_progress=False).counts.tolist() == [[2, 2, 1, 1]]
    swapped = TABLE | {"dot": TABLE["background"], "background": TABLE["dot"]}
    again = one(PIXELS, colors=swapped)
    assert check_split(again, "train", show_progress=False).counts.tolist() == [[1, 2, 2, 1]]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from([*range(4), 4, 5]), min_size=1, max_size=12))
def test_any_mask_of_colours_is_exact_or_an_error(one: Make, targets_of: Targets, choice: list[int]) -> None:
    colors = np.array([[0, 0, 0], [128, 64, 0], [0, 64, 128], [255, 255, 255], [128, 64, 2], [64, 128, 0]], np.uint8)
    config = one(colors[[choice]])
    if max(choice) > 3:
        with pytest.raises(DataError, match="unknown mask colours"):
            targets_of(config)
    else:
        assert targets_of(config)["a"].tolist() == [[[0, 1, 2, 255][place] for place in choice]]


def test_a_single_class_and_none_of_it_can_be_colours(one: Make) -> None:
    mask = np.array([[[0, 0, 0], [255, 0, 0], [1, 1, 1]]], np.uint8)
    config = one(mask, classes=["crack"], colors={"none": [0, 0, 0], "crack": [255, 0, 0], "ignore": [1, 1, 1]})
    samples = check_split(config, "train", cache=False, show_progress=False).samples
    _, target = FilePairs(samples, config, split="train").read(0)
    assert target.tolist() == [[[0, 1, 255]]]


# --- CVAT

LABEL_MAP = (
    "# label:color_rgb:parts:actions\nbackground:0,0,0::\nblock:128,64,0::\ndot:0,64,128::\nignored:255,255,255::\n"
)
CVAT_PIXELS = np.array([[[0, 0, 0], [128, 64, 0], [0, 64, 128], [255, 255, 255]]], np.uint8)


@pytest.fixture
def cvat(data_config: Make, save: Save, tmp_path: Path) -> Callable[..., DataConfig]:
    """The contents of a zip that CVAT exports as "Segmentation mask 1.1", with images."""

    def make(mask: Any = CVAT_PIXELS, *, labels: str = LABEL_MAP, **changes: Any) -> DataConfig:
        save("SegmentationClass/cam/frame_000000.png", mask)
        save("JPEGImages/cam/frame_000000.jpg", np.zeros((1, 4, 3), np.uint8))
        (tmp_path / "labelmap.txt").write_text(labels)
        (tmp_path / "ImageSets/Segmentation").mkdir(parents=True, exist_ok=True)
        (tmp_path / "ImageSets/Segmentation/default.txt").write_text("cam/frame_000000\n")
        values = {"layout": "cvat", "splits": {"train": "default", "val": "default"}, "name_map": {"ignored": "ignore"}}
        return data_config(**values | changes)

    return make


@pytest.mark.parametrize("mask", [CVAT_PIXELS, as_palette(CVAT_PIXELS)], ids=["rgb", "palette"])
def test_colours_of_cvat_become_the_classes_that_labelmap_names(cvat: Make, targets_of: Targets, mask: Any) -> None:
    assert targets_of(cvat(mask))["cam/frame_000000"].tolist() == [[0, 1, 2, 255]]


def test_order_of_the_classes_is_that_of_the_configuration(cvat: Make, targets_of: Targets) -> None:
    config = cvat(classes=["dot", "background", "block"])
    assert targets_of(config)["cam/frame_000000"].tolist() == [[1, 2, 0, 255]]


def test_labels_of_cvat_that_are_no_class_are_named(cvat: Make) -> None:
    with pytest.raises(
        DataError, match=r"labelmap\.txt has labels that are no class: ignored\. .*name_map: {ignored: ignore}"
    ):
        check_split(cvat(name_map={}), "train", cache=False, show_progress=False)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (LABEL_MAP + "car:1,2::\n", r"lines that do not fit: 1\n  line 6: 'car:1,2::'"),
        (LABEL_MAP + "car:0,0,256::\n", r"line 6"),
        (LABEL_MAP + "car:0,0,0::\n", "line 6: car has the colour of background"),
        ("", "lines that do not fit: 0"),
    ],
)
def test_a_labelmap_that_does_not_fit_is_told(cvat: Make, labels: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        check_split(cvat(labels=labels), "train", cache=False, show_progress=False)


def test_a_changed_labelmap_is_another_scan(cvat: Make) -> None:
    assert check_split(cvat(), "train", show_progress=False).counts.tolist() == [[1, 1, 1, 1]]
    swapped = LABEL_MAP.replace("dot:0,64,128", "ignored:0,64,128")
    assert check_split(cvat(labels=swapped), "train", show_progress=False).counts.tolist() == [[1, 1, 0, 2]]


def test_a_missing_labelmap_is_told(cvat: Make, tmp_path: Path) -> None:
    config = cvat()
    (tmp_path / "labelmap.txt").unlink()
    assert len(find_samples(config, "train").samples) == 1
    with pytest.raises(DataError, match=r"the colours of the labels .*labelmap\.txt cannot be read"):
        check_split(config, "train", cache=False, show_progress=False)
