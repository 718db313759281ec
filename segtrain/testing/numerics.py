"""Properties of a loss as arithmetic: slopes, extremes, half precision, any number of classes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from segtrain.testing.inputs import REFUSALS
from segtrain.testing.probe import Finding, Probe, UnusableResult, confident

BIG_SIDE = 272  # 73,984 pixels: one class alone sums beyond the 65,504 that float16 can hold
MAX_SLOPES = 36
SLOPE_TOLERANCE = 1e-5
CLASS_COUNTS = (1, 2, 3, 19, 64, 150, 300)


def returns_a_finite_scalar(probe: Probe) -> Finding:
    """An ordinary batch gives a finite scalar with a finite gradient that is not zero everywhere."""
    value, gradient = probe.slope(*probe.batch())
    largest = float(gradient.abs().max())
    usable = math.isfinite(value) and math.isfinite(largest) and largest > 0
    return Finding(usable, f"loss {value:.4g}, largest gradient {largest:.3g}")


def the_gradient_is_the_slope(probe: Probe) -> Finding:
    """Central differences in float64 agree with the gradient, entry by entry."""
    logits, labels = probe.batch(size=(3, max(3, math.ceil(probe.num_classes / 3))), ignored=0.2, dtype=torch.float64)
    _, gradient = probe.slope(logits, labels)
    error = _slope_error(probe, logits, labels, gradient, step=1e-5)
    if error <= SLOPE_TOLERANCE:
        return Finding(True, f"relative error {error:.1g}")
    # Some losses compute in float32 whatever they are given: a wider step tells rounding from a wrong gradient.
    error = _slope_error(probe, logits, labels, gradient, step=2e-2)
    return Finding(error <= 2e-2, f"relative error {error:.1g} (to the precision of float32)")


def extreme_logits_stay_finite(probe: Probe) -> Finding:
    """Logits of -10,000 and 10,000 in float32, right and wrong, give a finite loss and gradient."""
    logits, labels = probe.batch(ignored=0.2)
    return _finite(probe, logits.sign() * 1e4, labels)


def confident_and_right_stays_finite(probe: Probe) -> Finding:
    """A batch with every pixel right and certain gives a finite loss and gradient."""
    _, labels = probe.batch(ignored=0.2)
    return _finite(probe, confident(labels, num_classes=probe.num_classes, logit=100.0), labels)


def float16_survives_large_sums(probe: Probe) -> Finding:
    """float16 logits of 272 x 272 pixels, nearly all of one class, cost what they cost in float32 (within 2 %)."""
    return _half(probe, torch.float16)


def bfloat16_survives_large_sums(probe: Probe) -> Finding:
    """bfloat16 logits of 272 x 272 pixels, nearly all of one class, cost what they cost in float32 (within 2 %)."""
    return _half(probe, torch.bfloat16)


def autocast_keeps_the_loss(probe: Probe) -> Finding:
    """Under bfloat16 autocast, float32 logits cost what they cost without it (within 0.1 %)."""
    logits, labels = probe.batch(ignored=0.2)
    plain = probe.value(logits, labels)
    with torch.autocast("cpu", torch.bfloat16):
        found = probe.value(logits, labels)
    return Finding(abs(found - plain) <= 1e-3 * abs(plain), f"{found:.5g} under autocast, {plain:.5g} without")


def a_diverged_pixel_shows(probe: Probe) -> Finding:
    """NaN logits at one labelled pixel give a loss of NaN."""
    logits, labels = probe.batch()
    logits[0, :, 0, 0] = torch.nan
    value = probe.value(logits, labels)
    return Finding(math.isnan(value), f"loss {value:.4g}")


def any_number_of_classes_works(probe: Probe) -> Finding:
    """From 1 to 300 classes the loss and its gradient are finite, or the number is refused aloud."""
    good: list[int] = []
    refused: list[int] = []
    bad: list[int] = []
    for count in CLASS_COUNTS:
        logits, labels = probe.batch(num_classes=count, ignored=0.2)
        try:
            loss = probe.loss if probe.for_classes is None else probe.for_classes(count)
            value, gradient = probe.slope(logits, labels, loss=loss)
        except UnusableResult:
            bad.append(count)
            continue
        except REFUSALS:
            refused.append(count)
            continue
        (good if math.isfinite(value) and bool(gradient.isfinite().all()) else bad).append(count)
    parts = [f"not finite or not connected at {_numbers(bad)}"] if bad else []
    parts += [f"finite at {_numbers(good)}"] if good else []
    parts += [f"refuses {_numbers(refused)}"] if refused else []
    return Finding(False if bad else True if good else None, "; ".join(parts))


def _numbers(counts: list[int]) -> str:
    return ", ".join(map(str, counts))


def _slope_error(probe: Probe, logits: Tensor, labels: Tensor, gradient: Tensor, *, step: float) -> float:
    """Return the largest difference between gradient and central difference, over the largest gradient."""
    order = torch.randperm(logits.numel(), generator=torch.Generator().manual_seed(probe.seed))
    worst = 0.0
    for index in order[:MAX_SLOPES].tolist():
        moved = logits.clone().view(-1)
        moved[index] += step
        above = probe.value(moved.view_as(logits), labels)
        moved[index] -= 2 * step
        below = probe.value(moved.view_as(logits), labels)
        worst = max(worst, abs((above - below) / (2 * step) - float(gradient.flatten()[index])))
    return worst / max(float(gradient.abs().max()), 1e-12)


def _finite(probe: Probe, logits: Tensor, labels: Tensor) -> Finding:
    value, gradient = probe.slope(logits, labels)
    num_bad = int((~gradient.isfinite()).sum())
    gradients = f"{num_bad} of {gradient.numel()} gradients not finite" if num_bad else "finite gradients"
    return Finding(math.isfinite(value) and not num_bad, f"loss {value:.4g}, {gradients}")


def _half(probe: Probe, dtype: torch.dtype) -> Finding:
    logits, labels = probe.batch(images=1, size=(BIG_SIDE, BIG_SIDE))
    labels[:, 4:] = labels[0, 0, 0]
    logits = (logits + confident(labels, num_classes=probe.num_classes, logit=2.0)).to(dtype)
    reference = probe.value(logits.float(), labels)
    value, gradient = probe.slope(logits, labels)
    num_bad = int((~gradient.isfinite()).sum())
    evidence = f"{value:.4g}, {reference:.4g} in float32"
    evidence += f"; {num_bad} gradients not finite" if num_bad else ""
    return Finding(not num_bad and abs(value - reference) <= 0.02 * abs(reference), evidence)
