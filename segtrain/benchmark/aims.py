"""What the losses aim at, and what a measurement says about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from segtrain.benchmark.timing import Spread, paired_ratio


@dataclass(frozen=True)
class Aim:
    """A bound on one ratio of the headline combination.

    Attributes:
        other: the subject that it is measured against; None: the peak memory, in sizes of the logits; "limit": the
            bytes that must be moved, at the speed of a copy in the same run.
        at_most: the bound on time or memory; None where `at_least` bounds how many times faster it is.
    """

    text: str
    other: str | None = None
    at_most: float | None = None
    at_least: float | None = None


@dataclass(frozen=True)
class Finding:
    """An aim in one case: the measured value, and whether it is met."""

    aim: Aim
    value: Spread
    met: bool


LIMIT = "limit"
CPU_AIMS = (
    Aim("time of weighted F.cross_entropy alone", other="torch_ce", at_most=1.0),
    Aim("faster than smp CE + Dice + Focal", other="smp_ce_dice_focal", at_least=12),
    Aim("faster than MONAI DiceFocalLoss", other="monai_dice_focal", at_least=5),
    Aim("peak extra memory, in sizes of the logits", at_most=1.3),
)
CPU_TWO_CLASSES = (Aim("time of weighted F.cross_entropy alone", other="torch_ce", at_most=2.0),)
CUDA_AIMS = (
    Aim("time of moving the bytes at the speed of a copy", other=LIMIT, at_most=1.25),
    Aim("faster than torch.compile of the plain form", other="plain_compiled", at_least=2),
    Aim("faster than smp CE + Dice + Focal", other="smp_ce_dice_focal", at_least=20),
    Aim("faster than MONAI DiceFocalLoss", other="monai_dice_focal", at_least=20),
    Aim("peak extra memory, in sizes of the gradient", at_most=1.1),
)


def check_aims(case: dict[str, Any], *, headline: str) -> list[Finding]:
    """Compare a case of a measurement with the aims for its device and classes; what was not measured is left out."""
    rows = {row["name"]: row for row in case["losses"]}
    ours = rows.get(headline)
    if ours is None or ours["problem"] is not None:
        return []
    findings = []
    for aim in _aims(case["device"], case["classes"]):
        value = _value(aim, ours, None if aim.other is None else rows.get(aim.other))
        if value is not None:
            findings.append(Finding(aim, value, _met(aim, value.median)))
    return findings


def _aims(device: str, num_classes: int) -> tuple[Aim, ...]:
    if device.startswith("cuda"):
        return CUDA_AIMS
    if num_classes >= 19:
        return CPU_AIMS
    return CPU_TWO_CLASSES if num_classes == 2 else ()


def _value(aim: Aim, ours: dict[str, Any], other: dict[str, Any] | None) -> Spread | None:
    if aim.other is None:
        memory = ours["memory"]
        return None if memory is None else Spread(memory, memory, memory)
    if aim.other == LIMIT:
        value = ours.get("of_limit")
        return None if value is None else Spread(value, value, value)
    if other is None:
        return None
    pair = (ours, other) if aim.at_least is None else (other, ours)
    return paired_ratio(pair[0]["rounds"], pair[0]["seconds"], pair[1]["rounds"], pair[1]["seconds"])


def _met(aim: Aim, value: float) -> bool:
    return (aim.at_most is None or value <= aim.at_most) and (aim.at_least is None or value >= aim.at_least)
