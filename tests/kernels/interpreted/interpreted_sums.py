"""The Triton class sums, interpreted: sums and gradients of every number of classes, layout and option."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from segtrain.kernels import triton_softmax
from segtrain.kernels.mining import HardExamples
from segtrain.losses.class_sums import target_pixels

LAYOUTS = (
    "channels_last",
    "crop",
    "transposed",
    "one pixel",
    "some of the channels",
    "every second image",
    "channels_last, every second image",
    "one image for all",
)
SOME_SUMS = ((), ("log_mass",), ("probability",), ("cross_entropy", "focal"), ("squared_probability",))
FLOATS = (torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.parametrize(
    ("classes", "labels_as"),
    [
        (1, torch.int32),
        (2, torch.int64),
        (3, torch.uint8),
        pytest.param(19, torch.uint8, marks=pytest.mark.slow),
        (33, torch.int16),
        pytest.param(64, torch.int32, marks=pytest.mark.slow),
        pytest.param(65, torch.uint8, marks=pytest.mark.slow),
        pytest.param(150, torch.int16, marks=pytest.mark.slow),
        pytest.param(300, torch.int64, marks=pytest.mark.slow),
    ],
)
def test_softmax_sums_and_gradients_are_the_plain_ones(classes: int, labels_as: torch.dtype, oracle: Any) -> None:
    size = oracle.pick(((5, 7), (1, 7), (3, 11))) if classes < 30 else (1, 7)
    options = ("shift", "margin", "weight", "keep", "scale", "gammas")
    images = 2 if classes < 30 else 1
    inputs, request = oracle.case(
        classes=classes,
        images=images,
        size=size,
        options=options,
        dtype=oracle.pick(FLOATS),
        labels_as=labels_as,
    )
    oracle.check(inputs, request)


@pytest.mark.parametrize("classes", [19, pytest.param(24, marks=pytest.mark.slow)])
def test_the_usual_terms_are_summed_right_in_registers_or_by_tiles(classes: int, oracle: Any) -> None:
    wanted = ("probability", "intersection", "cross_entropy", "focal")
    oracle.check(*oracle.case(classes=classes, images=1, size=(1, 7), wanted=wanted, dtype=torch.bfloat16))


@pytest.mark.parametrize(
    "classes", [3, pytest.param(1, marks=pytest.mark.slow), pytest.param(9, marks=pytest.mark.slow)]
)
def test_sigmoid_sums_and_gradients_are_the_plain_ones(classes: int, oracle: Any) -> None:
    options = ("shift", "margin", "weight", "keep", "scale", "gammas")
    size = (3, 7) if classes < 9 else (1, 7)
    inputs, request = oracle.case(classes=classes, size=size, sigmoid=True, options=options, dtype=oracle.pick(FLOATS))
    oracle.check(inputs, request)


@pytest.mark.parametrize(
    ("classes", "sigmoid", "layout"),
    [
        *((4, False, layout) for layout in (*LAYOUTS[:5], "one image for all")),
        (26, False, "channels_last"),
        (26, False, "some of the channels"),
        (3, True, "channels_last, every second image"),
        (3, True, "crop"),
        *(
            pytest.param(*kind, layout, marks=pytest.mark.slow)
            for kind in ((4, False), (26, False), (3, True))
            for layout in LAYOUTS
        ),
    ],
)
def test_any_strides_give_the_same(classes: int, sigmoid: bool, layout: str, oracle: Any) -> None:
    size = (1, 1) if layout == "one pixel" else (3, 7)
    inputs, request = oracle.case(classes=classes, sigmoid=sigmoid, size=size)
    logits = inputs.logits
    if layout == "channels_last":
        logits = logits.contiguous(memory_format=torch.channels_last)
    elif layout == "crop":
        logits = torch.nn.functional.pad(logits, (2, 3, 1, 1), value=float("nan"))[..., 1:-1, 2:-3]
    elif layout == "transposed":
        logits = logits.transpose(2, 3).contiguous().transpose(2, 3)
    elif layout == "some of the channels":
        logits = torch.nn.functional.pad(logits, (0, 0, 0, 0, 1, 2), value=float("nan"))[:, 1:-2]
    elif layout.endswith("every second image"):
        logits = logits.repeat_interleave(2, 0)
        form = torch.channels_last if layout.startswith("channels_last") else torch.contiguous_format
        logits = logits.contiguous(memory_format=form)[::2]
    elif layout == "one image for all":
        inputs = replace(inputs, target=inputs.target[:1].expand_as(inputs.target))
        logits = logits[:1].expand_as(logits)
    inputs = replace(inputs, logits=logits, target=inputs.target.transpose(-1, -2).contiguous().transpose(-1, -2))
    oracle.check(inputs, request)


@pytest.mark.parametrize(
    ("classes", "wanted"),
    [
        *((3, wanted) for wanted in SOME_SUMS),
        (26, ("log_mass",)),
        *(pytest.param(26, wanted, marks=pytest.mark.slow) for wanted in SOME_SUMS if wanted != ("log_mass",)),
    ],
)
def test_each_sum_stands_alone(classes: int, wanted: tuple[str, ...], oracle: Any) -> None:
    options = oracle.pick(((), ("weight",), ("margin",), ("keep", "shift")))
    inputs, request = oracle.case(classes=classes, images=1, size=(1, 7), options=options, wanted=wanted)
    oracle.check(inputs, request)


@pytest.mark.parametrize(
    ("classes", "last"),
    [
        (1, False),
        (3, True),
        (26, False),
        *(pytest.param(*kind, marks=pytest.mark.slow) for kind in ((3, False), (26, True), (300, False))),
    ],
)
def test_the_largest_logits_are_counted_as_torch_finds_them(classes: int, last: bool, oracle: Any) -> None:
    options = ("shift", "margin", "weight", "keep", "predictions")
    inputs, request = oracle.case(classes=classes, size=(3, 7), options=options, ignored=0.3, wanted=("probability",))
    logits = torch.randint(-2, 3, inputs.logits.shape, generator=oracle.draw) * oracle.pick((1.0, -1.0))  # ties, and -0
    logits[:, classes // 2, 0] = oracle.pick((float("inf"), float("-inf"), float("nan")))
    logits[0, :, 1] = oracle.pick((float("-inf"), float("nan"), 0.0))
    logits[1, -1, 1] = float("nan")
    logits = logits.contiguous(memory_format=torch.channels_last) if last else logits
    _, counts, _ = oracle.backend(request).forward(replace(inputs, logits=logits), request)
    valid, found = inputs.target != request.ignore_index, logits.argmax(1)
    of_class = found.unsqueeze(1) == torch.arange(classes).view(-1, 1, 1)
    for row, pixels in zip(counts[2:], (valid, valid & (found == inputs.target)), strict=True):
        assert torch.equal(row, (of_class & pixels.unsqueeze(1)).sum((2, 3)).double())


def test_largest_logits_are_counted_with_mining_and_cost_no_other_sum(oracle: Any) -> None:
    for rule in (HardExamples(threshold=0.5, min_kept=0.1), HardExamples(threshold=1e-6, min_kept=0.4)):
        inputs, request = oracle.case(classes=3, images=1, size=(1, 7), rule=rule, options=("predictions",))
        oracle.check(inputs, request)
        sums, counts, _ = oracle.backend(request).forward(inputs, replace(request, predictions=False))
        assert len(counts) == 2
        assert torch.equal(sums, oracle.backend(request).forward(inputs, request)[0])


@pytest.mark.parametrize("labels_as", [torch.uint8, torch.int64])
def test_a_target_alone_gives_its_pixels(labels_as: torch.dtype, oracle: Any) -> None:
    inputs, request = oracle.case(classes=19, labels_as=labels_as)
    settings = {"num_classes": 19, "ignore_index": request.ignore_index}
    found, _ = triton_softmax.count_largest(inputs.target, inputs.target, **settings)
    assert torch.equal(found, target_pixels(inputs.target, **settings))
    assert triton_softmax.count_largest(inputs.target[:0], inputs.target[:0], **settings)[0].shape == (0, 19)
