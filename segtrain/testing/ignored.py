"""Properties of a loss on pixels without a label."""

from __future__ import annotations

import math

import torch

from segtrain.testing.probe import Finding, Probe, compared


def all_ignored_costs_nothing(probe: Probe) -> Finding:
    """Loss 0 with zero, finite gradients, and still part of the graph, where no pixel has a label."""
    assert probe.ignore_index is not None
    logits, labels = probe.batch()
    value, gradient = probe.slope(logits, labels.fill_(probe.ignore_index))
    largest = float(gradient.abs().max())
    return Finding(value == 0 and largest == 0, f"loss {value:.3g}, largest gradient {largest:.3g}")


def ignored_pixels_get_no_gradient(probe: Probe) -> Finding:
    """The gradient is exactly 0 at every ignored pixel."""
    assert probe.ignore_index is not None
    logits, labels = probe.batch(ignored=0.3)
    _, gradient = probe.slope(logits, labels)
    there = gradient.movedim(1, -1)[labels == probe.ignore_index]
    return Finding(bool((there == 0).all()), f"largest gradient there {float(there.abs().max()):.3g}")


def masking_equals_deleting(probe: Probe) -> Finding:
    """Ignoring scattered pixels of an image gives the loss of the image without them."""
    assert probe.ignore_index is not None
    logits, labels = probe.batch(images=1, ignored=0.3)
    valid = labels != probe.ignore_index
    rest = logits.movedim(1, -1)[valid].t()[None, :, None]
    return compared(
        probe, probe.value(logits, labels), probe.value(rest, labels[valid][None, None]), words=("masked", "deleted")
    )


def half_ignored_leaves_the_loss(probe: Probe) -> Finding:
    """Ignoring the right half of every image gives the loss of the left halves."""
    assert probe.ignore_index is not None
    logits, labels = probe.batch()
    half = labels.shape[2] // 2
    masked = labels.clone()
    masked[:, :, half:] = probe.ignore_index
    cut = probe.value(logits[..., :half].contiguous(), labels[..., :half].contiguous())
    return compared(probe, probe.value(logits, masked), cut, words=("with the ignored half", "without"))


def an_unlabelled_image_changes_nothing(probe: Probe) -> Finding:
    """A batch of one image and one that is ignored entirely costs what the first image costs alone."""
    assert probe.ignore_index is not None
    logits, labels = probe.batch()
    alone = probe.value(logits[:1], labels[:1])
    labels[1] = probe.ignore_index
    return compared(probe, probe.value(logits, labels), alone, words=("with the unlabelled image", "without"))


def ignored_pixels_may_hold_anything(probe: Probe) -> Finding:
    """Logits that are not finite at ignored pixels spoil neither the loss nor the gradient elsewhere."""
    assert probe.ignore_index is not None
    logits, labels = probe.batch(ignored=0.3)
    clean = probe.value(logits, labels)
    spoilt = torch.where((labels == probe.ignore_index)[:, None], torch.nan, logits)
    value, gradient = probe.slope(spoilt, labels)
    elsewhere = gradient.movedim(1, -1)[labels != probe.ignore_index]
    finite = math.isfinite(value) and bool(elsewhere.isfinite().all())
    evidence = f"{value:.4g} with NaN there, {clean:.4g} without"
    if math.isfinite(value) and not finite:
        evidence += "; NaN gradients elsewhere"
    return Finding(finite and probe.agree(value, clean), evidence)
