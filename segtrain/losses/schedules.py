"""Weights that change while training: functions of the epoch alone, so that a resumed run goes on exactly."""

from __future__ import annotations

from segtrain.config.loss_terms import WeightSchedule


def weight_at(weight: float | WeightSchedule, epoch: float) -> float:
    """Return a term's weight after `epoch` epochs (fractions count): constant, a step, or a straight ramp."""
    if not isinstance(weight, WeightSchedule):
        return weight
    if epoch < weight.start_epoch:
        return weight.start
    if weight.end_epoch is None or epoch >= weight.end_epoch:
        return weight.end
    share = (epoch - weight.start_epoch) / (weight.end_epoch - weight.start_epoch)
    return weight.start + share * (weight.end - weight.start)


def describe_weight(weight: float | WeightSchedule) -> str:
    """Return the weight in words, such as `0.5` or `0 → 1 over epochs 2 to 6`."""
    if not isinstance(weight, WeightSchedule):
        return f"{weight:g}"
    when = f"from epoch {weight.start_epoch:g}"
    if weight.end_epoch is not None:
        when = f"over epochs {weight.start_epoch:g} to {weight.end_epoch:g}"
    return f"{weight.start:g} → {weight.end:g} {when}"
