"""The Triton kernels of the class sums in Triton's interpreter, on CPU tensors, against the plain sums in float64.

Started by `test_triton_class_sums` in a process of its own with TRITON_INTERPRET=1; the name keeps it out of the usual
collection. Inputs are drawn anew in every run: SEGTRAIN_TEST_SEED repeats those of a run that failed. What the kernels
write to is poisoned first. Tolerances come from what float32 makes of scores of a size (`rounding`), so that no draw
decides. Nor does a pixel on the edge of a mining rule, which float64 may rank elsewhere: the reference sums the pixels
that the kernels kept, and which those must be the rule says of the kernels' own losses.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from segtrain.kernels import triton_ranks, triton_sigmoid, triton_softmax
from segtrain.kernels.class_sums import names_of_sums
from segtrain.kernels.launch import Launch
from segtrain.kernels.mining import HardExamples
from segtrain.kernels.request import SUMS, Inputs, Request, encode_mining
from segtrain.losses.plain_sums import plain_sums

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, of the infinities that Triton selects away
SEED = int(os.environ.get("SEGTRAIN_TEST_SEED") or int.from_bytes(os.urandom(4), "little"))
TARGETS = (torch.uint8, torch.int16, torch.int32, torch.int64)
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
SOME_SUMS = ((), ("log_mass",), ("probability",), ("cross_entropy", "focal"), ("squared_probability",))
LAYOUTS = ("channels_last", "crop", "transposed", "one pixel")
MINED_KINDS = ((3, False), (25, False), (2, True))  # classes, sigmoid


@pytest.fixture
def draw(request: pytest.FixtureRequest) -> torch.Generator:
    """Random numbers of this run and test."""
    sys.stderr.write(f"SEGTRAIN_TEST_SEED={SEED}\n")
    name = sum(ord(letter) * (place + 1) for place, letter in enumerate(request.node.name))
    return torch.Generator().manual_seed(SEED + name)


@pytest.fixture(autouse=True)
def _poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """NaN, or 77, in all memory that is not asked to be 0."""

    def poisoned(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def made(*args: Any, **options: Any) -> Tensor:
            values = make(*args, **options)
            return values.fill_(float("nan") if values.is_floating_point() else 1 if values.dtype == torch.bool else 77)

        return made

    monkeypatch.setattr(torch, "empty", poisoned(torch.empty))
    monkeypatch.setattr(torch, "empty_like", poisoned(torch.empty_like))
    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned(torch.Tensor.new_empty))


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of a few pixels, so that small images are cut into several, shared by two programs."""
    small = Launch(block=32, warps=1, programs=4)
    monkeypatch.setattr(triton_softmax, "columns", lambda *_, **__: small)
    monkeypatch.setattr(triton_softmax, "tiles", lambda _: replace(small, block=8))
    monkeypatch.setattr(triton_softmax, "LABELS", small)
    monkeypatch.setattr(
        triton_sigmoid, "binary", lambda _, *, channels_last: replace(small, block=8 if channels_last else 16)
    )
    monkeypatch.setattr(triton_sigmoid, "BINARY_ELEMENTS", 16)
    monkeypatch.setattr(triton_ranks, "MINING", replace(small, block=64))
    monkeypatch.setattr(triton_ranks, "TIES", replace(small, block=16))
    monkeypatch.setattr(triton_ranks, "TILES_OF_A_RUN", 2)


def pick(options: tuple[Any, ...], generator: torch.Generator) -> Any:
    return options[int(torch.randint(len(options), (), generator=generator))]


