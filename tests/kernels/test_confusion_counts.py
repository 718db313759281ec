"""Confusion counts are those of torch.argmax and a loop over the pixels, for every layout, type, size and device."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from segtrain.errors import DataError
from segtrain.kernels import confusion_cpu, rows, upsample
from segtrain.kernels.confusion import confusion_counts, confusion_update, plain_counts
from segtrain.kernels.upsample import CoarseLogits
from segtrain.metrics import ConfusionMatrix


def batch(classes: int, *, size: tuple[int, int] = (9, 14), seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits with many ties, and labels of which some are ignored."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randint(-3, 4, (3, classes, *size), generator=generator).double() / 2
    target = torch.randint(0, classes, (3, *size), generator=generator)
    target[torch.rand(target.shape, generator=generator) < 0.2] = 255
    return logits, target.to(torch.uint8)


def expected(classes: Tensor, target: Tensor, num_classes: int) -> Tensor:
    matrix = torch.zeros(len(target), num_classes, num_classes, dtype=torch.int64)
    for image, (labels, found) in enumerate(zip(target.tolist(), classes.tolist(), strict=True)):
        for row, columns in zip(labels, found, strict=True):
            for label, column in zip(row, columns, strict=True):
                if label != 255:
                    matrix[image, label, column] += 1
    return matrix


def layouts(logits: Tensor) -> Iterator[Tensor]:
    """The same values in other strides."""
    yield logits
    yield logits.contiguous(memory_format=torch.channels_last)
    wide = logits.new_zeros(*logits.shape[:3], logits.shape[3] + 5)
    wide[..., 2:-3] = logits
    yield wide[..., 2:-3]
    yield logits.transpose(2, 3).contiguous().transpose(2, 3)
    yield torch.stack((logits, logits), dim=2)[:, :, 1]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("classes", [1, 2, 5, 45])
def test_the_counts_of_logits_are_those_of_their_argmax(
    classes: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "FEWEST_PIXELS", 30)
    monkeypatch.setattr(rows, "MOST_PIXELS", 30)
    logits, target = batch(classes)
    matrix = expected(logits.argmax(1), target, classes)
    for same in layouts(logits.to(dtype)):
        counts = confusion_update(same, target, num_classes=classes, with_prediction=True)
        assert torch.equal(counts.matrix, matrix)
        assert counts.prediction is not None
        assert torch.equal(counts.prediction.long(), logits.argmax(1))
        assert counts.wrong.tolist() == [[0, 0]] * 3


def test_nothing_is_predicted_where_nobody_asks() -> None:
    logits, target = batch(4)
    assert confusion_update(logits, target, num_classes=4).prediction is None


def test_a_nan_counts_as_the_largest_and_the_first_of_equals_wins() -> None:
    logits, target = batch(4)
    logits[0, 2, :4] = torch.nan
    logits[1, 3, 2, 2] = torch.inf
    for same in layouts(logits.float()):
        counts = confusion_update(same, target, num_classes=4, with_prediction=True)
        assert counts.prediction is not None
        assert torch.equal(counts.prediction.long(), logits.argmax(1))


def test_the_shift_comes_before_the_argmax() -> None:
    logits, target = batch(5)
    shift = torch.tensor([0.0, 0.3, -2.0, 1.1, 0.2], dtype=torch.float64)
    counts = confusion_update(logits.float(), target, num_classes=5, shift=shift)
    shifted = logits.float() + shift.float().view(-1, 1, 1)
    assert not torch.equal(shifted.argmax(1), logits.argmax(1))
    assert torch.equal(counts.matrix, expected(shifted.argmax(1), target, 5))


@pytest.mark.parametrize("target_dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64])
def test_classes_are_counted_as_they_are(dtype: torch.dtype, target_dtype: torch.dtype) -> None:
    logits, target = batch(5)
    counts = confusion_update(logits.argmax(1).to(dtype), target.to(target_dtype), num_classes=5)
    assert torch.equal(counts.matrix, expected(logits.argmax(1), target, 5))


def test_calls_of_the_histogram_are_short_enough_to_count_in_floats(monkeypatch: pytest.MonkeyPatch) -> None:
    assert confusion_cpu.MOST_PIXELS < 2**24
    monkeypatch.setattr(confusion_cpu, "MOST_PIXELS", 10)
    logits, target = batch(5)
    counts = confusion_update(logits.argmax(1).byte(), target, num_classes=5)
    assert torch.equal(counts.matrix, expected(logits.argmax(1), target, 5))


@pytest.mark.parametrize("size", [(36, 56), (20, 31), (9, 14), (5, 7)])
@pytest.mark.parametrize("crop", [0, 3])
def test_coarse_logits_are_enlarged_as_interpolate_does(
    size: tuple[int, int], crop: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upsample, "STRIP", 200)
    generator = torch.Generator().manual_seed(5)
    coarse = torch.randn(3, 4, 9, 14, generator=generator, dtype=torch.float64)
    kept = (size[0] - crop, size[1] - crop)
    full = interpolate(coarse, size=size, mode="bilinear", align_corners=False)[..., : kept[0], : kept[1]]
    target = torch.randint(0, 4, (3, *kept), generator=generator, dtype=torch.uint8)
    values = CoarseLogits(coarse, size, kept)
    torch.testing.assert_close(values.full(), full)
    counts = confusion_update(values, target, num_classes=4)
    assert torch.equal(counts.matrix, expected(full.argmax(1), target, 4))
    plain, _ = plain_counts(coarse, target, None, size, 4, 255, False)
    assert torch.equal(plain[:, :-2].view(3, 4, 4), counts.matrix)
    if not crop:
        resized = confusion_update(coarse, target, num_classes=4, size=size)
        assert torch.equal(resized.matrix, counts.matrix)
    larger = torch.randint(0, 4, (3, 40, 60), generator=generator, dtype=torch.uint8)
    twice = interpolate(full, size=(40, 60), mode="bilinear", align_corners=False)
    counts = confusion_update(values, larger, num_classes=4, size=(40, 60))
    assert torch.equal(counts.matrix, expected(twice.argmax(1), larger, 4))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_wrong_values_raise_on_the_cpu_and_are_counted_elsewhere(dtype: torch.dtype) -> None:
    logits, target = batch(4)
    classes = logits.argmax(1).to(dtype)
    target[target == 255] = 0
    wrong = target.to(dtype).clone()
    wrong[0, 0, :2] = 7
    with pytest.raises(DataError, match=r"label out of range: found 7 \(2 pixels\); expected 0 to 3"):
        confusion_update(logits, wrong, num_classes=4)
    stray = classes.clone()
    stray[1, 0, :3] = 9
    with pytest.raises(ValueError, match=r"prediction out of range: found 9 \(3 pixels\)"):
        confusion_update(stray, target.to(dtype), num_classes=4)
    counts, _ = plain_counts(stray, wrong, None, (9, 14), 4, 255, False)
    assert counts[:, -2:].tolist() == [[2, 0], [0, 3], [0, 0]]
    assert int(counts[:, :-2].sum()) == target.numel() - 5


def test_what_stands_in_on_other_devices_counts_the_same() -> None:
    logits, target = batch(5)
    shift = torch.tensor([0.0, 0.3, -2.0, 1.1, 0.2])
    for values in (logits.float(), logits.argmax(1)):
        added = shift if values.is_floating_point() else None
        ours = confusion_counts(values, target, added, [9, 14], 5, 255, True)
        plain = plain_counts(values, target, added, (9, 14), 5, 255, True)
        assert torch.equal(ours[0], plain[0])
        assert torch.equal(ours[1], plain[1])


def test_the_operator_keeps_its_contract_with_torch() -> None:
    logits, target = batch(3)
    for with_prediction in (True, False):
        torch.library.opcheck(confusion_counts, (logits, target, None, [9, 14], 3, 255, with_prediction))
    torch.library.opcheck(confusion_counts, (logits.argmax(1), target, None, [9, 14], 3, 255, True))


def test_an_empty_batch_counts_nothing() -> None:
    counts = confusion_update(torch.zeros(0, 3, 4, 4), torch.zeros(0, 4, 4, dtype=torch.uint8), num_classes=3)
    assert counts.matrix.shape == (0, 3, 3)
    counts = confusion_update(torch.zeros(2, 3, 0, 4), torch.zeros(2, 0, 4, dtype=torch.uint8), num_classes=3)
    assert int(counts.matrix.sum()) == 0


def test_shapes_that_do_not_fit_are_refused() -> None:
    logits, target = batch(3)
    with pytest.raises(ValueError, match="resize the logits to the target"):
        confusion_update(logits[..., 1:], target, num_classes=3)
    with pytest.raises(ValueError, match="cannot be resized"):
        confusion_update(logits.argmax(1)[..., 1:], target, num_classes=3, size=(9, 14))
    with pytest.raises(ValueError, match=r"logits must be \[N, 4, H, W\]"):
        confusion_update(logits, target, num_classes=4)
    with pytest.raises(ValueError, match="must hold integers"):
        confusion_update(logits, target > 0, num_classes=3)


def test_counts_wait_on_their_device_and_wrong_ones_raise_when_they_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """The meta device stands in for one that cannot be asked: reading a number from it would raise."""
    logits, target = batch(3)
    matrix = ConfusionMatrix(3)
    matrix.update_and_predict(logits.to("meta"), target.to("meta"))
    assert matrix.num_images == 3
    flat = torch.arange(9 + 3 + 2)
    flat[-2:] = 0
    monkeypatch.setattr(matrix, "_on_devices", {torch.device("meta"): flat})
    assert matrix.matrix.tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert matrix.images.tolist() == [9, 10, 11]
    flat[-2] = 5
    monkeypatch.setattr(matrix, "_on_devices", {torch.device("meta"): flat})
    with pytest.raises(DataError, match=r"label out of range in 5 pixels, prediction out of range in 0"):
        _ = matrix.matrix
