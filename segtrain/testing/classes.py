"""Properties of a loss on classes that are rare, absent or weighted."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from segtrain.testing.probe import Finding, Loss, Probe, compared, confident

CERTAIN = 12.0  # a logit at which the softmax is nearly one-hot, and float32 is at ease
RARE_SIDE = 32


def a_perfect_prediction_costs_next_to_nothing(probe: Probe) -> Finding:
    """A certain and right prediction costs less than 2 % of an undecided one."""
    _, labels = probe.batch()
    return _perfect(probe, labels)


def absent_classes_do_not_dilute(probe: Probe) -> Finding:
    """An undecided prediction costs nearly as much (70 %) with two classes in the batch as with all of them."""
    if probe.num_classes < 3:
        return Finding(None, "needs three classes")
    _, labels = probe.batch()
    undecided = confident(labels, num_classes=probe.num_classes, logit=0.0)
    few, every = probe.value(undecided, _fold(probe, labels)), probe.value(undecided, labels)
    return Finding(few >= 0.7 * every, f"{few:.3g} with 2 of {probe.num_classes} classes, {every:.3g} with all")


def an_absent_class_does_not_spoil_the_loss(probe: Probe) -> Finding:
    """With two classes in the batch, a nearly perfect prediction costs less (90 %) than an undecided one."""
    if probe.num_classes < 3:
        return Finding(None, "needs three classes")
    _, labels = probe.batch()
    labels = _fold(probe, labels)
    near = probe.value(confident(labels, num_classes=probe.num_classes, logit=CERTAIN / 2), labels)
    undecided = probe.value(confident(labels, num_classes=probe.num_classes, logit=0.0), labels)
    return Finding(near < 0.9 * undecided, f"{near:.3g} nearly perfect, {undecided:.3g} undecided")


def absent_classes_cost_nothing(probe: Probe) -> Finding:
    """With two classes in the batch, a perfect prediction costs less than 2 % of an undecided one."""
    if probe.num_classes < 3:
        return Finding(None, "needs three classes")
    _, labels = probe.batch()
    return _perfect(probe, _fold(probe, labels))


def a_missed_rare_class_counts_as_a_class(probe: Probe) -> Finding:
    """Missing a class of 0.2 % of the pixels costs at least half of a class's part of an undecided prediction."""
    labels = torch.arange(RARE_SIDE**2).view(1, RARE_SIDE, RARE_SIDE) % (probe.num_classes - 1)
    if probe.ignore_index is not None:
        labels[labels == probe.ignore_index] = 0
    missed = confident(labels, num_classes=probe.num_classes, logit=CERTAIN)
    labels[0, 0, :2] = probe.num_classes - 1  # two pixels, and the prediction does not know
    undecided = confident(labels, num_classes=probe.num_classes, logit=0.0)
    rare, whole = probe.value(missed, labels), probe.value(undecided, labels)
    share = rare / whole if whole else 0.0
    evidence = f"{rare:.3g}, {share:.1%} of the {whole:.3g} for undecided"
    return Finding(share >= 0.5 / probe.num_classes, evidence)


def equal_weights_change_nothing(probe: Probe) -> Finding:
    """Class weights of 1 give the unweighted loss."""
    logits, labels = probe.batch(ignored=0.2)
    ones = probe.value(logits, labels, loss=_weighted(probe)([1.0] * probe.num_classes))
    return compared(probe, ones, probe.value(logits, labels), words=("with weights of 1", "unweighted"))


def class_weights_act(probe: Probe) -> Finding:
    """Class weights change the loss of a batch that holds all classes."""
    logits, labels = probe.batch(ignored=0.2)
    found, plain = _uneven(probe, logits, labels), probe.value(logits, labels)
    return Finding(not probe.agree(found, plain), f"{found:.4g} with a weight of 100, {plain:.4g} with 1")


def a_batch_of_one_class_keeps_its_weight(probe: Probe) -> Finding:
    """In a batch of one class, a weight of 100 costs more than a weight of 1."""
    logits, labels = probe.batch()
    labels[:] = probe.num_classes - 1
    ones = probe.value(logits, labels, loss=_weighted(probe)([1.0] * probe.num_classes))
    found = _uneven(probe, logits, labels)
    return Finding(found > 2 * ones, f"{found:.4g} with a weight of 100, {ones:.4g} with 1")


def _perfect(probe: Probe, labels: Tensor) -> Finding:
    perfect = probe.value(confident(labels, num_classes=probe.num_classes, logit=CERTAIN), labels)
    undecided = probe.value(confident(labels, num_classes=probe.num_classes, logit=0.0), labels)
    return Finding(abs(perfect) < 0.02 * undecided, f"{perfect:.3g} perfect, {undecided:.3g} undecided")


def _weighted(probe: Probe) -> Callable[[Sequence[float]], Loss]:
    assert probe.weighted is not None
    return probe.weighted


def _uneven(probe: Probe, logits: Tensor, labels: Tensor) -> float:
    """Return the loss with weight 100 for the last class and 1 for the others."""
    weights = [1.0] * (probe.num_classes - 1) + [100.0]
    return probe.value(logits, labels, loss=_weighted(probe)(weights))


def _fold(probe: Probe, labels: Tensor) -> Tensor:
    """Fold all classes into the first two that are not the ignored label."""
    first, second = [c for c in range(probe.num_classes) if c != probe.ignore_index][:2]
    return torch.where(labels % 2 == 0, first, second)