def case(
    generator: torch.Generator,
    *,
    classes: int,
    size: tuple[int, int] = (5, 7),
    images: int = 2,
    sigmoid: bool = False,
    options: tuple[str, ...] = (),
    dtype: torch.dtype = torch.float32,
    scale: float = 3.0,
    ignored: float = 0.2,
    rule: HardExamples | None = None,
    wanted: tuple[str, ...] | None = None,
    labels_as: torch.dtype | None = None,
) -> tuple[Inputs, Request]:
    target_type = labels_as or pick(TARGETS if classes < 255 else TARGETS[1:], generator)
    ignore_index = pick((255,) if target_type == torch.uint8 else (255, -1) if classes < 255 else (-1, -100), generator)
    shape = (images, classes, *size)
    logits = (torch.randn(shape, generator=generator, dtype=torch.float64) * scale).to(dtype)
    labels = shape if sigmoid else (images, *size)
    target = torch.randint(0, 2 if sigmoid else classes, labels, generator=generator)
    is_ignored = torch.rand(labels, generator=generator) < ignored
    target = target.masked_fill(is_ignored, ignore_index).to(target_type)
    for spoilt in (float("nan"), float("inf"), float("-inf")):  # what stands under an ignored label must not matter
        under = is_ignored if sigmoid else is_ignored.unsqueeze(1).expand(shape)
        logits = logits.masked_fill(under & (torch.rand(shape, generator=generator) < 0.2), spoilt)

    def vector(name: str) -> Tensor | None:
        return torch.rand(classes, generator=generator) * 2 - 1 if name in options else None

    weight = torch.rand((images, *size), generator=generator) if "weight" in options else None
    keep = torch.rand(labels, generator=generator) < 0.6 if "keep" in options else None
    gamma = tuple(0.5 * (c % 5) for c in range(classes)) if "gammas" in options and classes > 1 else (2.0,)
    names = tuple(name for name in SUMS if not (sigmoid and name == "log_mass")) if wanted is None else wanted
    settings = Request(names, sigmoid, ignore_index, gamma, 1.5 if "scale" in options else 1.0, encode_mining(rule))
    return Inputs(logits, target, vector("shift"), vector("margin"), weight, keep), settings


def rounding(inputs: Inputs, request: Request) -> float:
    """Return by how much the difference of two scores may be off in float32.

    Scale, shift and margin round each of the two to 2^-24 of its size, three times at most, and their difference is
    rounded too. (Where a GPU fuses multiplication and addition it is less; the interpreter does not.)
    """
    ignored = inputs.target == request.ignore_index
    largest = inputs.logits.double().masked_fill(ignored if request.sigmoid else ignored.unsqueeze(1), 0.0).abs()
    added = sum(float(vector.abs().max()) for vector in (inputs.shift, inputs.margin) if vector is not None)
    return 8 * 2.0**-24 * request.scale * (float(largest.max()) + added)


def check(inputs: Inputs, request: Request, generator: torch.Generator, *, ratios: float | None = None) -> None:
    """Compare sums, counts and the gradient for random gradients of the sums with those in float64.

    `ratios` is by what part an exponential may be off, by default `rounding`; 0 says that no two scores are so close
    that their rounding shows in a probability.
    """
    loss_step = rounding(inputs, request)
    ratios = loss_step if ratios is None else ratios
    backend = triton_sigmoid if request.sigmoid else triton_softmax
    sums, counts, mask = backend.forward(inputs, request)
    if request.mining:
        assert mask.dtype == torch.bool
        inputs, request = replace(inputs, keep=mask), replace(request, mining=())
    names = names_of_sums(request.wanted, sigmoid=request.sigmoid)
    exact, leaf = in_double(inputs, request)
    first = ("pixels", "negatives", "kept", "kept_negatives") if request.sigmoid else ("pixels", "kept")
    for name, value in zip((*first, *names), (*counts, *sums), strict=True):
        assert value.dtype == torch.float64
        is_loss = name.startswith(("cross_entropy", "focal", "log_mass"))  # they hold differences of scores
        torch.testing.assert_close(
            value,
            exact[name].detach(),
            rtol=1e-5 + 4 * ratios,
            atol=1e-5 + (loss_step * inputs.logits[0, 0].numel() if is_loss else 0.0),
            msg=lambda text, name=name: f"{name}: {text}",
        )
    slopes = torch.randn(sums.shape, generator=generator, dtype=torch.float64)
    gradient = backend.backward(slopes, inputs, request)
    assert (gradient.dtype, gradient.stride()) == (inputs.logits.dtype, torch.empty_like(inputs.logits).stride())
    total = sum(((exact[name] * row).sum() for name, row in zip(names, slopes, strict=True)), 0.0 * leaf.sum())
    (expected,) = torch.autograd.grad(total, leaf)
    ignored = inputs.target == request.ignore_index
    assert not bool(gradient.masked_select(ignored if request.sigmoid else ignored.unsqueeze(1)).any())
    step = {torch.float32: 1e-5, torch.bfloat16: 2**-8, torch.float16: 2**-11}[gradient.dtype]
    least = 2.0**-24 if gradient.dtype == torch.float16 else 2e-8  # float16 has nothing between its steps near 0
    steepest = request.scale * max((float(row.abs().max()) for row in slopes), default=0.0)
    atol = 2e-5 * float(expected.abs().max()) + 2 * ratios * steepest + least
    torch.testing.assert_close(gradient.double(), expected, rtol=2 * step, atol=atol)


