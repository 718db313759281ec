"""The fused class sums against the plain ones, forward and backward, over every option, layout and size of chunk."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from segtrain.kernels import rows
from segtrain.kernels.mining import HardExamples
from segtrain.kernels.request import SUMS, Inputs, Request, encode_mining
from segtrain.losses.class_sums import class_sums, fused_sums
from segtrain.losses.plain_sums import plain_sums

OPTIONS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "gamma 0": {"gamma": (0.0,)},
    "gamma 0.5": {"gamma": (0.5,)},
    "gamma 3": {"gamma": (3.0,)},
    "gamma by class": {"gamma": "by class"},
    "shift": {"shift": True},
    "margin and scale": {"margin": True, "scale": 3.0},
    "all of them": {"shift": True, "margin": True, "scale": 0.5, "weight": True, "gamma": "by class"},
    "pixel weight": {"weight": True},
    "keep": {"keep": True},
    "threshold": {"rule": HardExamples(threshold=0.5, min_kept=0.1)},
    "threshold that keeps too few": {"rule": HardExamples(threshold=1e-6, min_kept=0.3), "weight": True},
    "threshold of all": {"rule": HardExamples(threshold=1.0)},
    "top k": {"rule": HardExamples(top_k=0.25)},
    "per class": {"rule": HardExamples(top_k=0.25, per_class=True), "shift": True},
}


@pytest.fixture
def small_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of a hundred pixels, so that small images are cut into many."""
    monkeypatch.setattr(rows, "FEWEST_PIXELS", 100)
    monkeypatch.setattr(rows, "MOST_PIXELS", 100)


def case(
    options: dict[str, Any],
    *,
    classes: int,
    sigmoid: bool = False,
    dtype: torch.dtype = torch.float64,
    scale: float = 2.0,
) -> tuple[Inputs, Request]:
    generator = torch.Generator().manual_seed(classes)
    size = (3, classes, 9, 70)
    logits = torch.randn(size, generator=generator, dtype=torch.float64) * scale
    target = torch.randint(0, 2 if sigmoid else classes, size if sigmoid else (3, 9, 70), generator=generator)
    target[torch.rand(target.shape, generator=generator) < 0.2] = 255
    target[0, ..., :20] = 255
    gamma = options.get("gamma", (2.0,))
    if gamma == "by class":
        gamma = tuple(0.5 * c for c in range(classes))

    def vector(name: str) -> Tensor | None:
        return torch.randn(classes, generator=generator, dtype=torch.float64) if options.get(name) else None

    wanted = tuple(name for name in SUMS if not (sigmoid and name == "log_mass"))
    weight = torch.rand(3, 9, 70, generator=generator, dtype=torch.float64) if options.get("weight") else None
    keep = torch.rand(target.shape, generator=generator) < 0.6 if options.get("keep") else None
    inputs = Inputs(logits.to(dtype), target.to(torch.uint8), vector("shift"), vector("margin"), weight, keep)
    rule = encode_mining(options.get("rule"))
    return inputs, Request(wanted, sigmoid, 255, gamma, options.get("scale", 1.0), rule)


def total(sums: dict[str, Tensor]) -> Tensor:
    """A scalar in which each sum of each image and class has a weight of its own."""
    values = torch.stack([value for name, value in sorted(sums.items()) if not name.startswith(("pix", "neg", "kept"))])
    return (values * torch.linspace(-1, 2, values.numel(), dtype=torch.float64).view_as(values)).sum()


def gradient(make: Any, inputs: Inputs, request: Request) -> Tensor:
    leaf = inputs.logits.detach().requires_grad_()
    values = make(Inputs(leaf, *list(vars(inputs).values())[1:]), request)
    return torch.autograd.grad(total(values), leaf)[0]


