"""The Triton class sums, interpreted: hard-example mining by every rule, and cases drawn of all there is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from segtrain.kernels import triton_ranks, triton_softmax
from segtrain.kernels.mining import HardExamples
from segtrain.kernels.request import Request

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
RULES = {
    "threshold": HardExamples(threshold=0.5, min_kept=0.1),
    "threshold that keeps too few": HardExamples(threshold=1e-6, min_kept=0.37),
    "threshold of all": HardExamples(threshold=1.0),
    "number": HardExamples(threshold=1e-6, min_kept=7),
    "top k": HardExamples(top_k=0.25),
    "top k per class": HardExamples(top_k=0.25, per_class=True),
    "threshold per class": HardExamples(threshold=0.3, min_kept=3, per_class=True),
}
MINED_KINDS = ((3, False), (25, False), (2, True))  # classes, sigmoid


@pytest.mark.parametrize(
    ("name", "classes", "sigmoid"),
    [
        ("threshold", 3, False),
        ("threshold that keeps too few", 25, False),
        ("top k", 2, True),
        ("top k per class", 3, False),
        *(pytest.param(name, *kind, marks=pytest.mark.slow) for name in RULES for kind in MINED_KINDS),
    ],
)
def test_mining_keeps_what_its_rule_does(
    name: str, classes: int, sigmoid: bool, oracle: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[triton_ranks.Mined] = []
    prepare = triton_ranks.Mined.prepare
    monkeypatch.setattr(triton_ranks.Mined, "prepare", lambda *args: seen.append(prepare(*args)) or seen[-1])
    inputs, request = oracle.case(classes=classes, sigmoid=sigmoid, images=1, options=("weight",), rule=RULES[name])
    oracle.check(inputs, request)
    assert torch.equal(seen[-1].mask.bool(), by_rule(RULES[name], seen[-1].losses, inputs.target, request, classes))


def by_rule(rule: HardExamples, losses: Tensor, target: Tensor, request: Request, classes: int) -> Tensor:
    labels, groups = target.long(), classes
    if request.sigmoid:
        groups = 2 * classes
        labels = labels + 2 * torch.arange(classes).view(1, -1, 1, 1)
    return rule(losses, labels.masked_fill(target == request.ignore_index, groups), num_buckets=groups)


@pytest.mark.parametrize(
    ("per_class", "sigmoid"),
    [
        (False, False),
        (True, True),
        pytest.param(False, True, marks=pytest.mark.slow),
        pytest.param(True, False, marks=pytest.mark.slow),
    ],
)
def test_of_equal_losses_the_first_are_kept(per_class: bool, sigmoid: bool, oracle: Any) -> None:
    part = oracle.pick((0.001, float(torch.rand((), generator=oracle.draw))))
    shape = (2, 3, 2, 7) if sigmoid else (2, 5, 7)
    target = torch.randint(0, 2 if sigmoid else 3, shape, generator=oracle.draw)
    target[torch.rand(shape, generator=oracle.draw) < 0.2] = 255
    losses = torch.tensor([0.0, 1e-9, 0.25, 0.5, 3e38])[torch.randint(0, 5, shape, generator=oracle.draw)]
    losses = losses.masked_fill(target == 255, 0.0)
    for rule in (
        HardExamples(top_k=part, per_class=per_class),
        HardExamples(threshold=0.7, min_kept=part, per_class=per_class),
    ):
        request = Request((), sigmoid, 255, (2.0,), 1.0)
        mined = triton_ranks.Mined.prepare(rule, target)
        mined.losses.copy_(losses)
        mined.mask.copy_((losses > mined.cut) & (target != 255))
        mined.counts.copy_(torch.stack(((target != 255).sum(), mined.mask.sum())))
        mined.finish(target, ignore_index=255, sigmoid=sigmoid, num_classes=3)
        assert torch.equal(mined.mask.bool(), by_rule(rule, losses, target, request, 3)), (rule, part)


def test_numbers_of_pixels_are_rounded_as_the_rule_rounds_them() -> None:
    for valid in (0, 1, 5, 10):
        for part in (0.1, 0.5):
            losses = torch.arange(1.0, 17.0).view(1, 1, 16)
            target = torch.zeros(1, 1, 16, dtype=torch.int64).masked_fill(torch.arange(16) >= valid, 255)
            mined = triton_ranks.Mined.prepare(HardExamples(top_k=part), target)
            mined.losses.copy_(losses)
            mined.counts.copy_(torch.tensor([valid, 0]))
            mined.finish(target, ignore_index=255, sigmoid=False, num_classes=3)
            request = Request((), False, 255, (2.0,), 1.0)
            assert torch.equal(mined.mask.bool(), by_rule(mined.rule, losses, target, request, 3)), (valid, part)


def test_a_loss_that_is_no_number_is_kept_and_seen(oracle: Any) -> None:
    inputs, request = oracle.case(classes=3, size=(1, 7), ignored=0.0, rule=RULES["top k"])
    inputs.logits[0, 0, 0, 5] = float("nan")
    sums, _, mask = triton_softmax.forward(inputs, request)
    assert bool(mask[0, 0, 5])
    assert bool(sums[request.wanted.index("cross_entropy")].isnan().any())


@pytest.mark.slow
@pytest.mark.parametrize("number", range(40))
def test_drawn_cases_are_the_plain_ones(number: int, oracle: Any) -> None:
    sigmoid = bool(number % 3 == 2)
    options = tuple(
        name
        for name in ("shift", "margin", "weight", "keep", "scale", "gammas", "predictions")
        if torch.rand((), generator=oracle.draw) < 0.4
    )
    rule = oracle.pick((None, *RULES.values()))
    inputs, request = oracle.case(
        classes=oracle.pick((1, 2, 3, 7, 19, 24, 25, 33, 64, 65, 150, 256, 300)),
        size=oracle.pick(((1, 1), (1, 7), (5, 7), (13, 17), (8, 64))),
        images=oracle.pick((1, 2, 3)),
        sigmoid=sigmoid,
        options=options if rule is None else tuple(name for name in options if name != "keep"),
        dtype=oracle.pick(FLOATS),
        scale=oracle.pick((0.3, 3.0, 100.0)),
        rule=rule,
    )
    if torch.rand((), generator=oracle.draw) < 0.5:
        inputs = replace(inputs, logits=inputs.logits.contiguous(memory_format=torch.channels_last))
    oracle.check(inputs, request)
