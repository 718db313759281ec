"""Class colours: distinct, repeatable, and kept apart from the ones that were asked for."""

from __future__ import annotations

import numpy as np
import pytest

from segtrain.drawing import palette


@pytest.mark.parametrize("count", [1, 8, 40, 300])
def test_colours_are_distinct_and_repeatable(count: int) -> None:
    colors = palette(count)
    assert colors.shape == (count, 3)
    assert colors.dtype == np.uint8
    assert len(np.unique(colors, axis=0)) == count
    assert np.array_equal(colors, palette(count))


def test_more_classes_do_not_change_the_first_colours() -> None:
    assert np.array_equal(palette(8), palette(20)[:8])


def test_no_colour_is_taken_for_the_black_of_ignored_pixels() -> None:
    assert int(palette(300).astype(int).sum(axis=1).min()) > 40


def test_wished_colours_stand_and_others_keep_away_from_them() -> None:
    wished = [None, (230, 159, 0), None, (0, 0, 0), (231, 160, 1)]
    colors = palette(6, wished)
    assert [tuple(colors[index].tolist()) for index in (1, 3, 4)] == [(230, 159, 0), (0, 0, 0), (231, 160, 1)]
    for index in (0, 2, 5):
        others = np.delete(colors, index, axis=0).astype(int)
        assert np.abs(others - colors[index].astype(int)).sum(axis=1).min() > 40


def test_two_wishes_may_be_equal() -> None:
    assert palette(2, [(1, 2, 3), (1, 2, 3)]).tolist() == [[1, 2, 3], [1, 2, 3]]


def test_more_wishes_than_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="3 colours for 2 classes"):
        palette(2, [None, None, None])
