"""Pictures of class maps: right colours at right pixels, thin things survive, colour-blind readers too."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from segtrain.drawing import (
    ERROR_COLORS,
    colorize,
    error_codes,
    overlay,
    palette,
    shrink_classes,
    to_display,
)
from segtrain.drawing.maps import paint_errors

COLORS = palette(4)
# Machado, Oliveira, Fernandes 2009, severity 1: how linear RGB looks without one kind of cone.
COLOR_VISION = {
    "normal": np.eye(3),
    "protanopia": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    "deuteranopia": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
    "tritanopia": [[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]],
}


def test_classes_show_their_colours_and_ignored_pixels_are_black() -> None:
    for dtype in (np.uint8, np.int16, np.int64):
        picture = colorize(np.array([[0, 3, 255, 200]]).astype(dtype), COLORS)
        assert picture.tolist() == [[COLORS[0].tolist(), COLORS[3].tolist(), [0, 0, 0], [0, 0, 0]]]
    minus_one = colorize(np.array([[-1, 2]], dtype=np.int16), COLORS, ignore_index=-1)
    assert minus_one.tolist() == [[[0, 0, 0], COLORS[2].tolist()]]


def test_overlay_mixes_by_alpha_and_leaves_ignored_pixels() -> None:
    image = np.full((1, 2, 3), 100, np.uint8)
    classes = np.array([[1, 255]], np.uint8)
    assert overlay(image, classes, colors=COLORS, alpha=0.0).tolist() == image.tolist()
    mixed = overlay(image, classes, colors=COLORS, alpha=0.5)
    assert np.abs(mixed[0, 0].astype(int) - (100 + COLORS[1].astype(int)) / 2).max() <= 1
    assert mixed[0, 1].tolist() == [100, 100, 100]
    assert overlay(image, classes, colors=COLORS, alpha=1.0)[0, 0].tolist() == COLORS[1].tolist()


def test_error_codes_by_hand() -> None:
    target = np.array([[1, 1, 0, 0, 1, 2, 255, 255]], np.uint8)
    prediction = np.array([[1, 0, 1, 0, 2, 2, 1, 0]], np.uint8)
    assert error_codes(target, prediction, classes=[1]).tolist() == [[1, 3, 2, 0, 3, 0, 0, 0]]
    assert error_codes(target, prediction, classes=[1, 2]).tolist() == [[1, 3, 2, 0, 3, 1, 0, 0]]


def test_painted_errors_dim_the_rest_to_gray() -> None:
    image = np.full((1, 2, 3), (200, 100, 0), np.uint8)
    picture = paint_errors(image, error_codes(np.array([[1, 0]]), np.array([[0, 0]]), classes=[1]))
    assert tuple(picture[0, 0].tolist()) == ERROR_COLORS[3]
    assert len(set(picture[0, 1].tolist())) == 1
    assert picture[0, 1, 0] < 100


@pytest.mark.parametrize("vision", COLOR_VISION)
def test_error_colours_differ_for_every_colour_vision(vision: str) -> None:
    linear = (np.array(ERROR_COLORS[1:]) / 255) ** 2.2
    seen = (linear @ np.array(COLOR_VISION[vision]).T).clip(0, 1) ** (1 / 2.2) * 255
    assert min(np.linalg.norm(one - other) for one, other in combinations(seen, 2)) > 60


def test_images_of_any_type_can_be_shown() -> None:
    gradient = np.linspace(0, 3000, 48).reshape(6, 8)
    for image in (gradient.astype(np.uint16), gradient.astype(np.uint16)[:, :, None], gradient.astype(np.float32)):
        shown = to_display(image)
        assert (shown.dtype, shown.shape) == (np.uint8, (6, 8, 3))
        assert (shown.min(), shown.max()) == (0, 255)
    assert to_display(np.full((2, 2, 1), 7, np.uint16)).shape == (2, 2, 3)
    assert to_display(np.zeros((2, 2, 5), np.uint8)).shape == (2, 2, 3)
    assert np.array_equal(to_display(np.full((2, 2, 3), 9, np.uint8)), np.full((2, 2, 3), 9, np.uint8))
    assert to_display(np.full((2, 2), np.nan)).shape == (2, 2, 3)


def test_a_line_of_a_named_class_survives_shrinking() -> None:
    classes = np.zeros((40, 41), np.uint8)
    classes[:, 13] = 2
    shrunk = shrink_classes(classes, 4, keep=[2])
    assert shrunk.shape == (10, 11)
    assert (shrunk[:, 3] == 2).all()
    assert int((shrunk == 2).sum()) == 10
    assert not shrink_classes(classes, 4, keep=[]).any()


def test_sizes_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match="differ in size"):
        overlay(np.zeros((2, 2, 3), np.uint8), np.zeros((2, 3), np.uint8), colors=COLORS)
    with pytest.raises(ValueError, match="differ in size"):
        error_codes(np.zeros((2, 2)), np.zeros((2, 3)), classes=[1])
