"""What the confusion matrix promises: exact counts, undefined values as NaN, nothing dropped in silence."""

from __future__ import annotations

import math
import time

import pytest
import torch

from segtrain.errors import DataError
from segtrain.metrics import ConfusionMatrix

TARGET = torch.tensor([[[0, 0, 0, 1], [1, 1, 2, 255]]])
PREDICTION = torch.tensor([[[0, 0, 1, 1], [1, 2, 0, 2]]])


def matrix_of(prediction: torch.Tensor, target: torch.Tensor, num_classes: int = 3) -> ConfusionMatrix:
    confusion = ConfusionMatrix(num_classes)
    confusion.update(prediction, target)
    return confusion


def test_hand_computed_values() -> None:
    confusion = matrix_of(PREDICTION, TARGET)
    assert confusion.matrix.tolist() == [[2, 1, 0], [0, 2, 1], [1, 0, 0]]
    assert confusion.images.tolist() == [1, 1, 1]
    assert confusion.iou().tolist() == [2 / 4, 2 / 4, 0.0]
    assert confusion.dice().tolist() == [4 / 6, 4 / 6, 0.0]
    assert confusion.recall().tolist() == [2 / 3, 2 / 3, 0.0]
    assert confusion.precision().tolist() == [2 / 3, 2 / 3, 0.0]
    assert confusion.pixel_accuracy() == 4 / 7


def test_absent_class_is_nan_and_invented_class_is_zero() -> None:
    confusion = matrix_of(torch.tensor([[[0, 1]]]), torch.tensor([[[0, 0]]]))
    iou, recall, precision = confusion.iou(), confusion.recall(), confusion.precision()
    assert iou[1] == 0.0
    assert precision[1] == 0.0
    assert math.isnan(recall[1])
    assert all(math.isnan(values[2]) for values in (iou, confusion.dice(), recall, precision))


def test_iou_is_of_the_data_set_not_a_mean_over_images() -> None:
    # One image with 1 of 1 pixels found, one with 0 of 9: the data set's IoU is 0.1, the mean of images 0.5.
    confusion = ConfusionMatrix(2)
    confusion.update(torch.tensor([[[1]]]), torch.tensor([[[1]]]))
    confusion.update(torch.zeros(1, 3, 3, dtype=torch.int64), torch.ones(1, 3, 3, dtype=torch.int64))
    assert confusion.iou()[1] == pytest.approx(0.1)


def test_counts_stay_exact_above_float32_precision() -> None:
    confusion = ConfusionMatrix(2)
    confusion.matrix[1, 1] = 2**24
    confusion.update(torch.ones(1, 1, 1, dtype=torch.uint8), torch.ones(1, 1, 1, dtype=torch.uint8))
    assert int(confusion.matrix[1, 1]) == 2**24 + 1
    confusion.matrix[1, 1] = 2**40
    confusion.update(torch.ones(1, 1, 1, dtype=torch.uint8), torch.ones(1, 1, 1, dtype=torch.uint8))
    assert int(confusion.matrix[1, 1]) == 2**40 + 1


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_every_integer_type_counts_alike(dtype: torch.dtype) -> None:
    assert torch.equal(matrix_of(PREDICTION.to(dtype), TARGET.to(dtype)).matrix, matrix_of(PREDICTION, TARGET).matrix)


def test_ignore_index_minus_one_with_many_classes() -> None:
    target = torch.tensor([[[0, 299, -1, 255]]], dtype=torch.int16)
    confusion = ConfusionMatrix(300, ignore_index=-1)
    confusion.update(torch.tensor([[[0, 299, 7, 255]]]), target)
    assert int(confusion.matrix.sum()) == 3
    assert torch.equal(confusion.matrix.diagonal(), confusion.support)


def test_minus_one_does_not_ignore_label_255_of_a_uint8_mask() -> None:
    confusion = ConfusionMatrix(256, ignore_index=-1)
    confusion.update(torch.tensor([[[255]]]), torch.tensor([[[255]]], dtype=torch.uint8))
    assert int(confusion.matrix[255, 255]) == 1


