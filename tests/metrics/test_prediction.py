"""The quick argmax must be torch.argmax exactly: ties, NaN, types and layouts."""

from __future__ import annotations

import pytest
import torch

from segtrain.kernels import rows
from segtrain.metrics import predict_classes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_equals_argmax_also_with_ties(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randint(-2, 3, (3, 7, 9, 11), generator=generator).to(dtype)
    assert torch.equal(predict_classes(logits).long(), logits.argmax(dim=1))
    assert torch.equal(predict_classes(logits.contiguous(memory_format=torch.channels_last)).long(), logits.argmax(1))


def test_nan_and_infinities_follow_argmax() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 5, 8, 8, generator=generator)
    logits[0, 2, 0, :] = torch.nan
    logits[0, 4, 0, 3:] = torch.nan
    logits[1, :, 1, 1] = -torch.inf
    logits[1, 3, 2, 2] = torch.inf
    assert torch.equal(predict_classes(logits).long(), logits.argmax(dim=1))


def test_runs_smaller_than_the_image_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(1, 4, 13, 10, generator=torch.Generator().manual_seed(2))
    monkeypatch.setattr(rows, "FEWEST_PIXELS", 30)
    monkeypatch.setattr(rows, "MOST_PIXELS", 30)
    assert torch.equal(predict_classes(logits).long(), logits.argmax(dim=1))


@pytest.mark.parametrize(("num_classes", "dtype"), [(256, torch.uint8), (257, torch.int16)])
def test_type_holds_the_last_class(num_classes: int, dtype: torch.dtype) -> None:
    logits = torch.zeros(1, num_classes, 1, 2)
    logits[0, -1, 0, 1] = 1
    classes = predict_classes(logits)
    assert classes.dtype == dtype
    assert classes.tolist() == [[[0, num_classes - 1]]]


def test_integers_are_not_taken_for_logits() -> None:
    with pytest.raises(ValueError, match="logits must be floats"):
        predict_classes(torch.zeros(1, 2, 3, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"\[N, C, H, W\]"):
        predict_classes(torch.zeros(2, 3, 3))