def in_double(inputs: Inputs, request: Request) -> tuple[dict[str, Tensor], Tensor]:
    """Return the plain sums of the same inputs in float64, and the logits they come from."""
    ignored = inputs.target == request.ignore_index
    under = ignored if request.sigmoid else ignored.unsqueeze(1)
    leaf = inputs.logits.double().masked_fill(under, 0.0).requires_grad_()
    vectors = {name: getattr(inputs, name) for name in ("shift", "margin", "pixel_weight")}
    doubles = {name: None if value is None else value.double() for name, value in vectors.items()}
    return plain_sums(replace(inputs, logits=leaf, **doubles), request), leaf


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
def test_softmax_sums_and_gradients_are_the_plain_ones(
    classes: int, labels_as: torch.dtype, draw: torch.Generator
) -> None:
    size = pick(((5, 7), (1, 7), (3, 11)), draw) if classes < 30 else (1, 7)
    options = ("shift", "margin", "weight", "keep", "scale", "gammas")
    images = 2 if classes < 30 else 1
    inputs, request = case(
        draw,
        classes=classes,
        images=images,
        size=size,
        options=options,
        dtype=pick(FLOATS, draw),
        labels_as=labels_as,
    )
    check(inputs, request, draw)


@pytest.mark.parametrize("classes", [19, pytest.param(24, marks=pytest.mark.slow)])
def test_the_usual_terms_are_summed_right_in_registers_or_by_tiles(classes: int, draw: torch.Generator) -> None:
    wanted = ("probability", "intersection", "cross_entropy", "focal")
    check(*case(draw, classes=classes, images=1, size=(1, 7), wanted=wanted, dtype=torch.bfloat16), draw)


@pytest.mark.parametrize(
    "classes", [3, pytest.param(1, marks=pytest.mark.slow), pytest.param(9, marks=pytest.mark.slow)]
)
def test_sigmoid_sums_and_gradients_are_the_plain_ones(classes: int, draw: torch.Generator) -> None:
    options = ("shift", "margin", "weight", "keep", "scale", "gammas")
    size = (3, 7) if classes < 9 else (1, 7)
    inputs, request = case(draw, classes=classes, size=size, sigmoid=True, options=options, dtype=pick(FLOATS, draw))
    check(inputs, request, draw)


@pytest.mark.parametrize(
    ("classes", "sigmoid", "layout"),
    [
        *((4, False, layout) for layout in LAYOUTS),
        (26, False, "channels_last"),
        (3, True, "channels_last"),
        (3, True, "crop"),
        *(pytest.param(26, False, layout, marks=pytest.mark.slow) for layout in LAYOUTS[1:]),
        *(pytest.param(3, True, layout, marks=pytest.mark.slow) for layout in LAYOUTS[2:]),
    ],
)
def test_any_strides_give_the_same(classes: int, sigmoid: bool, layout: str, draw: torch.Generator) -> None:
    size = (1, 1) if layout == "one pixel" else (3, 7)
    inputs, request = case(draw, classes=classes, sigmoid=sigmoid, images=2 if classes < 26 else 1, size=size)
    logits = inputs.logits
    if layout == "channels_last":
        logits = logits.contiguous(memory_format=torch.channels_last)
    elif layout == "crop":
        logits = torch.nn.functional.pad(logits, (2, 3, 1, 1), value=float("nan"))[..., 1:-1, 2:-3]
    elif layout == "transposed":
        logits = logits.transpose(2, 3).contiguous().transpose(2, 3)
    inputs = replace(inputs, logits=logits, target=inputs.target.transpose(-1, -2).contiguous().transpose(-1, -2))
    check(inputs, request, draw)


