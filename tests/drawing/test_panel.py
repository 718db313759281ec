"""Panels that show thin objects, at any size of image, with legends that fit."""

from __future__ import annotations

import numpy as np
import pytest

from segtrain.drawing import ERROR_COLORS, palette, panel, shorten
from segtrain.drawing.panel import LARGEST_SIDE, LegendEntry, legend
from segtrain.drawing.text import shorten_to_width, text_width

NAMES = ("ground", "crack", "<b>stain & more</b>")


def draw(height: int, width: int, *, image: np.ndarray | None = None, caption: str = "frame") -> np.ndarray:
    target, prediction = np.zeros((2, height, width), np.uint8)
    target[:, width // 2] = 1
    picture = np.zeros((height, width, 3), np.uint8) if image is None else image
    return panel(picture, target, prediction, colors=palette(3), class_names=NAMES, classes=[1], caption=caption)


def pixels_of(picture: np.ndarray, color: tuple[int, int, int]) -> int:
    return int((picture == np.array(color)).all(axis=2).sum())


def test_small_images_are_enlarged_by_a_whole_factor() -> None:
    picture = draw(16, 20)
    assert picture.shape[1] > 4 * 320
    assert pixels_of(picture, ERROR_COLORS[3]) >= 16 * 16 * 16


def test_a_missed_line_one_pixel_wide_shows_on_a_large_image() -> None:
    picture = draw(300, 2 * LARGEST_SIDE + 1)
    assert picture.shape[1] < 4 * LARGEST_SIDE + 100
    assert pixels_of(picture, ERROR_COLORS[3]) >= 100


@pytest.mark.parametrize("shape", [(30, 40), (30, 40, 1), (30, 40, 3), (60, 80, 3), (7, 9, 3)])
def test_images_of_any_kind_and_size_go_with_the_masks(shape: tuple[int, ...]) -> None:
    for dtype in (np.uint8, np.uint16):
        picture = draw(30, 40, image=np.ones(shape, dtype))
        assert picture.dtype == np.uint8
        assert picture.shape[2] == 3


def test_extreme_shapes_do_not_fail() -> None:
    assert draw(1, 1).size
    assert draw(2, 700).size
    assert draw(700, 2).size


def test_width_does_not_depend_on_the_caption() -> None:
    assert draw(30, 40, caption="x" * 1000).shape[1] == draw(30, 40, caption="x").shape[1]


def test_long_names_are_cut_in_the_middle() -> None:
    assert shorten("pole") == "pole"
    cut = shorten("a-very-long-defect-name-number-17", 12)
    assert len(cut) == 12
    assert cut.startswith("a-very")
    assert cut.endswith("17")
    assert shorten("two\nlines") == "two lines"
    assert text_width(shorten_to_width("w" * 500, 14, 200), 14) <= 200


def test_legend_wraps_and_tells_how_many_are_left_out() -> None:
    entries = [LegendEntry((255, 0, index), f"class {index}") for index in range(50)]
    picture = legend(entries, 400)
    assert picture.shape[1] == 400
    assert picture.shape[0] > legend(entries[:3], 400).shape[0]
    assert pixels_of(picture, (255, 0, 29)) > 50
    assert pixels_of(picture, (255, 0, 30)) == 0