def compare(inputs: Inputs, request: Request, *, rtol: float, atol: float) -> None:
    fused, plain = fused_sums(inputs, request), plain_sums(inputs, request)
    assert fused.keys() == plain.keys()
    for name, value in plain.items():
        torch.testing.assert_close(
            fused[name], value, rtol=rtol, atol=atol, msg=lambda text, name=name: f"{name}: {text}"
        )
    torch.testing.assert_close(
        gradient(fused_sums, inputs, request), gradient(plain_sums, inputs, request), rtol=rtol, atol=atol
    )


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize(
    ("classes", "sigmoid"), [(1, False), (2, False), (5, False), (11, False), (1, True), (3, True)]
)
@pytest.mark.usefixtures("small_runs")
def test_fused_sums_and_gradients_are_the_plain_ones(name: str, classes: int, sigmoid: bool) -> None:
    inputs, request = case(OPTIONS[name], classes=classes, sigmoid=sigmoid)
    compare(inputs, request, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("scale", [0.0, 60.0, 3000.0])
@pytest.mark.parametrize(("classes", "sigmoid"), [(2, False), (5, False), (11, False), (3, True)])
@pytest.mark.usefixtures("small_runs")
def test_logits_of_any_size_are_summed_right_in_float32(classes: int, sigmoid: bool, scale: float) -> None:
    inputs, request = case({"gamma": (0.5,)}, classes=classes, sigmoid=sigmoid, dtype=torch.float32, scale=scale)
    double = Inputs(inputs.logits.double(), inputs.target)
    fused, plain = fused_sums(inputs, request), plain_sums(double, request)
    for name, value in plain.items():
        torch.testing.assert_close(fused[name], value, rtol=1e-5, atol=1e-4)
    grad, exact = gradient(fused_sums, inputs, request), gradient(plain_sums, double, request)
    torch.testing.assert_close(grad.double(), exact, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["as it is", "threshold that keeps too few", "all of them"])
@pytest.mark.parametrize(("classes", "sigmoid"), [(2, False), (5, False), (11, False), (3, True)])
def test_runs_change_rounding_alone(monkeypatch: pytest.MonkeyPatch, name: str, classes: int, sigmoid: bool) -> None:
    inputs, request = case(OPTIONS[name], classes=classes, sigmoid=sigmoid)
    whole = gradient(fused_sums, inputs, request)
    for pixels in (1, 63, 300):
        monkeypatch.setattr(rows, "FEWEST_PIXELS", pixels)
        monkeypatch.setattr(rows, "MOST_PIXELS", pixels)
        torch.testing.assert_close(gradient(fused_sums, inputs, request), whole, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["as it is", "threshold", "top k"])
@pytest.mark.parametrize(("classes", "sigmoid"), [(2, False), (5, False), (3, True)])
@pytest.mark.usefixtures("small_runs")
def test_the_number_of_threads_changes_no_bit(name: str, classes: int, sigmoid: bool) -> None:
    inputs, request = case(OPTIONS[name], classes=classes, sigmoid=sigmoid, dtype=torch.float32)
    sums, grad = fused_sums(inputs, request), gradient(fused_sums, inputs, request)
    torch.set_num_threads(4)
    try:
        others, other_grad = fused_sums(inputs, request), gradient(fused_sums, inputs, request)
    finally:
        torch.set_num_threads(1)
    assert torch.equal(grad, other_grad)
    for field, value in sums.items():
        assert torch.equal(others[field], value), field


def layouts(logits: Tensor) -> Iterator[Tensor]:
    """The same values in other strides."""
    yield logits.contiguous(memory_format=torch.channels_last)
    wide = logits.new_zeros(*logits.shape[:3], logits.shape[3] + 5)
    wide[..., 2:-3] = logits
    yield wide[..., 2:-3]
    yield logits.transpose(2, 3).contiguous().transpose(2, 3)
    yield logits.flip(1).flip(1)
    yield torch.stack((logits, logits), dim=2)[:, :, 1]


def expanded(logits: Tensor) -> Iterator[Tensor]:
    """One image, class, row, column or pixel of the logits for all of them, without a copy."""
    yield logits[:1].expand_as(logits)
    yield logits[:, :1].expand_as(logits)
    yield logits.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)[:, :1].expand_as(logits)
    yield logits[:, :, :1].expand_as(logits)
    yield logits[..., :1].expand_as(logits)
    yield logits[:, :, :1, :1].expand_as(logits)


@pytest.mark.parametrize(("classes", "sigmoid"), [(2, False), (5, False), (3, True)])
@pytest.mark.usefixtures("small_runs")
def test_strides_change_rounding_alone(classes: int, sigmoid: bool) -> None:
    inputs, request = case({}, classes=classes, sigmoid=sigmoid)
    expected = gradient(fused_sums, inputs, request)
    for logits in layouts(inputs.logits):
        other = Inputs(logits, inputs.target.transpose(-1, -2).contiguous().transpose(-1, -2))
        torch.testing.assert_close(gradient(fused_sums, other, request), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("classes", "sigmoid"), [(2, False), (5, False), (11, False), (3, True)])
