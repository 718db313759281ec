"""Properties of a loss under what should make no difference: order, numbering, shifts, repetition."""

from __future__ import annotations

import torch

from segtrain.testing.probe import Finding, Probe, compared


def pixel_order_does_not_matter(probe: Probe) -> Finding:
    """Moving pixels within their image, logits and labels together, leaves the loss."""
    logits, labels = probe.batch(ignored=0.2)
    order = torch.randperm(labels[0].numel(), generator=torch.Generator().manual_seed(probe.seed + 1))
    moved = logits.flatten(2)[..., order].view_as(logits)
    shuffled = probe.value(moved, labels.flatten(1)[:, order].view_as(labels))
    return compared(probe, probe.value(logits, labels), shuffled, words=("in order", "shuffled"))


def image_order_does_not_matter(probe: Probe) -> Finding:
    """Reversing the images of a batch leaves the loss."""
    logits, labels = probe.batch(images=3, ignored=0.2)
    reverse = probe.value(logits.flip(0), labels.flip(0))
    return compared(probe, probe.value(logits, labels), reverse, words=("in order", "reversed"))


def class_numbers_do_not_matter(probe: Probe) -> Finding:
    """Renumbering the classes, channels and labels together, leaves the loss."""
    logits, labels = probe.batch(ignored=0.2)
    valid = labels != probe.ignore_index if probe.ignore_index is not None else torch.ones_like(labels).bool()
    renumbered = torch.where(valid, probe.num_classes - 1 - labels, labels)
    if probe.ignore_index is not None and bool((renumbered[valid] == probe.ignore_index).any()):
        return Finding(None, "ignore_index is the number of a class")
    # A class has a size of its own, so that a weight or a special rôle of one class shows.
    renumbered_value = probe.value(logits.flip(1), renumbered)
    return compared(probe, probe.value(logits, labels), renumbered_value, words=("as numbered", "renumbered"))


def a_constant_added_to_a_pixel_changes_nothing(probe: Probe) -> Finding:
    """Adding one number to all logits of a pixel leaves the loss: it looks at the softmax alone."""
    logits, labels = probe.batch(ignored=0.2)
    shift = torch.randn(labels.shape, generator=torch.Generator().manual_seed(probe.seed + 1))[:, None]
    shifted = probe.value(logits + 3 * shift, labels)
    return compared(probe, probe.value(logits, labels), shifted, words=("as they are", "shifted"))


def gradients_sum_to_zero_over_the_classes(probe: Probe) -> Finding:
    """At every pixel the gradients of the classes sum to 0, as a softmax makes them."""
    logits, labels = probe.batch(ignored=0.2)
    _, gradient = probe.slope(logits, labels)
    largest, rest = float(gradient.abs().max()), float(gradient.sum(1).abs().max())
    return Finding(rest <= 10 * probe.tolerance * largest, f"largest sum {rest:.2g}, largest gradient {largest:.2g}")


def tiling_leaves_the_loss(probe: Probe) -> Finding:
    """Repeating every image 2 x 2 leaves the loss: it does not depend on the resolution."""
    logits, labels = probe.batch(ignored=0.2)
    tiled = probe.value(logits.repeat(1, 1, 2, 2), labels.repeat(1, 2, 2))
    return compared(probe, probe.value(logits, labels), tiled, words=("once", "tiled 2 x 2"))


def a_batch_is_the_mean_of_its_images(probe: Probe) -> Finding:
    """A batch costs the mean of what its images cost alone, where all have as many labelled pixels."""
    logits, labels = probe.batch()
    labels[0, 0] = labels[0, 0, 0]  # images with different shares of the classes
    alone = sum(probe.value(logits[i : i + 1], labels[i : i + 1]) for i in range(len(logits))) / len(logits)
    return compared(probe, probe.value(logits, labels), alone, words=("in one batch", "mean of the images"))
