"""The soft clDice loss against its definition with pooling, and every promise of the contract."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import max_pool2d, one_hot

from segtrain.errors import DataError
from segtrain.losses.cl_dice import cl_dice, cl_dice_value
from segtrain.losses.skeleton import soft_skeleton

MakeBatch = Callable[..., tuple[Tensor, Tensor]]


def value(logits: Tensor, target: Tensor, *, smooth: float = 1.0, **options: object) -> Tensor:
    return cl_dice_value(cl_dice(logits, target, smooth=smooth, **options), smooth=smooth)


def gradient(logits: Tensor, target: Tensor, **options: object) -> Tensor:
    leaf = logits.detach().requires_grad_()
    return torch.autograd.grad(value(leaf, target, **options), leaf)[0]


def pooled_skeleton(maps: Tensor, iterations: int) -> Tensor:
    """Alg. 1 of the paper, maps `[N, 1, H, W]`."""

    def erode(x: Tensor) -> Tensor:
        return torch.minimum(-max_pool2d(-x, (3, 1), 1, (1, 0)), -max_pool2d(-x, (1, 3), 1, (0, 1)))

    def rest(x: Tensor) -> Tensor:
        return torch.relu(x - max_pool2d(erode(x), 3, 1, 1))

    skeleton = rest(maps)
    for _ in range(iterations):
        maps = erode(maps)
        skeleton = skeleton + (1 - skeleton) * rest(maps)
    return skeleton


def by_definition(probability: Tensor, mask: Tensor, iterations: int, smooth: float) -> Tensor:
    """1 − clDice of one class, `[N, H, W]` each."""
    lines = [pooled_skeleton(x.unsqueeze(1), iterations).squeeze(1) for x in (probability, mask)]
    precision = ((lines[0] * mask).sum() + smooth) / (lines[0].sum() + smooth)
    sensitivity = ((lines[1] * probability).sum() + smooth) / (lines[1].sum() + smooth)
    return 1 - 2 * precision * sensitivity / (precision + sensitivity)


def lines_target(num: int = 2, size: int = 24) -> Tensor:
    """Two crossing lines of class 1, 3 pixels wide, a block of class 2, and a corner ignored."""
    target = torch.zeros(num, size, size, dtype=torch.int64)
    target[:, 5:8] = 1
    target[:, :, 11:14] = 1
    target[:, 15:20, 16:21] = 2
    target[0, :4, :4] = 255
    return target


@pytest.mark.parametrize("iterations", [1, 3])
@pytest.mark.parametrize("per", ["batch", "image"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_the_mean_over_present_classes_of_the_definition(per: str, iterations: int, dtype: torch.dtype) -> None:
    target = lines_target()
    target[1][target[1] == 2] = 0
    logits = torch.randn(2, 4, 24, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    valid = (target != 255).double()
    probability = logits.softmax(1) * valid.unsqueeze(1)
    groups = [slice(None)] if per == "batch" else [slice(0, 1), slice(1, 2)]
    losses = [
        by_definition(probability[n, c], (target == c)[n].double(), iterations, 0.5)
        for n in groups
        for c in range(4)
        if (target[n] == c).any()
    ]
    expected = torch.stack(losses).mean()
    found = value(logits.to(dtype), target, per=per, iterations=iterations, smooth=0.5)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=0)
    (expected_gradient,) = torch.autograd.grad(expected, logits)
    grad = gradient(logits.to(dtype), target, per=per, iterations=iterations, smooth=0.5)
    torch.testing.assert_close(grad.double(), expected_gradient, rtol=1e-3, atol=tolerance * 1e-2)


def test_skeletons_of_masks_are_their_centre_lines() -> None:
    mask = torch.zeros(1, 11, 24)
    mask[:, 4:7] = 1
    line = soft_skeleton(mask, iterations=2)
    assert line[0, 5].all()
    assert not line[0, :5].any()
    assert not line[0, 6:].any()


def test_a_torn_line_costs_more_than_a_thin_one() -> None:
    target = torch.zeros(1, 21, 30, dtype=torch.int64)
    target[:, 8:13] = 1

    def cost(prediction: Tensor) -> float:
        logits = (one_hot(prediction, 2).movedim(-1, 1) * 100).double()
        return value(logits, target, classes=[1]).item()

    thin, torn = target.clone(), target.clone()
    thin[:, 8] = thin[:, 12] = 0
    torn[:, :, 10:16] = 0
    assert abs(cost(target)) < 1e-9
    assert cost(thin) < 0.02
    assert cost(torn) > 0.05


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("per", ["batch", "image"])
def test_gradients_are_those_of_finite_differences(
    make_batch: MakeBatch, make_labels: Callable[..., Tensor], activation: str, per: str
) -> None:
    logits, target = make_batch(classes=2, size=(4, 4))
    target = make_labels(logits) if activation == "sigmoid" else target
    options = {"activation": activation, "per": per, "iterations": 2, "smooth": 0.0 if per == "image" else 1.0}
    assert torch.autograd.gradcheck(lambda z: value(z, target, **options), logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_probabilities_share_or_pass_on_their_gradient_and_stay_finite(dtype: torch.dtype) -> None:
    grad = gradient(torch.zeros(2, 3, 24, 24, dtype=dtype), lines_target())
    assert grad.isfinite().all()
    assert grad.any()


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_ignored_pixels_count_nowhere_even_if_their_logits_are_not_finite(
    make_batch: MakeBatch, make_labels: Callable[..., Tensor], activation: str, dtype: torch.dtype
) -> None:
    logits, target = make_batch(dtype=dtype)
    ignored = (target == 255).unsqueeze(1).expand_as(logits)
    if activation == "sigmoid":
        target = make_labels(logits)
        ignored = target == 255
    for broken in (math.nan, math.inf, 6e4):
        disturbed = logits.detach().masked_fill(ignored, broken)
        statistics = cl_dice(disturbed, target, activation=activation)
        assert torch.equal(statistics, cl_dice(logits.detach(), target, activation=activation))
        grad = gradient(disturbed, target, activation=activation)
        assert torch.equal(grad, gradient(logits, target, activation=activation))
        assert not grad[ignored].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_a_diverged_pixel_shows_in_the_loss(make_batch: MakeBatch, dtype: torch.dtype, sign: float) -> None:
    logits, target = make_batch(ignored=0, dtype=dtype)
    broken = logits.detach().clone()
    broken[0, :, 2, 3] = math.copysign(math.nan, sign)
    assert value(broken, target).isnan()


@pytest.mark.parametrize("per", ["batch", "image"])
@pytest.mark.parametrize("smooth", [0.0, 1.0])
def test_all_ignored_gives_zero_and_a_zero_connected_gradient(make_batch: MakeBatch, per: str, smooth: float) -> None:
    for dtype in (torch.float32, torch.float64):
        logits, target = make_batch(ignored=1.1, dtype=dtype)
        assert value(logits, target, per=per, smooth=smooth) == 0
        assert not gradient(logits, target, per=per, smooth=smooth).any()


def test_types_and_strides_do_not_change_the_numbers(make_batch: MakeBatch) -> None:
    logits, target = make_batch(images=3, classes=5, size=(8, 9), dtype=torch.float32)
    sliced = torch.zeros(3, 7, 16, 9)
    sliced[:, 1:6, ::2] = logits.detach()
    expected = gradient(logits, target)
    channels_last = logits.detach().contiguous(memory_format=torch.channels_last)
    for layout in (channels_last, sliced[:, 1:6, ::2], logits.transpose(2, 3).contiguous().transpose(2, 3)):
        torch.testing.assert_close(gradient(layout, target), expected, rtol=1e-4, atol=1e-7)
    for dtype in (torch.uint8, torch.int16, torch.int32):
        assert torch.equal(gradient(logits, target.to(dtype)), expected)
    half = logits.detach().half()
    assert torch.equal(gradient(half, target), gradient(half.float(), target).half())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(gradient(logits, target), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_images_add_up_and_classes_come_in_the_order_asked_for(make_batch: MakeBatch, dtype: torch.dtype) -> None:
    logits, target = make_batch(images=3, dtype=dtype)
    for per in ("batch", "image"):
        whole = cl_dice(logits, target, per=per)
        parts = sum(cl_dice(logits[n : n + 1], target[n : n + 1], per=per) for n in range(3))
        torch.testing.assert_close(whole, parts, rtol=1e-12, atol=0)
    some = cl_dice(logits, target, classes=[2, 0])
    assert some.shape == (5, 2)
    assert torch.equal(some, cl_dice(logits, target)[:, [2, 0]])


def test_turned_and_relabelled_images_have_the_same_loss(make_batch: MakeBatch) -> None:
    logits, target = make_batch()
    turned = value(logits.rot90(1, (2, 3)), target.rot90(1, (1, 2)))
    torch.testing.assert_close(turned, value(logits, target), rtol=1e-10, atol=0)
    order = torch.tensor([2, 0, 3, 1])  # new class k is old class order[k]
    renamed = torch.where(target == 255, 255, order.argsort()[target.clamp(max=3)])
    torch.testing.assert_close(value(logits[:, order], renamed), value(logits, target), rtol=1e-10, atol=0)


def test_equal_inputs_give_equal_bits_and_stay_as_they_were(make_batch: MakeBatch) -> None:
    logits, target = make_batch(dtype=torch.float32)
    before = [x.detach().clone() for x in (logits, target)]
    first = gradient(logits, target)
    assert torch.equal(first, gradient(logits, target))
    assert all(torch.equal(a, b) for a, b in zip(before, (logits, target), strict=True))


@pytest.mark.parametrize("classes", [1, 2, 300])
@pytest.mark.parametrize("size", [(1, 1), (3, 2)])
def test_any_number_of_classes_and_tiny_images_work(make_batch: MakeBatch, classes: int, size: tuple[int, int]) -> None:
    logits, target = make_batch(images=1, classes=classes, size=size, ignored=0, ignore_index=-1, dtype=torch.float32)
    assert value(logits, target, ignore_index=-1).isfinite()
    assert gradient(logits, target.to(torch.int16), ignore_index=-1).isfinite().all()


def test_an_empty_batch_has_no_loss() -> None:
    empty = torch.zeros(0, 3, 4, 4, requires_grad=True), torch.zeros(0, 4, 4, dtype=torch.uint8)
    assert value(*empty) == 0
    assert value(*empty, per="image") == 0


def test_what_does_not_fit_is_refused(make_batch: MakeBatch) -> None:
    logits, target = make_batch(ignored=0)
    for wrong in ({"iterations": 0}, {"smooth": -1.0}, {"per": "pixel"}, {"classes": [4]}, {"classes": []}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}"):
            cl_dice(logits, target, **wrong)
    target[0, 0, :3] = 9
    with pytest.raises(DataError, match=r"9 \(3 pixels\)"):
        cl_dice(logits, target)
