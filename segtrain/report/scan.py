"""Shows class frequencies: a table for the terminal, JSON, an index of the images as CSV, and a bar chart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.markup import escape
from rich.table import Table

from segtrain.data.formats import Sample
from segtrain.data.frequencies import ClassFrequencies, ScanResult
from segtrain.drawing import shorten
from segtrain.errors import listing
from segtrain.files import write_csv, write_json
from segtrain.report.figure import new_figure, plain, save_png
from segtrain.report.numbers import percent

RARE_SHARE = 0.01
FREQUENT_COLOR, RARE_COLOR = "#0072B2", "#D55E00"  # colour-blind safe (Okabe & Ito)
INCHES_PER_CLASS = 0.24
DOTS_PER_INCH = 110
MAX_INCHES = 65000 / DOTS_PER_INCH  # matplotlib draws at most 2^16 dots a side


def frequency_table(frequencies: ClassFrequencies, names: Sequence[str]) -> Table:
    """A row for each class in the order of their numbers.

    Where classes may overlap, each has labelled pixels of its own, yes or no, and its share is that of yes in them.
    """
    table = Table("", "class", "pixels", "% of pixels", "images", "% of images", box=None, pad_edge=False)
    if frequencies.valid is not None:
        table.columns[3].header = "% of labelled"
        table.add_column("labelled")
    for column in (table.columns[0], *table.columns[2:]):
        column.justify = "right"
    num_images = max(1, frequencies.num_images)
    for number, name in enumerate(names):
        pixels, images = int(frequencies.pixels[number]), int(frequencies.images[number])
        shares = percent(frequencies.share[number]), percent(images / num_images)
        style = "yellow" if pixels == 0 else None
        labelled = [] if frequencies.valid is None else [f"{int(frequencies.valid[number]):,}"]
        cells = (f"{pixels:,}", shares[0], f"{images:,}", shares[1], *labelled)
        table.add_row(str(number), escape(name), *cells, style=style)
    return table


def summary_lines(result: ScanResult, names: Sequence[str]) -> list[str]:
    """What the table does not say: ignored pixels, imbalance, absent classes, skipped files, unused masks."""
    frequencies = result.frequencies
    earlier = frequencies.num_images - result.num_read
    known = f" ({earlier:,} of them known from an earlier scan)" if earlier > 0 else ""
    pixels, ratio = "pixels", "pixels of the most frequent class to the rarest"
    if frequencies.valid is not None:
        pixels, ratio = "pairs of pixel and class", "pixels without to pixels with the class for which it is highest"
    lines = [
        f"{frequencies.num_images:,} images{known}",
        f"ignored: {frequencies.ignored:,} {pixels}, {percent(frequencies.ignored_share)} % of all",
        f"imbalance ratio: {frequencies.imbalance_ratio:,.1f} ({ratio})",
    ]
    absent = [name for name, pixels in zip(names, frequencies.pixels, strict=True) if pixels == 0]
    if absent:
        lines.append(f"absent: {', '.join(absent)}")
    if result.problems:
        lines.append(f"left out (data.on_bad: skip): {len(result.problems)} bad files")
        lines += [f"  {problem.path}: {problem.reason}" for problem in result.problems]
    if result.unused_masks:
        head = f"masks without an image, not used: {len(result.unused_masks)}"
        lines += listing(head, result.unused_masks).splitlines()
    return lines


def write_frequencies(path: Path, result: ScanResult, *, names: Sequence[str], split: str) -> None:
    """Counts, shares and bad files, under the names of the classes."""
    frequencies = result.frequencies
    ratio = frequencies.imbalance_ratio
    content = {
        "split": split,
        "classes": list(names),
        **frequencies.to_dict(),
        "share": frequencies.share.tolist(),
        "ignored_share": frequencies.ignored_share,
        "imbalance_ratio": None if np.isnan(ratio) else ratio,
        "unused_masks": [str(file) for file in result.unused_masks],
        "problems": [
            {"file": str(problem.path), "kind": problem.kind.value, "reason": problem.reason}
            for problem in result.problems
        ],
    }
    write_json(path, content)


def write_index(path: Path, result: ScanResult, *, names: Sequence[str]) -> None:
    """One line for each image: its name, its files and its pixels of each class."""
    rows = zip(result.samples, result.counts.tolist(), strict=True)
    lines = [[sample.name, sample.image, _mask_of(sample), *counts] for sample, counts in rows]
    write_csv(path, [["name", "image", "mask", *names, "ignored"], *lines])


def _mask_of(sample: Sample) -> Path | str | None:
    """The path of a sample's mask, or those of its classes with semicolons between them."""
    return sample.mask if sample.files is None else ";".join(filter(None, sample.files))


def write_chart(path: Path, frequencies: ClassFrequencies, *, names: Sequence[str], title: str) -> None:
    """Draw the share of each class in the valid pixels, most frequent first, on a log scale, as PNG."""
    order = np.argsort(-frequencies.pixels, kind="stable")
    percents = 100 * frequencies.share[order]
    height = min(INCHES_PER_CLASS * len(names) + 1.3, MAX_INCHES)
    figure = new_figure(9, height, dpi=DOTS_PER_INCH)
    axes = figure.add_subplot()
    smallest = percents[percents > 0].min(initial=100)
    left, right = min(0.1, smallest / 3), 1000  # the smallest bar has a length, the longest room for its label
    rows = np.arange(len(names))
    colors = [RARE_COLOR if value < 100 * RARE_SHARE else FREQUENT_COLOR for value in percents]
    axes.barh(rows, np.maximum(percents, left), color=colors, height=0.72)
    behind = {"facecolor": "white", "edgecolor": "none", "pad": 1}
    for row, number in enumerate(order.tolist()):
        label, end = _bar_label(frequencies, number), max(float(percents[row]), left)
        axes.text(end * 1.08, row, label, va="center", fontsize=8, color="#333333", bbox=behind, in_layout=False)
    axes.set_xscale("log")
    axes.set_xlim(left, right)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_yticks(rows, [plain(shorten(names[number], 30)) for number in order], fontsize=8)
    ticks = [tick for tick in axes.get_xticks() if left <= tick <= 100]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("% of the valid pixels (log scale); orange: below 1 %", fontsize=9)
    axes.grid(axis="x", color="#dddddd")
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_title(f"{plain(title)}\n{_chart_summary(frequencies)}", fontsize=10, loc="left")
    save_png(path, figure)


def _bar_label(frequencies: ClassFrequencies, number: int) -> str:
    if frequencies.pixels[number] == 0:
        return "absent"
    images = int(frequencies.images[number])
    return f"{percent(frequencies.share[number])} %  in {images:,} image{'s' if images != 1 else ''}"


def _chart_summary(frequencies: ClassFrequencies) -> str:
    ratio, ignored = frequencies.imbalance_ratio, percent(frequencies.ignored_share)
    return f"{frequencies.num_images:,} images, imbalance ratio {ratio:,.1f}, {ignored} % of the pixels ignored"