@pytest.mark.parametrize(
    ("classes", "wanted"),
    [
        *((3, wanted) for wanted in SOME_SUMS),
        (26, ("log_mass",)),
        *(pytest.param(26, wanted, marks=pytest.mark.slow) for wanted in SOME_SUMS if wanted != ("log_mass",)),
    ],
)
def test_each_sum_stands_alone(classes: int, wanted: tuple[str, ...], draw: torch.Generator) -> None:
    options = pick(((), ("weight",), ("margin",), ("keep", "shift")), draw)
    inputs, request = case(draw, classes=classes, images=1, size=(1, 7), options=options, wanted=wanted)
    check(inputs, request, draw)


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
    name: str, classes: int, sigmoid: bool, draw: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[triton_ranks.Mined] = []
    prepare = triton_ranks.Mined.prepare
    monkeypatch.setattr(triton_ranks.Mined, "prepare", lambda *args: seen.append(prepare(*args)) or seen[-1])
    inputs, request = case(draw, classes=classes, sigmoid=sigmoid, images=1, options=("weight",), rule=RULES[name])
    check(inputs, request, draw)
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
def test_of_equal_losses_the_first_are_kept(per_class: bool, sigmoid: bool, draw: torch.Generator) -> None:
    part = pick((0.001, float(torch.rand((), generator=draw))), draw)
    shape = (2, 3, 2, 7) if sigmoid else (2, 5, 7)
    target = torch.randint(0, 2 if sigmoid else 3, shape, generator=draw)
    target[torch.rand(shape, generator=draw) < 0.2] = 255
    losses = torch.tensor([0.0, 1e-9, 0.25, 0.5, 3e38])[torch.randint(0, 5, shape, generator=draw)]
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


@pytest.mark.parametrize(
    ("classes", "sigmoid"), [(3, False), pytest.param(26, False, marks=pytest.mark.slow), (2, True)]
)
def test_a_batch_without_a_valid_pixel_has_sums_and_gradients_of_0(
    classes: int, sigmoid: bool, draw: torch.Generator
) -> None:
    rule = pick((None, RULES["top k"], RULES["threshold"]), draw)
    inputs, request = case(draw, classes=classes, sigmoid=sigmoid, images=1, size=(1, 7), ignored=1.0, rule=rule)
    check(inputs, request, draw)


@pytest.mark.parametrize("scale", [1e4, 0.0])
@pytest.mark.parametrize(("classes", "sigmoid"), [(3, False), (26, False), (2, True)])
def test_extreme_logits_lose_nothing(classes: int, sigmoid: bool, scale: float, draw: torch.Generator) -> None:
    inputs, request = case(
        draw, classes=classes, sigmoid=sigmoid, images=1, size=(1, 7), scale=scale, options=("gammas",)
    )
    apart = replace(inputs, logits=(inputs.logits / 64).round() * 64)  # equal, or so far apart that the least is 0
    check(apart, request, draw, ratios=0.0)


def test_the_largest_float16_is_summed_right(draw: torch.Generator) -> None:
    inputs, request = case(draw, classes=5, size=(1, 7), dtype=torch.float16, ignored=0.0)
    signs = torch.randn(inputs.logits.shape, generator=draw).sign()
    check(replace(inputs, logits=(65504 * signs).half()), request, draw, ratios=0.0)


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
def test_pixels_that_are_all_but_certain_keep_their_digits(classes: int, sigmoid: bool, gamma: float) -> None:
    logits = torch.full((1, classes, 1, 4), -1.0)
    logits[:, -1] = torch.tensor([4.0, 8.0, 14.0, 20.0])
    target = torch.ones(1, classes, 1, 4) if sigmoid else torch.full((1, 1, 4), classes - 1)
    backend = triton_sigmoid if sigmoid else triton_softmax
    for name in ("probability", "squared_probability", "intersection", "cross_entropy", "focal")[
        :: 1 if classes < 26 else 2
    ]:
        inputs, request = Inputs(logits, target.byte()), Request((name,), sigmoid, 255, (gamma,), 1.0)
        exact, leaf = in_double(inputs, request)
        sums, _, _ = backend.forward(inputs, request)
        rows = torch.stack([exact[row] for row in names_of_sums((name,), sigmoid=sigmoid)])
        torch.testing.assert_close(sums, rows.detach(), rtol=1e-5, atol=1e-30)
        slopes = torch.arange(1.0, rows.numel() + 1, dtype=torch.float64).view(rows.shape)
        (expected,) = torch.autograd.grad((rows * slopes).sum(), leaf)
        found = backend.backward(slopes, inputs, request).double()
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize(
    ("classes", "sigmoid"),
    [(3, False), pytest.param(26, False, marks=pytest.mark.slow), pytest.param(2, True, marks=pytest.mark.slow)],
)
def test_equal_inputs_give_equal_bits(classes: int, sigmoid: bool, draw: torch.Generator) -> None:
    inputs, request = case(draw, classes=classes, sigmoid=sigmoid, images=1, size=(1, 7), rule=RULES["top k"])
    backend = triton_sigmoid if sigmoid else triton_softmax
    before = [value.clone() for value in (inputs.logits, inputs.target)]
    first, second = backend.forward(inputs, request), backend.forward(inputs, request)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    slopes = torch.randn(first[0].shape, generator=draw, dtype=torch.float64)
    kept = replace(inputs, keep=first[2]), replace(request, mining=())
    assert torch.equal(backend.backward(slopes, *kept), backend.backward(slopes, *kept))
    for old, new in zip(before, (inputs.logits, inputs.target), strict=True):
        assert torch.equal(old.nan_to_num(7.0), new.nan_to_num(7.0))


