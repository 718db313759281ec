"""The distillation loss against torch's divergence, and every promise of the contract."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from segtrain.errors import DataError
from segtrain.losses.distillation import distillation

MakeBatch = Callable[..., tuple[Tensor, Tensor]]


def teach(logits: Tensor, *, seed: int = 11) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(logits.shape, generator=generator, dtype=torch.float64) * 2).to(logits.dtype)


def value(logits: Tensor, teacher: Tensor, target: Tensor, **options: object) -> Tensor:
    total, weight = distillation(logits, teacher, target, **options)
    return total / (weight + (weight == 0))


def gradient(logits: Tensor, teacher: Tensor, target: Tensor, **options: object) -> Tensor:
    leaf = logits.detach().requires_grad_()
    return torch.autograd.grad(value(leaf, teacher, target, **options), leaf)[0]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_it_is_torch_s_divergence_over_the_valid_pixels(make_batch: MakeBatch, temperature: float) -> None:
    logits, target = make_batch()
    teacher = teach(logits)
    student, taught = (x.movedim(1, -1)[target != 255] / temperature for x in (logits, teacher))
    expected = temperature**2 * kl_div(student.log_softmax(1), taught.softmax(1), reduction="batchmean")
    total, pixels = distillation(logits, teacher, target, temperature=temperature)
    assert pixels == (target != 255).sum()
    torch.testing.assert_close(total / pixels, expected, rtol=1e-12, atol=0)
    grad = gradient(logits, teacher, target, temperature=temperature)
    torch.testing.assert_close(grad, torch.autograd.grad(expected, logits)[0], rtol=1e-11, atol=1e-15)


def test_pixel_weights_count_in_the_sum_and_in_the_number(make_batch: MakeBatch) -> None:
    logits, target = make_batch(images=1)
    teacher, weight = teach(logits), torch.rand(target.shape, dtype=torch.float64) + 0.5
    valid = target != 255
    each = distillation_of_pixels(logits, teacher)
    total, number = distillation(logits, teacher, target, pixel_weight=weight.masked_fill(~valid, math.nan))
    torch.testing.assert_close(total, (each * weight)[valid].sum(), rtol=1e-12, atol=0)
    torch.testing.assert_close(number, weight[valid].sum(), rtol=1e-12, atol=0)


def distillation_of_pixels(logits: Tensor, teacher: Tensor) -> Tensor:
    return kl_div(logits.detach().log_softmax(1), teacher.softmax(1), reduction="none").sum(1)


def test_sigmoid_compares_two_way_choices(make_batch: MakeBatch, make_labels: Callable[..., Tensor]) -> None:
    logits, _ = make_batch()
    labels, teacher = make_labels(logits), teach(logits)
    pairs = [torch.stack([x, torch.zeros_like(x)], dim=-1)[labels != 255] / 3.0 for x in (logits, teacher)]
    expected = 9 * kl_div(pairs[0].log_softmax(1), pairs[1].softmax(1), reduction="sum")
    total, entries = distillation(logits, teacher, labels, temperature=3.0, activation="sigmoid")
    assert entries == (labels != 255).sum()
    torch.testing.assert_close(total, expected, rtol=1e-11, atol=0)
    weighted = distillation(logits, teacher, labels, activation="sigmoid", pixel_weight=torch.full((2, 6, 7), 2.0))
    plain = distillation(logits, teacher, labels, activation="sigmoid")
    torch.testing.assert_close(weighted, 2 * plain, rtol=1e-12, atol=0)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("classes", [1, 3])
def test_gradients_are_those_of_finite_differences(
    make_batch: MakeBatch, make_labels: Callable[..., Tensor], activation: str, classes: int
) -> None:
    logits, target = make_batch(classes=classes, size=(3, 4))
    target = make_labels(logits) if activation == "sigmoid" else target
    options = {"activation": activation, "temperature": 2.0, "pixel_weight": torch.rand(2, 3, 4) + 0.5}
    assert torch.autograd.gradcheck(lambda z: value(z, teach(logits), target, **options), logits)


def test_the_teacher_learns_nothing_and_a_student_like_it_has_no_loss(make_batch: MakeBatch) -> None:
    logits, target = make_batch()
    teacher = (logits.detach() + 3).requires_grad_()  # the same probabilities
    loss = value(logits, teacher, target, temperature=2.0)
    loss.backward()
    assert teacher.grad is None
    assert abs(loss.item()) < 1e-12
    assert logits.grad is not None
    assert logits.grad.abs().max() < 1e-12


def test_a_certain_teacher_is_cross_entropy(make_batch: MakeBatch) -> None:
    logits, target = make_batch(ignored=0)
    teacher = torch.nn.functional.one_hot(target, 4).movedim(-1, 1).double() * 100
    torch.testing.assert_close(value(logits, teacher, target), cross_entropy(logits, target), rtol=1e-12, atol=0)


def test_the_size_of_the_gradient_hardly_depends_on_a_high_temperature(make_batch: MakeBatch) -> None:
    logits, target = make_batch()
    mild, high = (gradient(logits, teach(logits), target, temperature=t) for t in (50.0, 200.0))
    torch.testing.assert_close(mild, high, rtol=0.3, atol=1e-4)


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
    teacher = teach(logits)
    for broken in (math.nan, math.inf, 6e4):
        pair = [x.detach().masked_fill(ignored, broken) for x in (logits, teacher)]
        statistics = distillation(*pair, target, activation=activation)
        assert torch.equal(statistics, distillation(logits.detach(), teacher, target, activation=activation))
        grad = gradient(*pair, target, activation=activation)
        assert torch.equal(grad, gradient(logits, teacher, target, activation=activation))
        assert not grad[ignored].any()


def test_a_diverged_student_or_teacher_shows_in_the_loss(make_batch: MakeBatch) -> None:
    logits, target = make_batch(ignored=0)
    teacher = teach(logits)
    for broken in (logits.detach().clone(), teacher.clone()):
        broken[0, 1, 2, 3] = math.nan
        assert distillation(broken, teacher, target)[0].isnan()
        assert distillation(logits, broken, target)[0].isnan()


def test_all_ignored_gives_zero_and_a_zero_connected_gradient(make_batch: MakeBatch) -> None:
    logits, target = make_batch(ignored=1.1)
    assert not distillation(logits, teach(logits), target).any()
    assert not gradient(logits, teach(logits), target).any()


def test_types_and_strides_do_not_change_the_numbers(make_batch: MakeBatch) -> None:
    logits, target = make_batch(images=3, classes=5, size=(8, 9), dtype=torch.float32)
    teacher = teach(logits)
    sliced = torch.zeros(3, 7, 16, 9)
    sliced[:, 1:6, ::2] = logits.detach()
    expected = gradient(logits, teacher, target, temperature=2.0)
    channels_last = logits.detach().contiguous(memory_format=torch.channels_last)
    for layout in (channels_last, sliced[:, 1:6, ::2], logits.transpose(2, 3).contiguous().transpose(2, 3)):
        torch.testing.assert_close(gradient(layout, teacher, target, temperature=2.0), expected, rtol=1e-5, atol=1e-8)
    assert gradient(channels_last, teacher, target).is_contiguous(memory_format=torch.channels_last)
    other = teacher.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(gradient(logits, other, target, temperature=2.0), expected, rtol=1e-5, atol=1e-8)
    for dtype in (torch.uint8, torch.int16, torch.int32):
        assert torch.equal(gradient(logits, teacher, target.to(dtype), temperature=2.0), expected)
    half = logits.detach().half()
    single = gradient(half.float(), teacher, target)
    assert torch.equal(gradient(half, teacher, target), single.half())
    assert torch.equal(
        gradient(half.float(), teacher.half(), target), gradient(half.float(), teacher.half().float(), target)
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(gradient(logits, teacher, target, temperature=2.0), expected)


def test_chunks_leave_no_seam() -> None:
    generator = torch.Generator().manual_seed(2)
    logits, teacher = (torch.randn(1, 40, 90, 70, generator=generator) for _ in range(2))
    target = torch.randint(0, 40, (1, 90, 70), generator=generator).to(torch.uint8)
    double = gradient(logits.double(), teacher.double(), target)
    torch.testing.assert_close(gradient(logits, teacher, target).double(), double, rtol=1e-4, atol=1e-10)


def test_images_add_up_and_pixel_order_does_not_matter(make_batch: MakeBatch) -> None:
    logits, target = make_batch(images=3)
    teacher = teach(logits)
    whole = distillation(logits, teacher, target)
    parts = sum(distillation(logits[n : n + 1], teacher[n : n + 1], target[n : n + 1]) for n in range(3))
    torch.testing.assert_close(whole, parts, rtol=1e-12, atol=0)
    order = torch.randperm(42, generator=torch.Generator().manual_seed(7))
    shuffled = [x.detach().flatten(2)[:, :, order].view_as(x) for x in (logits, teacher)]
    moved = distillation(*shuffled, target.flatten(1)[:, order].view_as(target))
    torch.testing.assert_close(moved, whole, rtol=1e-12, atol=0)


def test_equal_inputs_give_equal_bits_and_stay_as_they_were(make_batch: MakeBatch) -> None:
    logits, target = make_batch(dtype=torch.float32)
    teacher = teach(logits)
    before = [x.detach().clone() for x in (logits, teacher, target)]
    first = gradient(logits, teacher, target, temperature=3.0)
    assert torch.equal(first, gradient(logits, teacher, target, temperature=3.0))
    assert all(torch.equal(a, b) for a, b in zip(before, (logits, teacher, target), strict=True))
    assert first.sum(1).abs().max() < 1e-6


@pytest.mark.parametrize("classes", [1, 2, 300])
@pytest.mark.parametrize("size", [(1, 1), (3, 2)])
def test_any_number_of_classes_and_tiny_images_work(make_batch: MakeBatch, classes: int, size: tuple[int, int]) -> None:
    logits, target = make_batch(images=1, classes=classes, size=size, ignored=0, ignore_index=-1, dtype=torch.float32)
    assert distillation(logits, teach(logits), target, ignore_index=-1)[1] == size[0] * size[1]
    grad = gradient(logits, teach(logits), target, ignore_index=-1)
    assert grad.isfinite().all()
    assert bool(grad.any()) == (classes > 1)


def test_an_empty_batch_has_no_loss() -> None:
    empty = torch.zeros(0, 3, 4, 4)
    assert not distillation(empty, empty, torch.zeros(0, 4, 4, dtype=torch.uint8)).any()


def test_what_does_not_fit_is_refused(make_batch: MakeBatch) -> None:
    logits, target = make_batch(ignored=0)
    teacher = teach(logits)
    with pytest.raises(ValueError, match=r"\[2, 4, 3, 7\], expected .*\[2, 4, 6, 7\]: bring them to one size"):
        distillation(logits, teacher[:, :, ::2], target)
    with pytest.raises(ValueError, match="the same classes"):
        distillation(logits, teacher[:, 1:], target)
    with pytest.raises(ValueError, match="teacher_logits must be float"):
        distillation(logits, target, target)
    with pytest.raises(ValueError, match="temperature"):
        distillation(logits, teacher, target, temperature=0.0)
    with pytest.raises(ValueError, match="pixel_weight"):
        distillation(logits, teacher, target, pixel_weight=torch.ones(2, 6))
    target[0, 0, :3] = 9
    with pytest.raises(DataError, match=r"9 \(3 pixels\)"):
        distillation(logits, teacher, target)
