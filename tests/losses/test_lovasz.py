"""The Lovász loss against its definition, other implementations, and every promise of the contract."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import segmentation_models_pytorch as smp
import torch
from torch import Tensor

from segtrain.errors import DataError
from segtrain.losses.lovasz import lovasz

MakeBatch = Callable[..., tuple[Tensor, Tensor]]


def value(logits: Tensor, target: Tensor, **options: object) -> Tensor:
    total, pairs = lovasz(logits, target, **options)
    return total / pairs.clamp(min=1)


def gradient(logits: Tensor, target: Tensor, **options: object) -> Tensor:
    leaf = logits.detach().requires_grad_()
    return torch.autograd.grad(value(leaf, target, **options), leaf)[0]


def jaccard_loss(wrong: Tensor, own: Tensor) -> Tensor:
    """1 − IoU of the class `own` if exactly the pixels `wrong` were labelled wrongly."""
    return 1 - (own & ~wrong).sum().double() / (own | wrong).sum()


def direct(probability: Tensor, own: Tensor) -> Tensor:
    """The Lovász extension in its integral form: the mean of J over all thresholds of the error."""
    errors = torch.where(own, 1 - probability, probability)
    levels = torch.cat([errors.new_zeros(1), errors.sort().values])
    steps = [(high - low) * jaccard_loss(errors >= high, own) for low, high in itertools.pairwise(levels)]
    return torch.stack(steps).sum()


@pytest.mark.parametrize("per", ["batch", "image"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_value_is_the_integral_of_the_jaccard_loss_over_thresholds(
    make_batch: MakeBatch, per: str, dtype: torch.dtype
) -> None:
    logits, target = make_batch(classes=5, images=3, size=(4, 5))
    target[0][target[0] == 2] = 1
    probability = logits.detach().softmax(1)
    groups = (
        [(probability, target)] if per == "batch" else [(probability[n : n + 1], target[n : n + 1]) for n in range(3)]
    )
    losses = []
    for p, labels in groups:
        valid = labels != 255
        losses += [direct(p[:, c][valid], labels[valid] == c) for c in range(5) if (labels == c).any()]
    total, pairs = lovasz(logits.to(dtype), target, per=per)
    assert pairs == len(losses)
    torch.testing.assert_close(total, torch.stack(losses).sum(), rtol=1e-12 if dtype == torch.float64 else 1e-5, atol=0)


def test_one_hot_probabilities_give_the_mean_of_one_minus_iou_over_present_classes(make_batch: MakeBatch) -> None:
    _, target = make_batch(classes=5)
    target[target == 3] = 0
    prediction = torch.randint(0, 5, target.shape, generator=torch.Generator().manual_seed(3))
    logits = torch.nn.functional.one_hot(prediction, 5).permute(0, 3, 1, 2).double() * 1e4
    valid = target != 255
    expected = [
        jaccard_loss((prediction != target)[valid] & ((prediction == c) | (target == c))[valid], (target == c)[valid])
        for c in (0, 1, 2, 4)
    ]
    for dtype in (torch.float32, torch.float64):
        assert value(logits.to(dtype), target).item() == pytest.approx(torch.stack(expected).mean().item(), rel=1e-6)


def test_it_is_smp_s_lovasz_on_multiclass_batches(make_batch: MakeBatch) -> None:
    logits, target = make_batch(classes=6, size=(20, 20), dtype=torch.float32)
    theirs = smp.losses.LovaszLoss("multiclass", per_image=False, ignore_index=255)(logits, target)
    (their_gradient,) = torch.autograd.grad(theirs, logits)
    assert value(logits, target).item() == pytest.approx(theirs.item(), rel=1e-5)
    torch.testing.assert_close(gradient(logits, target), their_gradient, rtol=2e-3, atol=1e-7)  # theirs cancels


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("per", ["batch", "image"])
@pytest.mark.parametrize("classes", [1, 3])
def test_gradients_are_those_of_finite_differences(
    make_batch: MakeBatch, make_labels: Callable[..., Tensor], activation: str, per: str, classes: int
) -> None:
    logits, target = make_batch(classes=classes, size=(3, 4))
    if activation == "sigmoid":
        target = make_labels(logits)
    assert torch.autograd.gradcheck(lambda z: value(z, target, activation=activation, per=per), logits)


def test_the_fast_sort_of_float32_gives_the_gradient_of_the_plain_one(make_batch: MakeBatch) -> None:
    for scale in (0.5, 3.0, 8.0):
        logits, target = make_batch(classes=7, size=(40, 41), scale=scale, dtype=torch.float32)
        for per in ("batch", "image"):
            single, double = gradient(logits, target, per=per), gradient(logits.double(), target, per=per)
            torch.testing.assert_close(single.double(), double, rtol=1e-3, atol=1e-4 * double.abs().max().item())


@pytest.mark.parametrize("bins", [1, 2, 7, 64, 1000])
@pytest.mark.parametrize("scale", [0.1, 2.0, 10.0])
def test_counting_errors_stays_within_the_width_of_an_interval(make_batch: MakeBatch, bins: int, scale: float) -> None:
    for seed in range(4):
        logits, target = make_batch(classes=3, seed=seed, scale=scale)
        for dtype in (torch.float32, torch.float64):
            counted = lovasz(logits.to(dtype), target, bins=bins)
            exact = lovasz(logits.to(dtype), target)
            assert counted[1] == exact[1]
            assert abs(counted[0] - exact[0]) <= exact[1] / bins * (1 + 1e-6)


def test_the_gradient_of_counted_errors_is_that_of_their_value(make_batch: MakeBatch) -> None:
    logits, target = make_batch(classes=3, size=(3, 4))
    assert torch.autograd.gradcheck(lambda z: value(z, target, bins=5), logits)


def test_many_bins_lead_to_the_sorted_gradient(make_batch: MakeBatch) -> None:
    logits, target = make_batch(classes=3)
    torch.testing.assert_close(gradient(logits, target, bins=10**6), gradient(logits, target), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("bins", [None, 16])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_ignored_pixels_count_nowhere_even_if_their_logits_are_not_finite(
    make_batch: MakeBatch, make_labels: Callable[..., Tensor], activation: str, bins: int | None, dtype: torch.dtype
) -> None:
    logits, target = make_batch(dtype=dtype)
    if activation == "sigmoid":
        target = make_labels(logits)
        ignored = target == 255
    else:
        ignored = (target == 255).unsqueeze(1).expand_as(logits)
    for broken in (math.nan, math.inf, 6e4):
        disturbed = logits.detach().masked_fill(ignored, broken)
        options = {"activation": activation, "bins": bins}
        assert torch.equal(lovasz(disturbed, target, **options), lovasz(logits.detach(), target, **options))
        grad = gradient(disturbed, target, **options)
        assert torch.equal(grad, gradient(logits, target, **options))
        assert not grad[ignored].any()


@pytest.mark.parametrize("bins", [None, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_a_diverged_pixel_shows_in_the_loss(
    make_batch: MakeBatch, bins: int | None, dtype: torch.dtype, sign: float
) -> None:
    logits, target = make_batch(ignored=0, dtype=dtype)
    broken = logits.detach().clone()
    broken[0, :, 0, 0] = math.copysign(math.nan, sign)
    assert lovasz(broken, target, bins=bins)[0].isnan()


@pytest.mark.parametrize("bins", [None, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_all_ignored_gives_zero_and_a_zero_connected_gradient(
    make_batch: MakeBatch, bins: int | None, dtype: torch.dtype
) -> None:
    logits, target = make_batch(ignored=1.1, dtype=dtype)
    assert not lovasz(logits, target, bins=bins).any()
    assert not gradient(logits, target, bins=bins).any()


@pytest.mark.parametrize("bins", [None, 16])
def test_types_and_strides_do_not_change_the_numbers(make_batch: MakeBatch, bins: int | None) -> None:
    logits, target = make_batch(images=3, classes=5, size=(8, 9), dtype=torch.float32)
    sliced = torch.zeros(3, 7, 16, 9)
    sliced[:, 1:6, ::2] = logits.detach()
    expected = gradient(logits, target, bins=bins)
    channels_last = logits.detach().contiguous(memory_format=torch.channels_last)
    for layout in (channels_last, sliced[:, 1:6, ::2], logits.transpose(2, 3).contiguous().transpose(2, 3)):
        torch.testing.assert_close(gradient(layout, target, bins=bins), expected, rtol=1e-5, atol=1e-9)
    assert gradient(channels_last, target, bins=bins).is_contiguous(memory_format=torch.channels_last)
    for dtype in (torch.uint8, torch.int16, torch.int32):
        assert torch.equal(gradient(logits, target.to(dtype), bins=bins), expected)
    assert torch.equal(gradient(logits, target.transpose(1, 2).contiguous().transpose(1, 2), bins=bins), expected)
    half = logits.detach().half()
    assert torch.equal(gradient(half, target, bins=bins), gradient(half.float(), target, bins=bins).half())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(gradient(logits, target, bins=bins), expected)


@pytest.mark.parametrize("bins", [None, 16])
def test_pixel_and_image_order_do_not_matter(make_batch: MakeBatch, bins: int | None) -> None:
    logits, target = make_batch()
    order = torch.randperm(42, generator=torch.Generator().manual_seed(7))
    shuffled = logits.detach().flatten(2)[:, :, order].view_as(logits), target.flatten(1)[:, order].view_as(target)
    expected = lovasz(logits, target, bins=bins)
    torch.testing.assert_close(lovasz(*shuffled, bins=bins), expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(lovasz(logits.flip(0), target.flip(0), bins=bins), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("bins", [None, 16])
def test_equal_errors_give_equal_bits_each_time_and_leave_the_inputs_alone(
    make_batch: MakeBatch, bins: int | None
) -> None:
    _, target = make_batch(classes=3)
    for dtype in (torch.float32, torch.float64):
        logits = torch.zeros(2, 3, 6, 7, dtype=dtype)
        first = gradient(logits, target, bins=bins)
        assert torch.equal(first, gradient(logits, target, bins=bins))
        assert not logits.any()
        assert first.sum(1).abs().max() < 1e-7


def test_images_add_up(make_batch: MakeBatch) -> None:
    logits, target = make_batch(images=3)
    parts = sum(lovasz(logits[n : n + 1], target[n : n + 1]) for n in range(3))
    torch.testing.assert_close(lovasz(logits, target, per="image"), parts, rtol=1e-12, atol=0)


def test_a_tiled_batch_has_the_same_loss(make_batch: MakeBatch) -> None:
    logits, target = make_batch()
    tiled = lovasz(logits.repeat(1, 1, 2, 2), target.repeat(1, 2, 2))
    torch.testing.assert_close(tiled, lovasz(logits, target), rtol=1e-12, atol=0)


def test_two_softmax_classes_are_two_sigmoid_channels(make_batch: MakeBatch) -> None:
    logits, target = make_batch(classes=2)
    difference = logits.detach()[:, 1:] - logits.detach()[:, :1]
    both = torch.cat([-difference, difference], dim=1)
    labels = torch.stack([torch.where(target == 255, 255, 1 - target), target], dim=1)
    torch.testing.assert_close(lovasz(both, labels, activation="sigmoid"), lovasz(logits, target), rtol=1e-10, atol=0)


@pytest.mark.parametrize("classes", [1, 2, 150, 300])
@pytest.mark.parametrize("size", [(1, 1), (3, 2)])
def test_any_number_of_classes_and_tiny_images_work(make_batch: MakeBatch, classes: int, size: tuple[int, int]) -> None:
    logits, target = make_batch(images=1, classes=classes, size=size, ignored=0, ignore_index=-1, dtype=torch.float32)
    for bins in (None, 8):
        for labels in (target, target.to(torch.int16)):
            total, pairs = lovasz(logits, labels, ignore_index=-1, bins=bins)
            assert pairs == len(target.unique())
            assert total.isfinite()
        assert gradient(logits, target, ignore_index=-1, bins=bins).isfinite().all()


def test_one_class_is_always_certain(make_batch: MakeBatch) -> None:
    logits, target = make_batch(classes=1)
    assert value(logits, target) == 0
    assert not gradient(logits, target).any()


def test_an_empty_batch_has_no_loss() -> None:
    assert not lovasz(torch.zeros(0, 3, 4, 4), torch.zeros(0, 4, 4, dtype=torch.uint8)).any()
    assert not lovasz(torch.zeros(0, 3, 4, 4), torch.zeros(0, 4, 4, dtype=torch.uint8), per="image").any()


def test_what_does_not_fit_is_refused(make_batch: MakeBatch) -> None:
    logits, target = make_batch(ignored=0)
    with pytest.raises(ValueError, match=r"\[2, 6, 7\]"):
        lovasz(logits, target[:, 1:])
    with pytest.raises(ValueError, match="integer"):
        lovasz(logits, target.float())
    with pytest.raises(ValueError, match="float"):
        lovasz(target.unsqueeze(1), target)
    with pytest.raises(ValueError, match="bins"):
        lovasz(logits, target, bins=0)
    with pytest.raises(ValueError, match="per must"):
        lovasz(logits, target, per="pixel")
    with pytest.raises(ValueError, match="activation"):
        lovasz(logits, target, activation="tanh")
    target[0, 0, :3] = 9
    with pytest.raises(DataError, match=r"9 \(3 pixels\)"):
        lovasz(logits, target)
