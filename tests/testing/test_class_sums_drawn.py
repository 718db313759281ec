"""Class sums against their definitions on drawn shapes, strides, types, ignore patterns and 1 to 300 classes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import Tensor

from segtrain.errors import DataError
from segtrain.losses import class_sums

SOFTMAX = ("probability", "squared_probability", "intersection", "cross_entropy", "focal", "log_mass")
SIGMOID = SOFTMAX[:-1]
NEGATIVES = ("negatives", "cross_entropy_negatives", "focal_negatives")
LAYOUTS = ("contiguous", "channels_last", "sliced", "transposed", "flipped channels")
PATTERNS = ("none", "some", "an image", "all", "all but one")


@dataclass(frozen=True)
class Case:
    """What one example is drawn from."""

    images: int
    num_classes: int
    size: tuple[int, int]
    layout: str
    dtype: torch.dtype
    target_dtype: torch.dtype
    pattern: str
    ignore_index: int
    gamma: float | None  # None: one for each class
    shifted: bool
    margined: bool
    scale: float
    weighted: bool
    masked: bool
    spread: float
    seed: int


@st.composite
def cases(draw: st.DrawFn) -> Case:
    num_classes = draw(st.sampled_from((1, 2, 3, 4, 19)) | st.integers(1, 300))
    side = st.integers(1, 12 if num_classes <= 64 else 5)
    target_dtype = draw(st.sampled_from((torch.uint8, torch.int16, torch.int32, torch.int64)))
    ignored = (0, 1, 255) if target_dtype == torch.uint8 else (-100, -1, 0, 1, 255)
    return Case(
        images=draw(st.integers(1, 3)),
        num_classes=num_classes,
        size=(draw(side), draw(side)),
        layout=draw(st.sampled_from(LAYOUTS)),
        dtype=draw(st.sampled_from((torch.float16, torch.bfloat16, torch.float32, torch.float64))),
        target_dtype=target_dtype,
        pattern=draw(st.sampled_from(PATTERNS)),
        ignore_index=draw(st.sampled_from(ignored)),
        gamma=draw(st.sampled_from((0.0, 0.5, 1.0, 2.0, 3.0, None))),
        shifted=draw(st.booleans()),
        margined=draw(st.booleans()),
        scale=draw(st.sampled_from((1.0, 1.0, 0.5, 3.0))),
        weighted=draw(st.booleans()),
        masked=draw(st.booleans()),
        spread=draw(st.sampled_from((0.1, 2.0, 12.0))),
        seed=draw(st.integers(0, 2**31)),
    )


@dataclass(frozen=True)
class Batch:
    logits: Tensor
    target: Tensor
    valid: Tensor
    options: dict[str, Any]


def lay_out(logits: Tensor, layout: str) -> Tensor:
    """The same values in other strides."""
    match layout:
        case "channels_last":
            return logits.contiguous(memory_format=torch.channels_last)
        case "sliced":
            return logits.repeat_interleave(3, dim=3).repeat_interleave(2, dim=1)[:, ::2, :, 1::3]
        case "transposed":
            return logits.transpose(2, 3).contiguous().transpose(2, 3)
        case "flipped channels":
            return logits.movedim(0, 2).contiguous().movedim(2, 0)
        case _:
            return logits


def ignored_pixels(case: Case, generator: torch.Generator) -> Tensor:
    shape = (case.images, *case.size)
    match case.pattern:
        case "some":
            return torch.rand(shape, generator=generator) < 0.4
        case "an image":
            return (torch.arange(case.images) == 0).view(-1, 1, 1).expand(shape)
        case "all":
            return torch.ones(shape, dtype=torch.bool)
        case "all but one":
            return torch.arange(torch.Size(shape).numel()).view(shape) > 0
        case _:
            return torch.zeros(shape, dtype=torch.bool)


def make(case: Case, *, sigmoid: bool) -> Batch:
    generator = torch.Generator().manual_seed(case.seed)
    classes = case.num_classes
    logits = case.spread * torch.randn(case.images, classes, *case.size, generator=generator)
    shape = tuple(logits.shape) if sigmoid else (case.images, *case.size)
    top = 2 if sigmoid else classes
    ignore_index = case.ignore_index
    if not sigmoid and case.target_dtype == torch.uint8:
        top = min(top, 256)
    labels = torch.randint(0, top, shape, generator=generator)
    ignored = ignored_pixels(case, generator)
    ignored = ignored[:, None].expand(shape) if sigmoid else ignored
    target = labels.masked_fill(ignored, ignore_index)
    options: dict[str, Any] = {
        "ignore_index": ignore_index,
        "gamma": torch.linspace(0, 3, classes).tolist() if case.gamma is None else case.gamma,
        "scale": case.scale,
    }
    if case.shifted:
        options["shift"] = torch.randn(classes, generator=generator)
    if case.margined:
        options["margin"] = torch.rand(classes, generator=generator)
    if case.weighted:
        options["pixel_weight"] = torch.rand(case.images, *case.size, generator=generator)
    if case.masked:
        options["keep"] = torch.rand(shape, generator=generator) < 0.5
    laid_out = lay_out(logits.to(case.dtype), case.layout)
    return Batch(laid_out, target.to(case.target_dtype), target != ignore_index, options)


def defined(logits: Tensor, batch: Batch, *, sigmoid: bool) -> dict[str, Tensor]:
    """The sums by their definitions, in float64 autograd, from the logits given."""
    options, classes = batch.options, logits.shape[1]
    target = batch.target.long()
    if sigmoid:
        label, other, valid = (target == 1) & batch.valid, (target == 0) & batch.valid, batch.valid
    else:
        one_hot = F.one_hot(target.masked_fill(~batch.valid, 0), classes).movedim(-1, 1).bool()
        valid = batch.valid[:, None]
        label, other = one_hot & valid, ~one_hot & valid
    scores = logits.double()
    if "shift" in options:
        scores = scores + options["shift"].double().view(1, -1, 1, 1)
    if "margin" in options:
        scores = scores - label * options["margin"].double().view(1, -1, 1, 1)
    scores = scores * options["scale"]
    log_p = F.logsigmoid(scores) if sigmoid else scores.log_softmax(1)
    log_q = F.logsigmoid(-scores) if sigmoid else log_of_the_others(scores, label)
    weight = options.get("pixel_weight", torch.ones(logits.shape[0], *logits.shape[2:])).double()[:, None] * valid
    keep = options.get("keep", torch.ones_like(batch.valid))
    kept = weight * (keep if sigmoid else keep[:, None])
    gamma = torch.as_tensor(options["gamma"], dtype=torch.float64).view(1, -1, 1, 1)
    focal, focal_other = (gamma * log_q).exp() * -log_p, (gamma * log_p).exp() * -log_q
    sums = {
        "pixels": label * weight,
        "kept": label * kept,
        "probability": log_p.exp() * weight,
        "squared_probability": (2 * log_p).exp() * weight,
        "intersection": label * log_p.exp() * weight,
        "cross_entropy": -log_p * label * kept,
        "focal": torch.where(label, focal, 0) * kept,
    }
    if sigmoid:
        sums |= {"negatives": other * weight, "cross_entropy_negatives": -log_q * other * kept}
        sums |= {"focal_negatives": torch.where(other, focal_other, 0) * kept}
    else:
        sums |= {"log_mass": -log_p * kept}
    return {name: value.sum((2, 3)) for name, value in sums.items()}


def log_of_the_others(scores: Tensor, label: Tensor) -> Tensor:
    """log(1 − p) where the class is the label, finite elsewhere; a single class leaves no others."""
    if scores.shape[1] == 1:
        return torch.full_like(scores, -1e30)
    others = scores.masked_fill(label, -torch.inf).logsumexp(1, keepdim=True)
    return (others - scores.logsumexp(1, keepdim=True)).expand_as(scores)


def weigh(sums: dict[str, Tensor]) -> Tensor:
    """A scalar in which every sum of every class and image has a factor of its own, of either sign."""
    values = torch.stack(list(sums.values()))
    return (values * torch.linspace(-1, 1.5, values.numel(), dtype=torch.float64).view_as(values)).sum()


def check(case: Case, *, sigmoid: bool) -> None:
    batch = make(case, sigmoid=sigmoid)
    wanted = SIGMOID if sigmoid else SOFTMAX
    activation = "sigmoid" if sigmoid else "softmax"
    before = batch.logits.clone(), batch.target.clone()
    leaf = batch.logits.detach().requires_grad_()
    found = class_sums(leaf, batch.target, activation=activation, wanted=wanted, **batch.options)
    exact = batch.logits.detach().double().requires_grad_()
    expected = defined(exact, batch, sigmoid=sigmoid)

    tight = case.dtype == torch.float64
    precision = {"rtol": 1e-9, "atol": 1e-9} if tight else {"rtol": 2e-5, "atol": 2e-5}
    names = ("pixels", "kept", *wanted, *(NEGATIVES if sigmoid else ()))
    for name in names:
        torch.testing.assert_close(
            getattr(found, name), expected[name], **precision, msg=partial("{}: {}".format, name)
        )
        assert getattr(found, name).dtype == torch.float64
    differentiable = [name for name in names if name not in ("pixels", "kept", "negatives")]
    (gradient,) = torch.autograd.grad(weigh({name: getattr(found, name) for name in differentiable}), leaf)
    (exact_gradient,) = torch.autograd.grad(weigh({name: expected[name] for name in differentiable}), exact)
    coarse = {torch.float16: 2e-3, torch.bfloat16: 1e-2, torch.float32: 5e-5, torch.float64: 1e-8}[case.dtype]
    assert gradient.dtype == case.dtype
    torch.testing.assert_close(gradient.double(), exact_gradient, rtol=coarse, atol=coarse)
    everywhere = batch.valid if sigmoid else batch.valid[:, None].expand_as(gradient)
    assert not gradient[~everywhere].any()
    assert torch.equal(before[0], batch.logits)
    assert torch.equal(before[1], batch.target)


@given(case=cases())
@settings(max_examples=80, deadline=None, derandomize=True, database=None)
def test_softmax_sums_and_gradients_are_those_of_the_definitions(case: Case) -> None:
    check(case, sigmoid=False)


@given(case=cases())
@settings(max_examples=80, deadline=None, derandomize=True, database=None)
def test_sigmoid_sums_and_gradients_are_those_of_the_definitions(case: Case) -> None:
    check(case, sigmoid=True)


@pytest.mark.slow
@given(case=cases(), sigmoid=st.booleans())
@settings(max_examples=400, deadline=None, derandomize=True, database=None)
def test_sums_and_gradients_are_those_of_the_definitions_in_many_more_draws(case: Case, sigmoid: bool) -> None:
    check(case, sigmoid=sigmoid)


@given(case=cases(), sigmoid=st.booleans())
@settings(max_examples=30, deadline=None, derandomize=True, database=None)
def test_each_sum_alone_is_what_it_is_among_all(case: Case, sigmoid: bool) -> None:
    batch = make(case, sigmoid=sigmoid)
    activation = "sigmoid" if sigmoid else "softmax"
    together = class_sums(batch.logits, batch.target, activation=activation, **batch.options)
    for name in SIGMOID if sigmoid else SOFTMAX:
        alone = class_sums(batch.logits, batch.target, activation=activation, wanted=(name,), **batch.options)
        torch.testing.assert_close(getattr(alone, name), getattr(together, name), rtol=1e-6, atol=1e-6)
        others = set(SIGMOID if sigmoid else SOFTMAX) - {name}
        assert all(getattr(alone, other) is None for other in others)


@given(case=cases(), sigmoid=st.booleans())
@settings(max_examples=25, deadline=None, derandomize=True, database=None)
def test_equal_inputs_give_equal_bits_in_sums_and_gradients(case: Case, sigmoid: bool) -> None:
    batch = make(case, sigmoid=sigmoid)
    wanted = SIGMOID if sigmoid else SOFTMAX
    results = []
    for _ in range(2):
        leaf = batch.logits.detach().requires_grad_()
        sums = class_sums(
            leaf, batch.target, activation="sigmoid" if sigmoid else "softmax", wanted=wanted, **batch.options
        )
        total = weigh({name: getattr(sums, name) for name in wanted})
        results.append((total.detach(), torch.autograd.grad(total, leaf)[0]))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


@pytest.mark.parametrize("ignore_index", [-100, -1, 3, 4, 255, 2**31, 10**12])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64])
def test_the_label_after_the_last_class_raises_whatever_the_ignored_one_and_its_presence(
    dtype: torch.dtype, ignore_index: int
) -> None:
    logits = torch.zeros(2, 3, 4, 5)
    target = (torch.arange(40).view(2, 4, 5) % 3).to(dtype)
    pixels = class_sums(logits, target, ignore_index=ignore_index, wanted=("cross_entropy",)).pixels
    assert pixels.tolist() == [[7, 7, 6], [7, 6, 7]]
    wrong = 3 if ignore_index != 3 else 4
    target[1, 2, 3] = wrong
    with pytest.raises(DataError, match=rf"{wrong} \(1 pixels\)"):
        class_sums(logits, target, ignore_index=ignore_index, wanted=("cross_entropy",))
