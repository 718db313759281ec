"""The boundary loss against its formula, and every promise of the contract."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from segtrain.errors import DataError
from segtrain.losses.boundary import boundary, make_distances

MakeBatch = Callable[..., tuple[Tensor, Tensor]]


def value(logits: Tensor, target: Tensor, **options: object) -> Tensor:
    total, weight = boundary(logits, target, **options)
    return total / (weight + (weight == 0))


def gradient(logits: Tensor, target: Tensor, **options: object) -> Tensor:
    leaf = logits.detach().requires_grad_()
    return torch.autograd.grad(value(leaf, target, **options), leaf)[0]


@pytest.mark.parametrize("classes", [None, [1], [3, 0]])
def test_it_is_the_mean_over_valid_pixels_of_probability_times_distance(
    make_batch: MakeBatch, classes: list[int] | None
) -> None:
    logits, target = make_batch()
    maps = make_distances(target, num_classes=4, ignore_index=255)
    valid = target != 255
    chosen = list(range(4)) if classes is None else classes
    expected = (logits.softmax(1) * maps.double())[:, chosen].sum(1)[valid].mean()
    torch.testing.assert_close(value(logits, target, classes=classes), expected, rtol=1e-12, atol=0)
    (expected_gradient,) = torch.autograd.grad(expected, logits)
    torch.testing.assert_close(gradient(logits, target, classes=classes), expected_gradient, rtol=1e-10, atol=1e-14)


def test_maps_of_the_loader_give_what_maps_made_in_the_loss_give(make_batch: MakeBatch) -> None:
    logits, target = make_batch(dtype=torch.float32)
    maps = make_distances(target, num_classes=4, ignore_index=255, classes=[2, 1])
    assert maps.dtype == torch.float16
    given = gradient(logits, target, classes=[2, 1], distances=maps)
    assert torch.equal(given, gradient(logits, target, classes=[2, 1]))
    twice = boundary(logits, target, classes=[2, 1], distances=2 * maps)
    torch.testing.assert_close(twice[0], 2 * boundary(logits, target, classes=[2, 1])[0], rtol=1e-12, atol=0)


def test_the_right_prediction_is_the_best_one(make_batch: MakeBatch) -> None:
    target = torch.zeros(1, 9, 9, dtype=torch.uint8)
    target[:, 2:7, 2:7] = 1
    one_hot = torch.nn.functional.one_hot(target.long(), 2).movedim(-1, 1).float() * 100
    best = value(one_hot, target, classes=[1])
    assert best.item() == pytest.approx(-(2 + 8) / 81)  # the middle at −2, eight around it at −1, the rim at 0
    assert (
        value(one_hot.roll(2, dims=3), target, classes=[1]) > value(one_hot.roll(1, dims=3), target, classes=[1]) > best
    )
    assert value(-one_hot, target, classes=[1]) > 0


def test_pixel_weights_count_in_the_sum_and_in_the_number(make_batch: MakeBatch) -> None:
    logits, target = make_batch()
    weight = torch.rand(target.shape, dtype=torch.float64) + 0.5
    valid = target != 255
    maps = make_distances(target, num_classes=4, ignore_index=255).double()
    costs = (logits.softmax(1) * maps).sum(1)
    total, number = boundary(logits, target, pixel_weight=weight.masked_fill(~valid, math.nan))
    torch.testing.assert_close(total, (costs * weight)[valid].sum(), rtol=1e-12, atol=0)
    torch.testing.assert_close(number, weight[valid].sum(), rtol=1e-12, atol=0)


def test_sigmoid_measures_every_channel_on_its_own(make_batch: MakeBatch, make_labels: Callable[..., Tensor]) -> None:
    logits, _ = make_batch(images=1, classes=3)
    labels = make_labels(logits)
    parts = [boundary(logits[:, c : c + 1], labels[:, c : c + 1], activation="sigmoid") for c in (2, 0)]
    both = boundary(logits, labels, classes=[2, 0], activation="sigmoid")
    torch.testing.assert_close(both[0], parts[0][0] + parts[1][0], rtol=1e-12, atol=0)
    torch.testing.assert_close(both[1], (parts[0][1] + parts[1][1]) / 2, rtol=1e-12, atol=0)
    maps = make_distances(labels, num_classes=3, ignore_index=255).double()
    expected = (logits.sigmoid() * maps)[:, [2, 0]].sum()
    torch.testing.assert_close(both[0], expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("classes", [1, 3])
def test_gradients_are_those_of_finite_differences(
    make_batch: MakeBatch, make_labels: Callable[..., Tensor], activation: str, classes: int
) -> None:
    logits, target = make_batch(classes=classes, size=(3, 4))
    target = make_labels(logits) if activation == "sigmoid" else target
    options = {"activation": activation, "pixel_weight": torch.rand(2, 3, 4) + 0.5}
    assert torch.autograd.gradcheck(lambda z: value(z, target, **options), logits)
    assert torch.autograd.gradcheck(lambda z: value(z, target, classes=[classes - 1], **options), logits)


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
    maps = make_distances(target, num_classes=4, ignore_index=255)
    for broken in (math.nan, math.inf, 6e4):
        disturbed = logits.detach().masked_fill(ignored, broken)
        options = {"activation": activation, "distances": maps.masked_fill(ignored, broken)}
        plain = {"activation": activation}
        assert torch.equal(boundary(disturbed, target, **options), boundary(logits.detach(), target, **plain))
        grad = gradient(disturbed, target, **options)
        assert torch.equal(grad, gradient(logits, target, **plain))
        assert not grad[ignored].any()


def test_a_diverged_pixel_shows_in_the_loss(make_batch: MakeBatch) -> None:
    logits, target = make_batch(ignored=0)
    broken = logits.detach().clone()
    broken[0, 1, 2, 3] = math.nan
    assert boundary(broken, target)[0].isnan()


def test_all_ignored_gives_zero_and_a_zero_connected_gradient(make_batch: MakeBatch) -> None:
    logits, target = make_batch(ignored=1.1)
    assert not boundary(logits, target).any()
    assert not gradient(logits, target).any()


def test_types_and_strides_do_not_change_the_numbers(make_batch: MakeBatch) -> None:
    logits, target = make_batch(images=3, classes=5, size=(8, 9), dtype=torch.float32)
    sliced = torch.zeros(3, 7, 16, 9)
    sliced[:, 1:6, ::2] = logits.detach()
    expected = gradient(logits, target)
    channels_last = logits.detach().contiguous(memory_format=torch.channels_last)
    for layout in (channels_last, sliced[:, 1:6, ::2], logits.transpose(2, 3).contiguous().transpose(2, 3)):
        torch.testing.assert_close(gradient(layout, target), expected, rtol=1e-4, atol=1e-7)
    assert gradient(channels_last, target).is_contiguous(memory_format=torch.channels_last)
    for dtype in (torch.uint8, torch.int16, torch.int32):
        assert torch.equal(gradient(logits, target.to(dtype)), expected)
    half = logits.detach().half()
    assert torch.equal(gradient(half, target), gradient(half.float(), target).half())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(gradient(logits, target), expected)


def test_images_add_up(make_batch: MakeBatch) -> None:
    logits, target = make_batch(images=3)
    parts = sum(boundary(logits[n : n + 1], target[n : n + 1]) for n in range(3))
    torch.testing.assert_close(boundary(logits, target), parts, rtol=1e-12, atol=0)


def test_turned_and_relabelled_images_have_the_same_loss(make_batch: MakeBatch) -> None:
    logits, target = make_batch()
    turned = boundary(logits.rot90(1, (2, 3)), target.rot90(1, (1, 2)))
    torch.testing.assert_close(turned, boundary(logits, target), rtol=1e-10, atol=0)
    order = torch.tensor([2, 0, 3, 1])  # new class k is old class order[k]
    renamed = torch.where(target == 255, 255, order.argsort()[target.clamp(max=3)])
    torch.testing.assert_close(boundary(logits[:, order], renamed), boundary(logits, target), rtol=1e-10, atol=0)


def test_equal_inputs_give_equal_bits_and_stay_as_they_were(make_batch: MakeBatch) -> None:
    logits, target = make_batch(dtype=torch.float32)
    maps = make_distances(target, num_classes=4, ignore_index=255)
    before = [x.detach().clone() for x in (logits, target, maps)]
    first = gradient(logits, target, distances=maps)
    assert torch.equal(first, gradient(logits, target, distances=maps))
    assert all(torch.equal(a, b) for a, b in zip(before, (logits, target, maps), strict=True))
    assert first.sum(1).abs().max() < 1e-6


@pytest.mark.parametrize("classes", [1, 2, 300])
@pytest.mark.parametrize("size", [(1, 1), (3, 2)])
def test_any_number_of_classes_and_tiny_images_work(make_batch: MakeBatch, classes: int, size: tuple[int, int]) -> None:
    logits, target = make_batch(images=1, classes=classes, size=size, ignored=0, ignore_index=-1, dtype=torch.float32)
    total, pixels = boundary(logits, target, ignore_index=-1)
    assert pixels == size[0] * size[1]
    assert total.isfinite()
    assert gradient(logits, target.to(torch.int16), ignore_index=-1).isfinite().all()


def test_an_empty_batch_has_no_loss() -> None:
    assert not boundary(torch.zeros(0, 3, 4, 4), torch.zeros(0, 4, 4, dtype=torch.uint8)).any()


def test_what_does_not_fit_is_refused(make_batch: MakeBatch) -> None:
    logits, target = make_batch(ignored=0)
    with pytest.raises(ValueError, match=r"distances must be float .*\[2, 1, 6, 7\]"):
        boundary(logits, target, classes=[1], distances=torch.zeros(2, 4, 6, 7))
    with pytest.raises(ValueError, match="distances must be float"):
        boundary(logits, target, distances=torch.zeros(2, 4, 6, 7, dtype=torch.int64))
    for classes in ([4], [], [1, 1], [-1]):
        with pytest.raises(ValueError, match="classes must be distinct numbers from 0 to 3"):
            boundary(logits, target, classes=classes)
    target[0, 0, :3] = 9
    with pytest.raises(DataError, match=r"9 \(3 pixels\)"):
        boundary(logits, target)
