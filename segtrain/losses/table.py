"""The loss in words: its terms and class weights as plain text, for the start of a run."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from segtrain.config.loss import LossConfig

WIDTH = 80


def describe(
    config: LossConfig,
    *,
    labels: Sequence[str],
    class_names: Sequence[str],
    weights: Sequence[float] | None,
    shares: Sequence[float] | None,
) -> str:
    """Return lines of at most 80 columns: each term with its settings, then a row for each class if weighted."""
    lines = []
    for label, term in zip(labels, config.terms, strict=True):
        settings = term.model_dump(exclude={"name", "label", "weight"})
        text = ", ".join(f"{key}: {str(value).lower()}" for key, value in settings.items())
        first = f"{term.weight:g} × {label}" + (f" ({text})" if text else "")
        lines += textwrap.wrap(first, WIDTH, subsequent_indent="    ")
    if config.ohem is not None:
        rule = config.ohem.model_dump(exclude_none=True)
        lines.append("hard examples: " + ", ".join(f"{key}: {value:g}" for key, value in rule.items()))
    lines.append(f"reduction: {config.reduction}, class weights: {config.class_weights.scheme}")
    if weights is not None:
        lines += _weight_rows(class_names, weights, shares)
    return "\n".join(line if len(line) <= WIDTH else line[: WIDTH - 1] + "…" for line in lines)


def _weight_rows(class_names: Sequence[str], weights: Sequence[float], shares: Sequence[float] | None) -> list[str]:
    names = [name if len(name) <= 48 else name[:47] + "…" for name in class_names]
    width = max(len("class"), *map(len, names))
    rows = [f"  {'class':<{width}}  {'share %':>10}  {'weight':>10}"]
    for index, name in enumerate(names):
        share = "–" if shares is None else f"{100 * shares[index]:.4f}"
        rows.append(f"  {name:<{width}}  {share:>10}  {weights[index]:>10.4g}")
    return rows