@pytest.mark.usefixtures("small_runs")
def test_expanded_logits_are_read_as_their_copies_are(classes: int, sigmoid: bool) -> None:
    inputs, request = case({}, classes=classes, sigmoid=sigmoid)
    for logits in expanded(inputs.logits):
        expected = gradient(fused_sums, Inputs(logits.contiguous(), inputs.target), request)
        found = gradient(fused_sums, Inputs(logits, inputs.target), request)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("lowest", [-torch.inf, -3e38], ids=["minus infinity", "a difference beyond float32"])
@pytest.mark.parametrize("classes", [2, 3, 5, 11])
def test_a_class_made_impossible_harms_no_pixel_of_another(classes: int, lowest: float) -> None:
    inputs, _ = case({}, classes=classes, dtype=torch.float32)
    wanted = tuple(name for name in SUMS if name != "log_mass")
    target = torch.where(inputs.target == classes - 1, 0, inputs.target)
    logits = inputs.logits.clone()
    logits[:, -1, ::2] = lowest
    logits[:, 0, ::2] = torch.where(target[:, ::2] == 0, 3e38, 0.0)
    request = Request(wanted, False, 255, (2.0,), 1.0)
    found, expected = Inputs(logits, target), Inputs(logits.clamp(-1e4, 1e4).double(), target)
    for name, value in plain_sums(expected, request).items():
        torch.testing.assert_close(fused_sums(found, request)[name], value, rtol=1e-5, atol=1e-4)
    grad = gradient(fused_sums, found, request)
    torch.testing.assert_close(grad.double(), gradient(plain_sums, expected, request), rtol=1e-4, atol=1e-5)


def test_the_gradient_has_the_type_and_the_layout_of_the_logits() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        inputs, request = case({}, classes=5, dtype=dtype)
        logits = inputs.logits.contiguous(memory_format=torch.channels_last)
        grad = gradient(fused_sums, Inputs(logits, inputs.target), request)
        assert grad.dtype == dtype
        assert grad.is_contiguous(memory_format=torch.channels_last)


def test_nothing_but_a_wanted_sum_with_a_gradient_is_worked_on(monkeypatch: pytest.MonkeyPatch) -> None:
    from segtrain.kernels import softmax_cpu

    seen: list[set[str]] = []
    whole = softmax_cpu.backward

    def backward(grads: dict[str, Tensor], inputs: Inputs, request: Request) -> Tensor:
        seen.append(set(grads))
        return whole(grads, inputs, request)

    monkeypatch.setattr(softmax_cpu, "backward", backward)
    inputs, request = case({}, classes=5)
    leaf = inputs.logits.requires_grad_()
    sums = fused_sums(Inputs(leaf, inputs.target), request)
    torch.autograd.grad(sums["focal"].sum() + 0 * sums["probability"].sum(), leaf)
    assert seen == [{"focal"}]


@pytest.mark.parametrize("make", [fused_sums, plain_sums])
@pytest.mark.parametrize("classes", [1, 2, 5])
@pytest.mark.parametrize("name", ["all of them", "keep", "top k"])
def test_largest_logits_are_those_of_torch_whatever_else_acts_on_the_pixels(make: Any, classes: int, name: str) -> None:
    inputs, request = case(OPTIONS[name], classes=classes)
    logits = inputs.logits.round()  # ties
    logits[0, classes // 2, 3] = torch.nan
    found = make(replace(inputs, logits=logits), replace(request, predictions=True))
    valid = inputs.target != 255
    of_class = torch.stack([(logits.argmax(1) == c) & valid for c in range(classes)], 1)
    assert torch.equal(found["predicted"], of_class.sum((2, 3)).double())
    of_class &= torch.stack([inputs.target == c for c in range(classes)], 1)
    assert torch.equal(found["correct"], of_class.sum((2, 3)).double())
    assert "predicted" not in make(inputs, request)


def test_largest_logits_are_refused_with_sigmoid() -> None:
    inputs, _ = case({}, classes=3, sigmoid=True)
    with pytest.raises(ValueError, match="belong to softmax"):
        class_sums(inputs.logits, inputs.target, activation="sigmoid", wanted=("probability", "correct"))


def test_a_second_derivative_is_refused() -> None:
    inputs, request = case({}, classes=5)
    leaf = inputs.logits.requires_grad_()
    (grad,) = torch.autograd.grad(
        fused_sums(Inputs(leaf, inputs.target), request)["focal"].sum(), leaf, create_graph=True
    )
    with pytest.raises(RuntimeError):
        torch.autograd.grad(grad.sum(), leaf)


def test_the_plain_form_has_second_derivatives() -> None:
    inputs, request = case({}, classes=3)
    small = Inputs(inputs.logits[:1, :, :2, -2:].clone().requires_grad_(), inputs.target[:1, :2, -2:])

    def focal(logits: Tensor) -> Tensor:
        return plain_sums(Inputs(logits, small.target), request)["focal"].sum()

    assert torch.autograd.gradgradcheck(focal, (small.logits,))


@pytest.mark.parametrize("sign", [1.0, -1.0], ids=["all but certain", "all but impossible"])
@pytest.mark.parametrize(("classes", "sigmoid"), [(2, False), (3, False), (9, False), (3, True)])
@pytest.mark.parametrize("name", ["probability", "squared_probability", "intersection", "cross_entropy", "focal"])
def test_gradients_of_extreme_pixels_keep_their_digits(classes: int, sigmoid: bool, name: str, sign: float) -> None:
    logits = torch.full((1, classes, 1, 3), -1.0)
    logits[:, -1] = sign * torch.tensor([4.0, 8.0, 14.0])
    target = torch.ones(1, classes, 1, 3) if sigmoid else torch.full((1, 1, 3), classes - 1)
    request = Request((name,), sigmoid, 255, (2.0,), 1.0)

    def slope(make: Any, values: Tensor) -> Tensor:
        leaf = values.requires_grad_()
        factors = torch.arange(1.0, classes + 1, dtype=torch.float64)
        return torch.autograd.grad((make(Inputs(leaf, target.byte()), request)[name] * factors).sum(), leaf)[0].double()

    torch.testing.assert_close(slope(fused_sums, logits), slope(plain_sums, logits.double()), rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int64, torch.bool])
