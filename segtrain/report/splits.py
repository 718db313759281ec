"""New splits on the terminal: what each holds of every class, which class is missing where, the lines to use them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from rich.markup import escape
from rich.table import Table

from segtrain.config.data import DataConfig
from segtrain.data.splits import Shares
from segtrain.report.numbers import percent

SIDE_BY_SIDE = 3  # splits whose images and shares fit into 80 columns


def split_lines(shares: Shares) -> list[str]:
    """One line for each split: its images and groups, beside what was asked for."""
    images, groups, total = shares.num_images(), shares.num_groups(), len(shares.assigned)
    grouped = int(groups.sum()) < total
    lines = []
    for number, name in enumerate(shares.names):
        share, asked = 100 * images[number] / total, 100 * shares.fractions[number]
        held = f" in {groups[number]:,} group{'s' if groups[number] != 1 else ''}" if grouped else ""
        lines.append(f"{name}: {images[number]:,} images{held}, {share:.1f} % (asked: {asked:.1f} %)")
    return lines


def class_tables(shares: Shares, classes: Sequence[str]) -> list[Table]:
    """A row for each class: its images in each split, and its share in the pixels of that split.

    One table for few splits; for more, which would not fit beside each other, one of images and one of shares.
    """
    pixels, images = shares.pixels(), shares.images()
    totals = np.maximum(1, pixels.sum(axis=1, keepdims=True))
    counted = [[f"{count:,}" for count in row] for row in images.tolist()]
    parts = [[percent(share) for share in row] for row in (pixels / totals).tolist()]
    lacking = (images == 0).any(axis=0).tolist()
    if len(shares.names) <= SIDE_BY_SIDE:
        heads = [head for name in shares.names for head in (f"{name}\nimages", "\n% of pixels")]
        columns = [column for both in zip(counted, parts, strict=True) for column in both]
        return [_table("\nclass", heads, columns, classes, lacking)]
    return [
        _table("images", list(shares.names), counted, classes, lacking),
        _table("% of pixels", list(shares.names), parts, classes, lacking),
    ]


def _table(
    corner: str, heads: Sequence[str], columns: Sequence[Sequence[str]], classes: Sequence[str], marked: Sequence[bool]
) -> Table:
    table = Table(corner, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for head in heads:
        table.add_column(escape(head), justify="right")
    for row, (name, mark) in enumerate(zip(classes, marked, strict=True)):
        table.add_row(escape(name), *(column[row] for column in columns), style="yellow" if mark else None)
    return table


def config_lines(data: DataConfig, splits: Mapping[str, str]) -> list[str]:
    """The data section's lines that use list files, by the names of the splits."""
    named = ", ".join(f"{name}: {path}" for name, path in splits.items())
    lines = ["data:", f"  root: {data.root}", "  layout: lists", f"  splits: {{{named}}}"]
    if data.layout != "lists" and data.label_map is None and data.colors is None:
        labels = data.raw_labels()
        if labels:
            meanings = ", ".join(f"{raw}: {_label(data, label)}" for raw, label in labels.items())
            lines.append(f"  label_map: {{{meanings}}}  # what the layout {data.layout} reads into the masks")
    return lines


def _label(data: DataConfig, label: int | str) -> str:
    return data.class_names[label] if isinstance(label, int) else label
