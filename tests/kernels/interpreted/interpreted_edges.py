"""The Triton class sums, interpreted: the largest and smallest logits, no pixels, wrong labels, equal bits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from segtrain.kernels.class_sums import names_of_sums
from segtrain.kernels.mining import HardExamples
from segtrain.kernels.request import SUMS, Inputs, Request, encode_mining

TOP_K = HardExamples(top_k=0.25)


@pytest.mark.parametrize(
    ("classes", "sigmoid"), [(3, False), pytest.param(26, False, marks=pytest.mark.slow), (2, True)]
)
def test_a_batch_without_a_valid_pixel_has_sums_and_gradients_of_0(classes: int, sigmoid: bool, oracle: Any) -> None:
    rule = oracle.pick((None, TOP_K, HardExamples(threshold=0.5, min_kept=0.1)))
    inputs, request = oracle.case(classes=classes, sigmoid=sigmoid, images=1, size=(1, 7), ignored=1.0, rule=rule)
    oracle.check(inputs, request)


@pytest.mark.parametrize("scale", [1e4, 0.0])
@pytest.mark.parametrize(("classes", "sigmoid"), [(3, False), (26, False), (2, True)])
def test_extreme_logits_lose_nothing(classes: int, sigmoid: bool, scale: float, oracle: Any) -> None:
    inputs, request = oracle.case(
        classes=classes, sigmoid=sigmoid, images=1, size=(1, 7), scale=scale, options=("gammas",)
    )
    apart = replace(inputs, logits=(inputs.logits / 64).round() * 64)  # equal, or so far apart that the least is 0
    oracle.check(apart, request, ratios=0.0)


def test_the_largest_float16_is_summed_right(oracle: Any) -> None:
    inputs, request = oracle.case(classes=5, size=(1, 7), dtype=torch.float16, ignored=0.0)
    signs = torch.randn(inputs.logits.shape, generator=oracle.draw).sign()
    oracle.check(replace(inputs, logits=(65504 * signs).half()), request, ratios=0.0)


@pytest.mark.parametrize(
    ("classes", "sigmoid"),
    [
        (3, False),
        (2, True),
        pytest.param(2, False, marks=pytest.mark.slow),
        pytest.param(26, False, marks=pytest.mark.slow),
    ],
)
def test_a_class_made_impossible_harms_no_pixel_of_another(classes: int, sigmoid: bool, oracle: Any) -> None:
    wanted = ("probability", "squared_probability", "intersection", "cross_entropy", "focal")
    options = ("predictions",)
    inputs, request = oracle.case(classes=classes, sigmoid=sigmoid, size=(1, 7), wanted=wanted, options=options)
    last = inputs.target[:, -1] if sigmoid else inputs.target  # no pixel is of the last class, of which all say −∞
    last.masked_fill_(last == (1 if sigmoid else classes - 1), 0)
    inputs.logits[:, -1] = float("-inf")
    sums, counts, _ = oracle.backend(request).forward(inputs, request)
    slopes = torch.ones(sums.shape, dtype=torch.float64)
    found = (sums, counts, oracle.backend(request).backward(slopes, inputs, request))
    inputs.logits[:, -1] = -1e4
    sums, counts, _ = oracle.backend(request).forward(inputs, request)
    expected = (sums, counts, oracle.backend(request).backward(slopes, inputs, request))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    ("classes", "sigmoid", "gamma"),
    [
        (3, False, 0.5),
        (26, False, 2.0),
        (3, True, 0.5),
        pytest.param(3, False, 2.0, marks=pytest.mark.slow),
        pytest.param(26, False, 0.5, marks=pytest.mark.slow),
        pytest.param(3, True, 2.0, marks=pytest.mark.slow),
    ],
)
def test_pixels_that_are_all_but_certain_keep_their_digits(
    classes: int, sigmoid: bool, gamma: float, oracle: Any
) -> None:
    logits = torch.full((1, classes, 1, 4), -1.0)
    logits[:, -1] = torch.tensor([4.0, 8.0, 14.0, 20.0])
    target = torch.ones(1, classes, 1, 4) if sigmoid else torch.full((1, 1, 4), classes - 1)
    for name in ("probability", "squared_probability", "intersection", "cross_entropy", "focal")[
        :: 1 if classes < 26 else 2
    ]:
        inputs, request = Inputs(logits, target.byte()), Request((name,), sigmoid, 255, (gamma,), 1.0)
        exact, leaf = oracle.in_double(inputs, request)
        sums, _, _ = oracle.backend(request).forward(inputs, request)
        rows = torch.stack([exact[row] for row in names_of_sums((name,), sigmoid=sigmoid)])
        torch.testing.assert_close(sums, rows.detach(), rtol=1e-5, atol=1e-30)
        slopes = torch.arange(1.0, rows.numel() + 1, dtype=torch.float64).view(rows.shape)
        (expected,) = torch.autograd.grad((rows * slopes).sum(), leaf)
        found = oracle.backend(request).backward(slopes, inputs, request).double()
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize(
    ("classes", "sigmoid"),
    [(3, False), pytest.param(26, False, marks=pytest.mark.slow), pytest.param(2, True, marks=pytest.mark.slow)],
)
def test_equal_inputs_give_equal_bits(classes: int, sigmoid: bool, oracle: Any) -> None:
    inputs, request = oracle.case(classes=classes, sigmoid=sigmoid, images=1, size=(1, 7), rule=TOP_K)
    before = [value.clone() for value in (inputs.logits, inputs.target)]
    first, second = oracle.backend(request).forward(inputs, request), oracle.backend(request).forward(inputs, request)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    slopes = torch.randn(first[0].shape, generator=oracle.draw, dtype=torch.float64)
    kept = replace(inputs, keep=first[2]), replace(request, mining=())
    assert torch.equal(oracle.backend(request).backward(slopes, *kept), oracle.backend(request).backward(slopes, *kept))
    for old, new in zip(before, (inputs.logits, inputs.target), strict=True):
        assert torch.equal(old.nan_to_num(7.0), new.nan_to_num(7.0))


@pytest.mark.parametrize(("classes", "sigmoid"), [(3, False), (26, False), (2, True)])
def test_a_label_out_of_range_makes_the_counts_nan(classes: int, sigmoid: bool, oracle: Any) -> None:
    inputs, request = oracle.case(classes=classes, sigmoid=sigmoid, size=(1, 7))
    inputs = replace(inputs, target=inputs.target.long())
    inputs.target.view(-1)[3] = 26
    sums, counts, _ = oracle.backend(request).forward(inputs, request)
    assert bool(counts[0].isnan().any())
    oracle.backend(request).backward(torch.ones_like(sums), inputs, request)  # and reads nothing beyond its tables


@pytest.mark.parametrize("shape", [(0, 3, 2, 2), (2, 3, 0, 2)])
@pytest.mark.parametrize("sigmoid", [False, True])
def test_no_pixel_at_all_is_no_error(shape: tuple[int, ...], sigmoid: bool, oracle: Any) -> None:
    target = torch.zeros(shape if sigmoid else (shape[0], *shape[2:]), dtype=torch.uint8)
    wanted = tuple(name for name in SUMS if not (sigmoid and name == "log_mass"))
    request = Request(wanted, sigmoid, 255, (2.0,), 1.0, encode_mining(TOP_K), predictions=not sigmoid)
    inputs = Inputs(torch.zeros(shape), target)
    sums, counts, mask = oracle.backend(request).forward(inputs, request)
    assert len(counts) == 4
    assert not bool(sums.any())
    assert not bool(counts.any())
    assert mask.shape == target.shape
    assert oracle.backend(request).backward(torch.zeros_like(sums), inputs, request).shape == shape