@pytest.mark.parametrize("sigmoid", [False, True])
def test_pixel_weights_of_any_type_are_taken(dtype: torch.dtype, sigmoid: bool) -> None:
    inputs, request = case({}, classes=3, sigmoid=sigmoid)
    weight = torch.ones(3, 9, 70)
    weight[:, ::2] = 0
    found = fused_sums(replace(inputs, pixel_weight=weight.to(dtype)), request)
    for name, value in fused_sums(replace(inputs, pixel_weight=weight), request).items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("sigmoid", [False, True])
@pytest.mark.parametrize("name", ["threshold", "top k", "per class", "as it is"])
def test_an_empty_batch_has_empty_sums_whatever_is_mined(name: str, sigmoid: bool) -> None:
    inputs, request = case(OPTIONS[name], classes=4, sigmoid=sigmoid)
    sums = fused_sums(Inputs(inputs.logits[:0], inputs.target[:0]), request)
    assert all(value.shape == (0, 4) for value in sums.values())


@pytest.mark.parametrize("label", [-1e8, -1e30, -torch.inf])
def test_log_mass_keeps_its_digits_where_the_label_is_all_but_impossible(label: float) -> None:
    inputs, request = case({}, classes=4, dtype=torch.float32)
    target = torch.zeros_like(inputs.target)
    logits = inputs.logits.clone()
    logits[:, 0, ::2] = label
    found = fused_sums(Inputs(logits, target), request)["log_mass"][:, 1:]
    exact = plain_sums(Inputs(logits.double(), target), replace(request, wanted=("log_mass",)))["log_mass"][:, 1:]
    torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("sigmoid", [False, True])
def test_a_pixel_of_nan_counts_as_kept_in_a_threshold_taken_at_once(sigmoid: bool) -> None:
    inputs, request = case(OPTIONS["threshold"], classes=3, sigmoid=sigmoid)
    logits = inputs.logits.clone()
    target = inputs.target.clone()
    logits[1, :, 2, 5], target[1, ..., 2, 5] = torch.nan, 1
    found, expected = (make(Inputs(logits, target), request) for make in (fused_sums, plain_sums))
    assert torch.equal(found["kept"], expected["kept"])
    assert bool(found["cross_entropy"].isnan().any())


def test_logits_one_pixel_wide_are_joined_whatever_their_last_stride() -> None:
    inputs, request = case({}, classes=3)
    tall = inputs.logits.transpose(2, 3)[..., :1]
    target = inputs.target.transpose(1, 2)[..., :1]
    expected = gradient(fused_sums, Inputs(tall.contiguous(), target), request)
    torch.testing.assert_close(gradient(fused_sums, Inputs(tall, target), request), expected, rtol=1e-12, atol=1e-12)
    assert rows.few_rows(tall).shape[-2] == 1


def test_logits_of_eight_bits_are_refused() -> None:
    inputs, _ = case({}, classes=3)
    with pytest.raises(ValueError, match="float16, bfloat16, float32 or float64"):
        class_sums(inputs.logits.to(torch.float8_e4m3fn), inputs.target)
