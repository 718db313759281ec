"""The loss in words: its terms and what the class frequencies made of them, for the start of a run."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from segtrain.config.dump import inline
from segtrain.config.loss import LossConfig
from segtrain.config.loss_terms import TermConfig
from segtrain.losses.schedules import describe_weight

WIDTH = 80
WIDE_SPREAD = 20.0


@dataclass(frozen=True)
class Columns:
    """What there is to say of each class; None where there is no such column."""

    names: Sequence[str]
    shares: Sequence[float] | None
    weights: Sequence[float] | None
    shift: Sequence[float] | None
    margin: Sequence[float] | None


def describe(config: LossConfig, *, labels: Sequence[str], columns: Columns, num_reads: int) -> str:
    """Return lines of at most 80 columns: each term with its settings, what they share, then a row for each class."""
    lines = [_term_line(label, term) for label, term in zip(labels, config.terms, strict=True)]
    lines += _shared_lines(config)
    weights = f"class weights: {config.class_weights.scheme}"
    if config.class_weights.start_epoch:
        weights += f" from epoch {config.class_weights.start_epoch:g} on (all 1 before)"
    if config.class_weights.frequencies == "realised":
        weights += ", from realised frequencies"
    reduction = config.reduction if config.like is None else f"that of {config.like}"
    lines.append(f"reduction: {reduction}, {weights}")
    lines += _spread_notes(config, columns)
    if num_reads > 1:
        lines.append(f"reads of the logits: {num_reads}")
    wrapped = [part for line in lines for part in textwrap.wrap(line, WIDTH, subsequent_indent="    ")]
    return "\n".join(wrapped + _class_rows(columns))


def _term_line(label: str, term: TermConfig) -> str:
    settings = term.model_dump(exclude={"name", "label", "weight"}, exclude_none=True)
    name = f"{label}: {term.name}" if term.label is not None else label
    told = {key: value for key, value in settings.items() if value is not False and not _is_off(key, value)}
    text = ", ".join(f"{key}: {inline(value)}" for key, value in told.items())
    return f"{describe_weight(term.weight)} × {name}" + (f" ({text})" if text else "")


def _is_off(key: str, value: Any) -> bool:
    return key in ("smooth", "label_smoothing") and value == 0


def _shared_lines(config: LossConfig) -> list[str]:
    lines = []
    if config.activation == "sigmoid":
        lines.append("activation: sigmoid, a yes or no for each class; class weights weigh the channels")
    if config.ohem is not None:
        rule = config.ohem.model_dump(exclude_none=True)
        lines.append("hard examples: " + ", ".join(f"{key}: {inline(value)}" for key, value in rule.items()))
    if config.prior is not None:
        which = "realised share" if config.prior.frequencies == "realised" else "share"
        lines.append(f"prior: pixel terms read logits + {config.prior.tau:g} × log({which} of the class)")
    if config.margin is not None:
        lines.append(
            f"margin: pixel terms take the label's logit less its margin (at most {config.margin.max_margin:g}), all "
            f"times {config.margin.scale:g}"
        )
    if config.fused_upsample:
        lines.append("fused upsampling: coarse logits are enlarged (bilinear) strip by strip while they are read")
    if config.auxiliary is not None:
        weights = ", ".join(f"{weight:g}" for weight in config.auxiliary.weights)
        resized = "logits are brought to the target's size"
        if config.auxiliary.resize == "target":
            resized = "the target is brought to their size"
        lines.append(f"heads: {len(config.auxiliary.weights)} with weights {weights}; {resized}")
    return lines


def _spread_notes(config: LossConfig, columns: Columns) -> list[str]:
    """Warn of weights that differ by so much that they are known to harm the classes that they were meant for."""
    weights = [weight for weight in columns.weights or () if weight > 0]
    if not weights or config.class_weights.scheme == "manual" or config.class_weights.max_ratio is not None:
        return []
    ratio = max(weights) / min(weights)
    if ratio <= WIDE_SPREAD:
        return []
    return [
        f"note: the highest class weight is {ratio:.3g} times the lowest. Few pixels then carry large, noisy gradients "
        "and false alarms rise; weights of tens have lowered the very classes that they were meant for. Compare with "
        "class_weights.max_ratio: 10 or power: 0.5"
    ]


def _class_rows(columns: Columns) -> list[str]:
    """Return one row for each class, or none where there is nothing to show but shares."""
    cells = {
        "weight": None if columns.weights is None else [f"{value:.4g}" for value in columns.weights],
        "prior": None if columns.shift is None else [f"{value:.3f}" for value in columns.shift],
        "margin": None if columns.margin is None else [f"{value:.4f}" for value in columns.margin],
    }
    shown = {head: values for head, values in cells.items() if values is not None}
    if not shown:
        return []
    share = ["–"] * len(columns.names)
    if columns.shares is not None:
        share = [f"{100 * value:.4f}" for value in columns.shares]
    shown = {"share %": share, **shown}
    room = min(48, WIDTH - 2 - 12 * len(shown))
    names = [name if len(name) <= room else name[: room - 1] + "…" for name in columns.names]
    width = max(len("class"), *map(len, names))
    rows = [("class", *shown), *zip(names, *shown.values(), strict=True)]
    return ["  " + f"{row[0]:<{width}}" + "".join(f"  {cell:>10}" for cell in row[1:]) for row in rows]


def distinct_labels(terms: Sequence[TermConfig]) -> tuple[str, ...]:
    """Name the terms: their label, else their name, numbered from the second on."""
    taken = {term.label for term in terms if term.label is not None}
    labels = []
    for term in terms:
        label, number = term.label or term.name, 1
        while term.label is None and label in taken:
            number += 1
            label = f"{term.name}_{number}"
        taken.add(label)
        labels.append(label)
    return tuple(labels)


def reasons(labels: Sequence[str], given: Sequence[str | None]) -> list[str]:
    """Return each reason once, after the labels of the terms that give it."""
    found: dict[str, list[str]] = {}
    for label, reason in zip(labels, given, strict=True):
        if reason is not None:
            found.setdefault(reason, []).append(label)
    return [f"{', '.join(those)}: {reason}" for reason, those in found.items()]