@pytest.mark.parametrize(("classes", "sigmoid"), [(3, False), (26, False), (2, True)])
def test_a_label_out_of_range_makes_the_counts_nan(classes: int, sigmoid: bool, draw: torch.Generator) -> None:
    inputs, request = case(draw, classes=classes, sigmoid=sigmoid, size=(1, 7))
    inputs = replace(inputs, target=inputs.target.long())
    inputs.target.view(-1)[3] = 26
    backend = triton_sigmoid if sigmoid else triton_softmax
    sums, counts, _ = backend.forward(inputs, request)
    assert bool(counts[0].isnan().any())
    backend.backward(torch.ones_like(sums), inputs, request)  # and reads nothing beyond its tables


def test_a_loss_that_is_no_number_is_kept_and_seen(draw: torch.Generator) -> None:
    inputs, request = case(draw, classes=3, size=(1, 7), ignored=0.0, rule=RULES["top k"])
    inputs.logits[0, 0, 0, 5] = float("nan")
    sums, _, mask = triton_softmax.forward(inputs, request)
    assert bool(mask[0, 0, 5])
    assert bool(sums[request.wanted.index("cross_entropy")].isnan().any())


@pytest.mark.parametrize("shape", [(0, 3, 2, 2), (2, 3, 0, 2)])
@pytest.mark.parametrize("sigmoid", [False, True])
def test_no_pixel_at_all_is_no_error(shape: tuple[int, ...], sigmoid: bool) -> None:
    target = torch.zeros(shape if sigmoid else (shape[0], *shape[2:]), dtype=torch.uint8)
    wanted = tuple(name for name in SUMS if not (sigmoid and name == "log_mass"))
    request = Request(wanted, sigmoid, 255, (2.0,), 1.0, encode_mining(RULES["top k"]))
    backend = triton_sigmoid if sigmoid else triton_softmax
    sums, counts, mask = backend.forward(Inputs(torch.zeros(shape), target), request)
    assert not bool(sums.any())
    assert not bool(counts.any())
    assert mask.shape == target.shape
    assert backend.backward(torch.zeros_like(sums), Inputs(torch.zeros(shape), target), request).shape == shape


@pytest.mark.slow
@pytest.mark.parametrize("number", range(40))
def test_drawn_cases_are_the_plain_ones(number: int, draw: torch.Generator) -> None:
    sigmoid = bool(number % 3 == 2)
    options = tuple(
        name
        for name in ("shift", "margin", "weight", "keep", "scale", "gammas")
        if torch.rand((), generator=draw) < 0.4
    )
    rule = pick((None, *RULES.values()), draw)
    inputs, request = case(
        draw,
        classes=pick((1, 2, 3, 7, 19, 24, 25, 33, 64, 65, 150, 256, 300), draw),
        size=pick(((1, 1), (1, 7), (5, 7), (13, 17), (8, 64)), draw),
        images=pick((1, 2, 3), draw),
        sigmoid=sigmoid,
        options=options if rule is None else tuple(name for name in options if name != "keep"),
        dtype=pick(FLOATS, draw),
        scale=pick((0.3, 3.0, 100.0), draw),
        rule=rule,
    )
    if torch.rand((), generator=draw) < 0.5:
        inputs = replace(inputs, logits=inputs.logits.contiguous(memory_format=torch.channels_last))
    check(inputs, request, draw)