@pytest.mark.parametrize("label", [3, 254, -1, 2**32])
def test_label_out_of_range_raises_with_value_and_count(label: int) -> None:
    target = TARGET.clone()
    target[0, 0, :2] = label
    confusion = ConfusionMatrix(3)
    with pytest.raises(DataError, match=rf"label out of range: found {label} \(2 pixels\); expected 0 to 2"):
        confusion.update(PREDICTION, target)
    assert int(confusion.matrix.sum()) == confusion.num_images == 0


def test_prediction_out_of_range_raises_with_value_and_count() -> None:
    prediction = PREDICTION.clone()
    prediction[0, 1, 0] = 3
    with pytest.raises(ValueError, match=r"prediction out of range: found 3 \(1 pixels\)"):
        matrix_of(prediction, TARGET)


def test_prediction_at_an_ignored_pixel_does_not_matter() -> None:
    prediction = PREDICTION.clone()
    prediction[0, 1, 3] = 255
    assert torch.equal(matrix_of(prediction, TARGET).matrix, matrix_of(PREDICTION, TARGET).matrix)


def test_a_bad_image_leaves_nothing_of_its_batch_behind() -> None:
    confusion = ConfusionMatrix(3)
    bad = torch.full_like(TARGET, 9)
    with pytest.raises(DataError):
        confusion.update(torch.cat([PREDICTION, PREDICTION]), torch.cat([TARGET, bad]))
    assert int(confusion.matrix.sum()) == 0


def test_shapes_that_differ_are_an_error_not_a_resize() -> None:
    with pytest.raises(ValueError, match="resize the logits to the target"):
        matrix_of(PREDICTION, TARGET[:, :1])
    with pytest.raises(ValueError, match=r"logits must be \[N, 3, H, W\]"):
        matrix_of(torch.zeros(1, 4, 2, 4), TARGET)
    with pytest.raises(ValueError, match="must hold integers"):
        matrix_of(PREDICTION, TARGET.float())


def test_ignore_index_that_hides_a_class_is_refused() -> None:
    with pytest.raises(ValueError, match="also a class"):
        ConfusionMatrix(3, ignore_index=2)


def test_logits_count_as_their_argmax() -> None:
    logits = torch.nn.functional.one_hot(PREDICTION, 3).permute(0, 3, 1, 2).float()
    assert torch.equal(matrix_of(logits, TARGET).matrix, matrix_of(PREDICTION, TARGET).matrix)


def test_images_count_those_whose_target_holds_the_class() -> None:
    target = torch.tensor([[[0, 0]], [[0, 2]], [[255, 255]]])
    confusion = matrix_of(torch.ones_like(target), target)
    assert confusion.images.tolist() == [2, 0, 1]
    assert confusion.num_images == 3


def test_merged_halves_equal_the_whole() -> None:
    generator = torch.Generator().manual_seed(3)
    target = torch.randint(0, 3, (4, 5, 6), generator=generator)
    prediction = torch.randint(0, 3, (4, 5, 6), generator=generator)
    whole = matrix_of(prediction, target)
    half = matrix_of(prediction[:1], target[:1])
    half.merge(ConfusionMatrix.from_state(matrix_of(prediction[1:], target[1:]).state()))
    assert half.state() == whole.state()


def test_ignored_and_empty_images_count_nothing() -> None:
    confusion = matrix_of(torch.zeros(1, 2, 2, dtype=torch.uint8), torch.full((1, 2, 2), 255, dtype=torch.uint8))
    confusion.update(torch.zeros(0, 2, 2, dtype=torch.uint8), torch.zeros(0, 2, 2, dtype=torch.uint8))
    assert int(confusion.matrix.sum()) == 0
    assert math.isnan(confusion.pixel_accuracy())


def test_deterministic_mode_is_neither_slow_nor_refused() -> None:
    target = torch.zeros(1, 1024, 1024, dtype=torch.uint8)
    torch.use_deterministic_algorithms(True)
    try:
        begin = time.perf_counter()
        confusion = matrix_of(target, target)
        seconds = time.perf_counter() - begin
    finally:
        torch.use_deterministic_algorithms(False)
    assert int(confusion.matrix[0, 0]) == 1024 * 1024
    assert seconds < 2
