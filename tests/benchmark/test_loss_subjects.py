"""The losses that are compared run on every kind of inputs, and those that claim to be the same are the same."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from segtrain.benchmark.cases import Case, as_target, make_inputs
from segtrain.benchmark.subjects import BASELINE, HEADLINE, SUBJECTS, THRESHOLD

SMALL = Case(batch=2, classes=5, size=24)


def _value_and_gradient(name: str, case: Case) -> tuple[float, torch.Tensor]:
    subject = SUBJECTS[name]
    inputs = make_inputs(case)
    value = subject.make(case)(inputs.logits, as_target(inputs, subject.target, ignore_index=case.ignore_index))
    value.backward()  # type: ignore[no-untyped-call]
    assert inputs.logits.grad is not None
    return value.item(), inputs.logits.grad


@pytest.mark.parametrize("memory_format", ["nchw", "channels_last"])
@pytest.mark.parametrize("name", [name for name, subject in SUBJECTS.items() if not subject.compiled])
def test_every_loss_gives_a_value_and_a_gradient(name: str, memory_format: str) -> None:
    if (reason := SUBJECTS[name].missing("cpu")) is not None:
        pytest.skip(reason)
    value, gradient = _value_and_gradient(name, replace(SMALL, memory_format=memory_format))
    assert value > 0
    assert gradient.isfinite().all()
    assert gradient.count_nonzero() > 0


@pytest.mark.parametrize("classes", [2, 19])
@pytest.mark.parametrize("memory_format", ["nchw", "channels_last"])
def test_the_plain_form_is_the_same_loss_as_the_headline(classes: int, memory_format: str) -> None:
    case = replace(SMALL, classes=classes, size=64, memory_format=memory_format, target_dtype="int64")
    ours, our_gradient = _value_and_gradient(HEADLINE, case)
    plain, plain_gradient = _value_and_gradient("plain", case)
    assert plain == pytest.approx(ours, rel=1e-5)
    torch.testing.assert_close(plain_gradient, our_gradient, rtol=1e-3, atol=1e-8)


def test_the_baseline_converts_no_target_while_it_is_measured() -> None:
    inputs = make_inputs(SMALL)
    assert as_target(inputs, SUBJECTS[BASELINE].target, ignore_index=255).dtype == torch.int64
    assert as_target(inputs, SUBJECTS["torch_ce_converting"].target, ignore_index=255).dtype == torch.uint8
    assert _value_and_gradient(BASELINE, SMALL)[0] == _value_and_gradient("torch_ce_converting", SMALL)[0]


@pytest.mark.parametrize("classes", [2, 19, 150])
def test_about_one_pixel_in_eight_is_hard_whatever_the_number_of_classes(classes: int) -> None:
    case = Case(batch=1, classes=classes, size=64)
    inputs = make_inputs(case)
    valid = inputs.target != case.ignore_index
    labels = inputs.target.long().masked_fill(~valid, 0).unsqueeze(1)
    probability = inputs.logits.detach().softmax(1).gather(1, labels).squeeze(1)[valid]
    assert 0.08 < (probability < THRESHOLD).float().mean() < 0.18
    assert 0.08 < 1 - valid.float().mean() < 0.12


def test_equal_cases_give_equal_inputs_in_the_layout_asked_for() -> None:
    case = replace(SMALL, memory_format="channels_last", dtype="bfloat16", target_dtype="int16", ignored=0.5)
    inputs, again = make_inputs(case), make_inputs(case)
    assert inputs.logits.is_contiguous(memory_format=torch.channels_last)
    assert inputs.logits.dtype == torch.bfloat16
    assert inputs.target.dtype == torch.int16
    assert int(inputs.target.min()) == case.ignore_index == -1
    assert inputs.logits.equal(again.logits)
    assert inputs.target.equal(again.target)
    assert case.logits_bytes == inputs.logits.nbytes


def test_a_missing_library_or_compiler_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segtrain.benchmark.subjects.find_spec", lambda name: None)
    assert SUBJECTS["monai_dice_ce"].missing("cpu") == "monai is not installed"
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    assert "C++ compiler" in (SUBJECTS["plain_compiled"].missing("cpu") or "")
    assert SUBJECTS[HEADLINE].missing("cpu") is None
