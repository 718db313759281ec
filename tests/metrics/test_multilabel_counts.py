"""The 2x2 counts of classes that do not exclude each other, and the labels that thresholds predict."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import Tensor

from segtrain.errors import DataError
from segtrain.metrics import ConfusionMatrix, MultiLabelConfusion, compute_scores, predict_labels, score_names

NAMES = ("crack", "stain", "rust")


def drawn(seed: int = 0, *, classes: int = 3) -> tuple[Tensor, Tensor]:
    """Labels and predictions that overlap, pairs ignored here and there: two images [2, C, 9, 7]."""
    generator = torch.Generator().manual_seed(seed)
    target = (torch.rand(2, classes, 9, 7, generator=generator) < 0.3).to(torch.uint8)
    target[torch.rand(target.shape, generator=generator) < 0.2] = 255
    prediction = (torch.rand(target.shape, generator=generator) < 0.4).to(torch.uint8)
    return prediction, target


def counted(prediction: Tensor, target: Tensor) -> MultiLabelConfusion:
    confusion = MultiLabelConfusion(target.shape[1])
    confusion.update(prediction, target)
    return confusion


def test_each_class_is_counted_like_a_two_class_matrix_of_its_own() -> None:
    prediction, target = drawn()
    confusion = counted(prediction, target)
    for c in range(3):
        alone = ConfusionMatrix(2)
        alone.update(prediction[:, c], target[:, c])
        assert confusion.matrix[c].tolist() == alone.matrix.tolist()
        assert int(confusion.images[c]) == int(alone.images[1])
        for ratio in ("iou", "dice", "recall", "precision"):
            assert float(getattr(confusion, ratio)()[c]) == float(getattr(alone, ratio)()[1])
    assert confusion.matrix.dtype == torch.int64
    assert confusion.valid.tolist() == [int((target[:, c] != 255).sum()) for c in range(3)]


def test_batches_and_merged_parts_count_as_one() -> None:
    (first, wanted), (second, other) = drawn(0), drawn(1)
    whole = counted(torch.cat([first, second]), torch.cat([wanted, other]))
    parts = counted(first, wanted)
    parts.merge(counted(second, other))
    assert parts.state() == whole.state()
    assert MultiLabelConfusion.from_state(json.loads(json.dumps(whole.state()))).state() == whole.state()
    with pytest.raises(ValueError, match="same num_classes"):
        parts.merge(MultiLabelConfusion(2))


def test_what_is_undefined_is_nan_and_left_out_of_the_means() -> None:
    target = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    target[0, 0, 0] = 1
    prediction = torch.zeros_like(target)
    prediction[0, 0, :2] = 1  # crack: half of what is said is right
    prediction[0, 1, 0] = 1  # stain: invented, rust: in neither
    scores = compute_scores(counted(prediction, target), NAMES)
    assert list(scores.values) == score_names(NAMES)
    assert scores.values["iou/crack"] == 0.5
    assert scores.values["precision/crack"] == 0.5
    assert scores.values["iou/stain"] == 0.0
    assert math.isnan(scores.values["recall/stain"])
    assert math.isnan(scores.values["iou/rust"])
    assert scores.values["miou"] == 0.25
    assert scores.counted == {"miou": 2, "miou_tail": 1}
    assert scores.values["pixel_accuracy"] == 1 - 8 / 48


def test_an_ignored_pair_counts_for_the_other_classes_all_the_same() -> None:
    target = torch.tensor([[[[1, 255]], [[255, 0]]]], dtype=torch.uint8)
    confusion = counted(torch.ones_like(target), target)
    assert confusion.matrix.tolist() == [[[0, 0], [0, 1]], [[0, 1], [0, 0]]]


def test_labels_and_predictions_that_are_none_raise_and_count_nothing() -> None:
    prediction, target = drawn()
    confusion = MultiLabelConfusion(3)
    wrong = target.clone()
    wrong[1, 2, 0, :3] = 7
    with pytest.raises(DataError, match=r"found 7 \(3 pixels\); expected 0, 1, or 255"):
        confusion.update(prediction, wrong)
    with pytest.raises(ValueError, match="neither 0 nor 1"):
        confusion.update(prediction + 2, target)
    with pytest.raises(ValueError, match="predict_labels"):
        confusion.update(prediction.float(), target)
    with pytest.raises(ValueError, match="resize the logits"):
        confusion.update(prediction[:, :, 1:], target)
    with pytest.raises(ValueError, match=r"\[N, 3, H, W\]"):
        confusion.update(prediction[:, 0], target[:, 0])
    assert confusion.num_images == 0
    assert not confusion.matrix.any()


def test_counts_are_exact_beyond_what_a_float_holds() -> None:
    confusion = MultiLabelConfusion(1)
    confusion.matrix[0, 1, 1] = 2**24
    confusion.update(torch.ones(1, 1, 1, 1, dtype=torch.uint8), torch.ones(1, 1, 1, 1, dtype=torch.uint8))
    assert int(confusion.support) == 2**24 + 1


def test_a_label_is_present_from_its_threshold_on() -> None:
    logits = torch.tensor([-1.0, -1e-6, 0.0, 1.0, math.nan]).view(1, 1, 1, 5).repeat(1, 2, 1, 1)
    found = predict_labels(logits, [0.5, 0.25])
    assert found.dtype == torch.uint8
    assert found[0, :, 0].tolist() == [[0, 0, 1, 1, 0], [1, 1, 1, 1, 0]]


@pytest.mark.parametrize("threshold", [0.0, 1.0, -0.1, math.nan])
def test_a_threshold_lies_between_0_and_1(threshold: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        predict_labels(torch.zeros(1, 1, 2, 2), [threshold])


def test_every_class_has_its_threshold() -> None:
    with pytest.raises(ValueError, match="2 thresholds for 3 classes"):
        predict_labels(torch.zeros(1, 3, 2, 2), [0.5, 0.5])
