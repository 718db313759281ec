"""The reads of the logits that terms share: those that agree in activation, shift and focal exponent share one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from segtrain.kernels.mining import HardExamples
from segtrain.losses.class_sums import Activation, ClassSums
from segtrain.losses.heads import one_hot
from segtrain.losses.term import LossInputs, SumsTerm
from segtrain.losses.upsampled import class_sums_of

Gamma = tuple[float, ...]


@dataclass(frozen=True)
class Group:
    """One call of `class_sums` and the terms made of it."""

    activation: Activation
    shifted: bool  # by the prior or the margin
    gamma: Gamma
    wanted: tuple[str, ...]
    members: tuple[int, ...]  # positions among the terms
    has_pixel_terms: bool  # else there is nothing to mine


def group_terms(terms: Mapping[int, SumsTerm], *, shifts: bool) -> tuple[Group, ...]:
    """Group the terms (by position); with `shifts`, pixel terms read shifted logits and region terms raw ones."""
    kinds: dict[tuple[Activation, bool], list[int]] = {}
    for index, term in terms.items():
        kinds.setdefault((term.activation, shifts and term.is_pixel_term), []).append(index)
    groups = []
    for (activation, shifted), indices in kinds.items():
        for gamma, members in _by_gamma({index: terms[index].gamma for index in indices}).items():
            group = Group(
                activation,
                shifted,
                gamma,
                wanted=tuple(sorted({name for index in members for name in terms[index].wanted})),
                members=tuple(members),
                has_pixel_terms=any(terms[index].is_pixel_term for index in members),
            )
            groups.append(group)
    return tuple(groups)


def read_group(
    group: Group,
    inputs: LossInputs,
    *,
    shift: Tensor | None,
    margin: Tensor | None,
    scale: float,
    mining: HardExamples | None,
    also: Sequence[str] = (),
) -> ClassSums:
    """Read one head's logits for a group; shift, margin and scale, see `class_sums`, are for shifted groups alone.

    `also` are names of sums that no term wants.

    Raises:
        ValueError: shapes or types that do not fit.
        DataError: a label out of range (on the CPU).
    """
    target = inputs.target
    if group.activation == "sigmoid" and target.dim() == 3:  # a preset's sigmoid on class labels
        target = one_hot(target, num_classes=inputs.logits.shape[1], ignore_index=inputs.ignore_index)
    return class_sums_of(
        inputs.logits,
        target,
        ignore_index=inputs.ignore_index,
        activation=group.activation,
        gamma=group.gamma,
        shift=shift if group.shifted else None,
        margin=margin if group.shifted else None,
        scale=scale if group.shifted else 1.0,
        pixel_weight=inputs.pixel_weight,
        keep=mining if group.has_pixel_terms else None,
        wanted=(*group.wanted, *also),
    )


def _by_gamma(gammas: Mapping[int, Gamma | None]) -> dict[Gamma, list[int]]:
    """Group by γ; what has none joins the first that has one."""
    shared = next((gamma for gamma in gammas.values() if gamma is not None), (2.0,))
    groups: dict[Gamma, list[int]] = {}
    for index, gamma in gammas.items():
        groups.setdefault(shared if gamma is None else gamma, []).append(index)
    return groups
