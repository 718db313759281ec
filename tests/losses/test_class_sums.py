"""Class sums against a direct float64 computation, and every promise of their contract."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from segtrain.errors import DataError
from segtrain.kernels.request import Inputs, Request
from segtrain.losses.class_sums import SUMS, class_sums, fused_sums, target_pixels
from segtrain.losses.plain_sums import plain_sums

MakeBatch = Callable[..., tuple[Tensor, Tensor]]


def direct_sums(logits: Tensor, target: Tensor, gamma: float, weight: Tensor | None = None) -> dict[str, Tensor]:
    """The definitions of LOSSES, one pixel set at a time."""
    num_images, num_classes = logits.shape[:2]
    probability = logits.double().softmax(1)
    factor = torch.ones(target.shape, dtype=torch.float64) if weight is None else weight.double()
    zero = torch.zeros((), dtype=torch.float64)
    sums = {name: [[zero] * num_classes for _ in range(num_images)] for name in ("pixels", *SUMS)}
    for n in range(num_images):
        valid = target[n] != 255
        for c in range(num_classes):
            p, mask = probability[n, c], target[n] == c
            of_label = p[mask]
            sums["pixels"][n][c] = factor[n][mask].sum()
            sums["probability"][n][c] = (p * factor[n])[valid].sum()
            sums["log_mass"][n][c] = (-p.log() * factor[n])[valid].sum()
            sums["squared_probability"][n][c] = (p**2 * factor[n])[valid].sum()
            sums["intersection"][n][c] = (of_label * factor[n][mask]).sum()
            sums["cross_entropy"][n][c] = (-of_label.log() * factor[n][mask]).sum()
            sums["focal"][n][c] = ((1 - of_label) ** gamma * -of_label.log() * factor[n][mask]).sum()
    return {name: torch.stack([torch.stack(row) for row in rows]) for name, rows in sums.items()}


def total(logits: Tensor, target: Tensor, **options: object) -> Tensor:
    """A scalar in which every sum of every class has a weight of its own."""
    sums = class_sums(logits, target, **options)
    values = torch.stack([getattr(sums, name) for name in SUMS])
    return (values * torch.linspace(0.5, 1.5, values.numel(), dtype=torch.float64).view_as(values)).sum()


def gradient(logits: Tensor, target: Tensor, **options: object) -> Tensor:
    leaf = logits.detach().requires_grad_()
    return torch.autograd.grad(total(leaf, target, **options), leaf)[0]


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("classes", [1, 2, 5])
def test_sums_are_those_of_the_definitions(make_batch: MakeBatch, classes: int, gamma: float) -> None:
    logits, target = make_batch(classes=classes)
    expected = direct_sums(logits, target, gamma)
    sums = class_sums(logits, target, gamma=gamma, wanted=SUMS)
    for name, value in expected.items():
        torch.testing.assert_close(getattr(sums, name), value, rtol=1e-12, atol=1e-12)
    assert torch.equal(sums.kept, sums.pixels)


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("name", SUMS)
def test_gradients_are_those_of_the_definitions(make_batch: MakeBatch, classes: int, name: str) -> None:
    logits, target = make_batch(classes=classes)
    upstream = torch.randn(2, classes, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (expected,) = torch.autograd.grad(direct_sums(logits, target, 2.0)[name], logits, upstream)
    sums = class_sums(logits, target)
    (grad,) = torch.autograd.grad(getattr(sums, name), logits, upstream)
    torch.testing.assert_close(grad, expected, rtol=1e-10, atol=1e-13)


def test_pixel_weight_multiplies_every_sum(make_batch: MakeBatch) -> None:
    logits, target = make_batch()
    weight = torch.rand(target.shape, generator=torch.Generator().manual_seed(1))
    weight[target == 255] = torch.nan  # of no account where ignored
    sums = class_sums(logits, target, pixel_weight=weight)
    for name, value in direct_sums(logits, target, 2.0, weight).items():
        torch.testing.assert_close(getattr(sums, name), value, rtol=1e-7, atol=1e-9)
    assert torch.equal(target_pixels(target, num_classes=4, ignore_index=255, pixel_weight=weight), sums.pixels)


def test_a_mask_takes_pixels_out_of_the_pixel_terms_only(make_batch: MakeBatch) -> None:
    logits, target = make_batch()
    keep = torch.rand(target.shape, generator=torch.Generator().manual_seed(2)) < 0.5
    masked, whole = class_sums(logits, target, keep=keep), class_sums(logits, target)
    only_kept = class_sums(logits, torch.where(keep, target, 255))
    for name in ("cross_entropy", "focal"):
        torch.testing.assert_close(getattr(masked, name), getattr(only_kept, name), rtol=1e-12, atol=0)
    for name in ("pixels", "probability", "squared_probability", "intersection"):
        assert torch.equal(getattr(masked, name), getattr(whole, name))
    assert torch.equal(masked.kept, only_kept.pixels)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 3.0])
def test_gradient_of_all_sums_passes_gradcheck(make_batch: MakeBatch, gamma: float) -> None:
    logits, target = make_batch(images=2, classes=3, size=(2, 3))
    weight = torch.rand(target.shape, generator=torch.Generator().manual_seed(3)).double()
    keep = torch.rand(target.shape, generator=torch.Generator().manual_seed(4)) < 0.7
    assert torch.autograd.gradcheck(lambda z: total(z, target, gamma=gamma, pixel_weight=weight, keep=keep), logits)


@pytest.mark.parametrize("name", SUMS)
def test_gradient_of_each_sum_alone_passes_gradcheck(make_batch: MakeBatch, name: str) -> None:
    logits, target = make_batch(images=1, classes=3, size=(2, 3))

    def alone(z: Tensor) -> Tensor:
        return getattr(class_sums(z, target, gamma=0.5, wanted=(name,)), name)

    assert torch.autograd.gradcheck(alone, logits)


def test_gradients_sum_to_zero_over_the_classes(make_batch: MakeBatch) -> None:
    logits, target = make_batch()
    assert gradient(logits, target).sum(1).abs().max() < 1e-12


@pytest.mark.parametrize("margin", [10.0, 17.0, 40.0, 80.0])
def test_confident_pixels_keep_full_relative_precision_in_float32(margin: float) -> None:
    logits = torch.zeros(1, 3, 1, 1)
    logits[0, 0] = margin
    logits.requires_grad_()
    sums = class_sums(logits, torch.zeros(1, 1, 1, dtype=torch.int64), gamma=0.5)
    rest = 2 * math.exp(-margin) / (1 + 2 * math.exp(-margin))  # 1 − p_y: rounds to 0 from a margin of 17 on
    loss = -math.log1p(-rest)
    assert sums.cross_entropy is not None
    assert sums.focal is not None
    assert sums.cross_entropy[0, 0].item() == pytest.approx(loss, rel=1e-5)
    assert sums.focal[0, 0].item() == pytest.approx(math.sqrt(rest) * loss, rel=1e-5)
    (grad,) = torch.autograd.grad(sums.cross_entropy.sum(), logits)
    assert float(grad[0, 0]) == pytest.approx(-rest, rel=1e-5)
    assert float(grad[0, 1]) == pytest.approx(rest / 2, rel=1e-5)


def test_hopeless_pixels_have_a_finite_loss_and_a_full_gradient() -> None:
    logits = torch.zeros(1, 3, 1, 1)
    logits[0, 0] = -1000.0
    logits.requires_grad_()
    sums = class_sums(logits, torch.zeros(1, 1, 1, dtype=torch.int64))
    assert sums.cross_entropy is not None
    assert sums.cross_entropy[0, 0].item() == pytest.approx(1000 + math.log(2), rel=1e-6)
    (grad,) = torch.autograd.grad(sums.cross_entropy.sum(), logits)
    torch.testing.assert_close(grad.flatten(), torch.tensor([-1.0, 0.5, 0.5]))


@pytest.mark.parametrize("gamma", [0.0, 0.1, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("margin", [-1e4, -200.0, 0.0, 30.0, 200.0, 1e4])
def test_focal_gradient_is_finite_for_any_exponent_and_margin(gamma: float, margin: float) -> None:
    logits = torch.zeros(1, 3, 1, 1)
    logits[0, 0] = margin
    assert gradient(logits, torch.zeros(1, 1, 1, dtype=torch.int64), gamma=gamma).isfinite().all()


@pytest.mark.parametrize("huge", [1e4, 1e30, 3e38])
def test_ignored_pixels_get_an_exactly_zero_gradient_whatever_their_logits(make_batch: MakeBatch, huge: float) -> None:
    logits, target = make_batch(dtype=torch.float32)
    ignored = (target == 255).unsqueeze(1).expand_as(logits)
    signs = torch.randn(logits.shape, generator=torch.Generator().manual_seed(5)).sign()
    disturbed = torch.where(ignored, signs * huge, logits.detach())
    grad = gradient(disturbed, target, gamma=0.5)
    assert torch.equal(grad[ignored], torch.zeros_like(grad[ignored]))
    assert torch.equal(grad, gradient(logits, target, gamma=0.5))


@pytest.mark.parametrize("classes", [1, 2, 4])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["every class", "one class"])
def test_ignored_pixels_count_nowhere_even_if_their_logits_are_not_finite(
    make_batch: MakeBatch, classes: int, value: float, where: str
) -> None:
    logits, target = make_batch(classes=classes, dtype=torch.float32)
    ignored = (target == 255).unsqueeze(1).expand_as(logits).clone()
    if where == "one class":
        ignored[:, 1:] = False
    broken = logits.detach().masked_fill(ignored, value)
    for layout in (broken, broken.contiguous(memory_format=torch.channels_last)):
        same = logits.detach().clone(memory_format=torch.preserve_format)
        same = same.contiguous(memory_format=torch.channels_last) if layout is not broken else same
        assert torch.equal(total(layout, target), total(same, target))
        grad = gradient(layout, target)
        assert torch.equal(grad, gradient(same, target))
        assert not grad[ignored].any()


def test_deleting_ignored_pixels_equals_masking_them(make_batch: MakeBatch) -> None:
    logits, target = make_batch(images=1)
    valid = target[0] != 255
    fewer = class_sums(logits[:, :, valid].unsqueeze(2), target[:, valid].unsqueeze(1))
    masked = class_sums(logits, target)
    for name in ("pixels", *SUMS):
        torch.testing.assert_close(getattr(fewer, name), getattr(masked, name), rtol=1e-12, atol=1e-12)


def test_all_ignored_gives_zero_sums_and_zero_connected_gradients(make_batch: MakeBatch) -> None:
    logits, target = make_batch(ignored=1.1)
    sums = class_sums(logits, target)
    assert all(not getattr(sums, name).any() for name in ("pixels", "kept", *SUMS))
    assert not gradient(logits, target).any()


def test_many_classes_with_int16_labels_are_those_with_int64() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 300, 5, 7, generator=generator)
    target = torch.randint(-1, 300, (2, 5, 7), generator=generator)
    wide, narrow = (class_sums(logits, labels, ignore_index=-1) for labels in (target, target.to(torch.int16)))
    for name in ("pixels", *SUMS):
        assert torch.equal(getattr(wide, name), getattr(narrow, name)), name
    with pytest.raises(DataError, match="300"):
        class_sums(logits, target.clamp(min=0).to(torch.int16) + 1, ignore_index=-1)


@pytest.mark.parametrize("make", [fused_sums, plain_sums])
def test_an_excluded_class_may_be_the_only_other_one(make: Callable[..., dict[str, Tensor]]) -> None:
    logits = torch.tensor([[[[0.5, -2.0]], [[-torch.inf, -torch.inf]]]], requires_grad=True)
    names = ("probability", "intersection", "cross_entropy", "focal")
    sums = make(Inputs(logits, torch.zeros(1, 1, 2, dtype=torch.uint8)), Request(names, False, 255, (2.0,), 1.0))
    found = torch.stack([sums[name] for name in names])
    expected = torch.tensor([[2.0, 0.0], [2.0, 0.0], [0.0, 0.0], [0.0, 0.0]], dtype=torch.float64).unsqueeze(1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-11)
    (gradient,) = torch.autograd.grad(found.sum(), logits)
    torch.testing.assert_close(gradient, torch.zeros_like(logits), rtol=0, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_any_integer_target_gives_the_same_bits(make_batch: MakeBatch, dtype: torch.dtype) -> None:
    logits, target = make_batch()
    assert torch.equal(gradient(logits, target.to(dtype)), gradient(logits, target))


def test_minus_one_is_an_ignore_index_beside_more_than_255_classes(make_batch: MakeBatch) -> None:
    logits, target = make_batch(images=1, classes=300, size=(5, 90), ignore_index=-1)
    sums = class_sums(logits, target.to(torch.int16), ignore_index=-1)
    assert sums.pixels.shape == (1, 300)
    assert sums.pixels.sum() == (target >= 0).sum()
    assert (target == 255).any()
    assert sums.pixels[0, 255] == (target == 255).sum()


def test_an_ignore_index_of_minus_one_does_not_swallow_255_in_uint8(make_batch: MakeBatch) -> None:
    logits, _ = make_batch(images=1, classes=256, size=(1, 2))
    target = torch.tensor([[[255, 3]]], dtype=torch.uint8)
    assert class_sums(logits, target, ignore_index=-1, wanted=()).pixels.sum() == 2


def test_an_ignore_index_may_be_a_class_number(make_batch: MakeBatch) -> None:
    logits, target = make_batch(ignored=0)
    sums = class_sums(logits, target, ignore_index=0)
    assert not sums.pixels[:, 0].any()
    moved = class_sums(logits, torch.where(target == 0, 255, target))
    assert torch.equal(sums.probability, moved.probability)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_strides_do_not_change_the_numbers(make_batch: MakeBatch, dtype: torch.dtype) -> None:
    logits, target = make_batch(images=3, classes=5, size=(8, 9), dtype=dtype)
    sliced = torch.zeros(3, 7, 16, 9, dtype=dtype)
    sliced[:, 1:6, ::2] = logits.detach()
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    expected = gradient(logits, target)
    for layout in (
        logits.contiguous(memory_format=torch.channels_last),
        sliced[:, 1:6, ::2],
        logits.transpose(2, 3).contiguous().transpose(2, 3),
    ):
        assert not layout.is_contiguous()
        torch.testing.assert_close(gradient(layout, target), expected, rtol=tolerance, atol=tolerance)
    transposed = target.transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(gradient(logits, transposed), expected)


def test_channels_last_logits_get_a_channels_last_gradient(make_batch: MakeBatch) -> None:
    logits, target = make_batch()
    grad = gradient(logits.contiguous(memory_format=torch.channels_last), target)
    assert grad.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_computed_in_float32(make_batch: MakeBatch, dtype: torch.dtype) -> None:
    logits, target = make_batch(dtype=dtype)
    half, single = class_sums(logits, target), class_sums(logits.float(), target)
    for name in ("pixels", *SUMS):
        assert torch.equal(getattr(half, name), getattr(single, name))
    grad = gradient(logits, target)
    assert grad.dtype == dtype
    assert torch.equal(grad, gradient(logits.float(), target).to(dtype))


def test_autocast_does_not_lower_the_precision(make_batch: MakeBatch) -> None:
    logits, target = make_batch(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = total(logits, target)
    assert torch.equal(inside, total(logits, target))


def test_inputs_are_left_as_they_were(make_batch: MakeBatch) -> None:
    for dtype in (torch.float16, torch.float32, torch.float64):
        logits, target = make_batch(dtype=dtype)
        weight = torch.ones(target.shape)
        before = [tensor.detach().clone() for tensor in (logits, target, weight)]
        gradient(logits, target, pixel_weight=weight)
        assert all(torch.equal(a, b) for a, b in zip(before, (logits, target, weight), strict=True))


def test_equal_inputs_give_equal_bits(make_batch: MakeBatch) -> None:
    logits, target = make_batch(dtype=torch.float32)
    assert torch.equal(gradient(logits, target), gradient(logits, target))


def test_a_batch_is_the_stack_of_its_images(make_batch: MakeBatch) -> None:
    logits, target = make_batch(images=3)
    whole = class_sums(logits, target)
    for n in range(3):
        shard = class_sums(logits[n : n + 1], target[n : n + 1])
        for name in ("pixels", *SUMS):
            torch.testing.assert_close(getattr(shard, name)[0], getattr(whole, name)[n], rtol=1e-12, atol=1e-12)


def test_a_constant_added_to_all_logits_of_a_pixel_changes_nothing(make_batch: MakeBatch) -> None:
    logits, target = make_batch()
    shift = torch.randn(2, 1, 6, 7, generator=torch.Generator().manual_seed(6)).double() * 50
    torch.testing.assert_close(gradient(logits + shift, target), gradient(logits, target), rtol=1e-9, atol=1e-11)


def test_pixel_order_does_not_matter(make_batch: MakeBatch) -> None:
    logits, target = make_batch()
    order = torch.randperm(42, generator=torch.Generator().manual_seed(7))
    shuffled = logits.detach().flatten(2)[:, :, order].view_as(logits), target.flatten(1)[:, order].view_as(target)
    torch.testing.assert_close(total(*shuffled), total(logits, target), rtol=1e-12, atol=0)


def test_relabelled_classes_move_their_sums(make_batch: MakeBatch) -> None:
    logits, target = make_batch(classes=5)
    order = torch.tensor([3, 0, 4, 1, 2])  # new class k is old class order[k]
    renamed = torch.where(target == 255, 255, order.argsort()[target.clamp(max=4)])
    moved, kept = class_sums(logits[:, order], renamed), class_sums(logits, target)
    for name in ("pixels", *SUMS):
        torch.testing.assert_close(getattr(moved, name), getattr(kept, name)[:, order], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("classes", [1, 2, 3, 19, 64, 150, 256, 300])
@pytest.mark.parametrize("size", [(1, 1), (3, 2)])
def test_any_number_of_classes_and_tiny_images_work(make_batch: MakeBatch, classes: int, size: tuple[int, int]) -> None:
    logits, target = make_batch(images=1, classes=classes, size=size, ignored=0, ignore_index=-1, dtype=torch.float32)
    sums = class_sums(logits, target, ignore_index=-1)
    assert float(sums.pixels.sum()) == size[0] * size[1]
    assert sums.probability is not None
    assert sums.probability.sum().item() == pytest.approx(size[0] * size[1], rel=1e-5)
    assert gradient(logits, target, ignore_index=-1).isfinite().all()


def test_one_class_is_always_certain(make_batch: MakeBatch) -> None:
    logits, target = make_batch(classes=1)
    sums = class_sums(logits, target)
    assert sums.cross_entropy is not None
    assert not sums.cross_entropy.any()
    assert torch.equal(sums.probability, sums.pixels)
    assert not gradient(logits, target).any()


def test_sums_not_wanted_are_none_and_leave_the_others_alone(make_batch: MakeBatch) -> None:
    logits, target = make_batch()
    whole = class_sums(logits, target)
    for name in SUMS:
        alone = class_sums(logits, target, wanted=(name,))
        assert torch.equal(getattr(alone, name), getattr(whole, name))
        assert all(getattr(alone, other) is None for other in SUMS if other != name)


def test_an_empty_batch_has_empty_sums() -> None:
    sums = class_sums(torch.zeros(0, 3, 4, 4), torch.zeros(0, 4, 4, dtype=torch.uint8))
    assert sums.focal is not None
    assert sums.focal.shape == (0, 3)


def test_counts_stay_exact_beyond_what_float32_can_count() -> None:
    target = torch.zeros(1, 1, 2**24 + 3, dtype=torch.uint8)
    assert target_pixels(target, num_classes=1, ignore_index=255).item() == 2**24 + 3


def test_float32_sums_over_many_pixels_stay_accurate() -> None:
    generator = torch.Generator().manual_seed(8)
    logits = torch.randn(1, 3, 1000, 1000, generator=generator)
    target = torch.randint(0, 3, (1, 1000, 1000), generator=generator)
    for layout in (logits, logits.contiguous(memory_format=torch.channels_last)):
        single, double = class_sums(layout, target), class_sums(logits.double(), target)
        for name in SUMS:
            torch.testing.assert_close(getattr(single, name), getattr(double, name), rtol=2e-6, atol=0)


def test_labels_out_of_range_are_named_with_their_number_of_pixels(make_batch: MakeBatch) -> None:
    logits, target = make_batch(ignored=0)
    target[0, 0, :3] = 9
    target[1, 2, 2] = -4
    with pytest.raises(DataError, match=r"-4 \(1 pixels\), 9 \(3 pixels\).*0 to 3.*255"):
        class_sums(logits, target)


def test_shapes_and_types_that_do_not_fit_are_refused(make_batch: MakeBatch) -> None:
    logits, target = make_batch()
    with pytest.raises(ValueError, match=r"\[2, 6, 7\]"):
        class_sums(logits, target[:, 1:])
    with pytest.raises(ValueError, match="integer"):
        class_sums(logits, target.float())
    with pytest.raises(ValueError, match="float"):
        class_sums(target.unsqueeze(1), target)
    with pytest.raises(ValueError, match="pixel_weight"):
        class_sums(logits, target, pixel_weight=torch.ones(2, 6))
    with pytest.raises(ValueError, match=r"keep must be bool \[N, H, W\] = \[2, 6, 7\], found torch.bool \[2, 42\]"):
        class_sums(logits, target, keep=torch.ones(2, 42, dtype=torch.bool))
    with pytest.raises(ValueError, match="keep must be bool"):
        class_sums(logits, target, keep=torch.ones(2, 6, 7))
    with pytest.raises(ValueError, match="unknown sums"):
        class_sums(logits, target, wanted=("dice",))
