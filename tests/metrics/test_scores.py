"""Means that leave out what is undefined, and say what they are over."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from segtrain.metrics import ConfusionMatrix, compute_scores, score_names, tail_classes

NAMES = ("road", "pole", "sign", "sky")


@pytest.fixture
def confusion() -> ConfusionMatrix:
    """IoU 0.8, 0.25, 0.0; the sky is nowhere."""
    confusion = ConfusionMatrix(4)
    confusion.matrix = torch.tensor([[80, 15, 0, 0], [0, 5, 0, 0], [5, 0, 0, 0], [0, 0, 0, 0]])
    return confusion


def test_hand_computed_means(confusion: ConfusionMatrix) -> None:
    found = compute_scores(confusion, NAMES, tail_fraction=0.5, exclude=("road",)).values
    assert found["miou"] == pytest.approx((0.8 + 0.25 + 0) / 3)
    assert found["miou_tail"] == pytest.approx(0.125)
    assert found["miou_selected"] == pytest.approx(0.125)
    assert found["fwiou"] == pytest.approx((95 * 0.8 + 5 * 0.25) / 105)
    assert found["pixel_accuracy"] == pytest.approx(85 / 105)
    assert found["iou/pole"] == pytest.approx(0.25)
    assert found["recall/pole"] == 1.0
    assert math.isnan(found["precision/sign"])
    assert all(math.isnan(found[f"{ratio}/sky"]) for ratio in ("iou", "dice", "precision", "recall"))


def test_means_tell_over_how_many_classes_they_are(confusion: ConfusionMatrix) -> None:
    result = compute_scores(confusion, NAMES, exclude=("road",))
    assert result.counted["miou"] == 3
    assert result.groups["miou_selected"] == (1, 2, 3)
    assert result.counted["miou_selected"] == 2


def test_tail_is_chosen_by_training_pixels(confusion: ConfusionMatrix) -> None:
    frequencies = SimpleNamespace(pixels=[5, 100, 200, 300])
    result = compute_scores(confusion, NAMES, frequencies=frequencies, tail_fraction=0.25)
    assert result.groups["miou_tail"] == (0,)
    assert result.values["miou_tail"] == pytest.approx(0.8)


def test_tail_rounds_up_and_leaves_out_classes_without_pixels() -> None:
    assert tail_classes([10, 0, 3, 7, 9]) == (2, 3)
    assert tail_classes(range(1, 12)) == (0, 1, 2, 3)
    assert tail_classes(range(1, 101), 0.07) == tuple(range(7))
    assert tail_classes([4, 4, 4]) == (0,)
    assert tail_classes([0, 0]) == ()


def test_nothing_evaluated_is_nan_everywhere() -> None:
    found = compute_scores(ConfusionMatrix(2), ("a", "b")).values
    assert found
    assert all(math.isnan(value) for value in found.values())


@pytest.mark.parametrize("exclude", [(), ("road",)])
def test_the_names_are_those_of_the_numbers_in_their_order(
    confusion: ConfusionMatrix, exclude: tuple[str, ...]
) -> None:
    names = score_names(NAMES, exclude=exclude)
    assert names == list(compute_scores(confusion, NAMES, exclude=exclude).values)
    assert ("miou_selected" in names) == bool(exclude)


def test_wrong_names_are_refused(confusion: ConfusionMatrix) -> None:
    with pytest.raises(ValueError, match="3 class names for 4 classes"):
        compute_scores(confusion, NAMES[:3])
    with pytest.raises(ValueError, match="excluded classes"):
        compute_scores(confusion, NAMES, exclude=("rod",))
