"""The comparison of runs as a table: for the terminal, as Markdown and as CSV rows."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from segtrain.errors import ConfigError, suggest
from segtrain.report.comparison import EvaluatedRun, seeds
from segtrain.report.numbers import RATIO_NAMES, UNDEFINED, percent

BEST = "*"
MEAN_HEADS = {"miou": "mIoU", "miou_tail": "tail"}
UNDEFINED_WHERE = {"precision": "never predicted", "recall": "not in the masks"}
NAME_WIDTH, HEAD_WIDTH, GAP = 26, 12, 2  # characters; longer names are folded


@dataclass(frozen=True)
class Scores:
    """The numbers of the table: columns are the means, then the classes from the rarest to the most common.

    heads: of the columns; shares: of the training pixels in percent, "" for means. names: of the rows, one a run,
    without `prefix`, the beginning that all of them share. values: in percent, NaN where undefined. best: the
    values that no other of their column exceeds, as they are shown; none where all are equal.
    """

    heads: tuple[str, ...]
    shares: tuple[str, ...]
    names: tuple[str, ...]
    prefix: str
    values: tuple[tuple[float, ...], ...]
    best: frozenset[tuple[int, int]]


def sort_runs(runs: Sequence[EvaluatedRun], key: str | None) -> list[EvaluatedRun]:
    """Order runs by name, or by a mean or the value of a class, highest first and undefined last; None: as they stand.

    Raises:
        ConfigError: no such key.
    """
    sortable = [*runs[0].means, *runs[0].values]
    if key is None:
        return list(runs)
    if key == "name":
        return sorted(runs, key=lambda run: run.name)
    if key not in sortable:
        known = ["name", *sortable]
        raise ConfigError(f"--sort {key}: expected one of {', '.join(known)}{suggest(key, known)}")
    return sorted(runs, key=lambda run: _descending({**run.values, **run.means}[key]))


def _descending(value: float) -> float:
    return math.inf if math.isnan(value) else -value


def make_scores(runs: Sequence[EvaluatedRun]) -> Scores:
    """Arrange the numbers of the runs, in the order of the runs."""
    counts = _counts(runs[0])
    total = max(1, sum(counts.values()))
    classes = sorted(counts, key=lambda name: counts[name])
    prefix = _common_beginning([run.name for run in runs])
    values = tuple(
        tuple(100 * value for value in (*run.means.values(), *(run.values[name] for name in classes))) for run in runs
    )
    return Scores(
        heads=(*(MEAN_HEADS[mean] for mean in runs[0].means), *classes),
        shares=(*("" for _ in runs[0].means), *(percent(counts[name] / total) for name in classes)),
        names=tuple(run.name.removeprefix(prefix) for run in runs),
        prefix=prefix,
        values=values,
        best=_best(values),
    )


def terminal_table(runs: Sequence[EvaluatedRun], *, width: int = 80) -> RenderableType:
    """Return the table with its notes: a row for each run, or for each class where that takes fewer tables."""
    scores = make_scores(runs)
    heads = tuple(_headed(head, share) for head, share in zip(scores.heads, scores.shares, strict=True))
    by_run = _blocks(scores.names, heads, width=width)
    columns = tuple(_broken(name) for name in scores.names)
    by_class = _blocks(heads, columns, width=width)
    parts: list[RenderableType] = []
    if len(by_run) <= len(by_class):
        parts += [_table("run", scores.names, heads, chosen, lambda r, c: _cell(scores, r, c)) for chosen in by_run]
    else:
        rows = tuple(
            f"{head}  {share} %" if share else head for head, share in zip(scores.heads, scores.shares, strict=True)
        )
        parts += [_table("", rows, columns, chosen, lambda r, c: _cell(scores, c, r)) for chosen in by_class]
    spaced = [part for table in parts for part in (table, Text())]
    return Group(*spaced, Text("\n".join(notes(runs))))


def markdown(runs: Sequence[EvaluatedRun]) -> str:
    """Return the table in Markdown, a row for each run, the best of each column bold, with its notes under it."""
    scores = make_scores(runs)
    cells = [
        [_escaped(name), *(_bold(scores, row, column) for column in range(len(scores.heads)))]
        for row, name in enumerate(scores.names)
    ]
    lines = [
        [f"{runs[0].split} {_ratio_name(runs[0])}, %", *map(_escaped, scores.heads)],
        ["---", *("---:" for _ in scores.heads)],
        [f"share of {_counted_pixels(runs[0])}, %", *scores.shares],
        *cells,
    ]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{table}\n\n{' '.join(_sentences(notes(runs, mark='bold')))}\n"


def csv_table(runs: Sequence[EvaluatedRun]) -> list[list[Any]]:
    """Return the header and a row for each run; fractions, undefined ones empty, nothing marked."""
    rows: list[list[Any]] = [
        ["run", "split", "seed", "steps", *runs[0].means, *(f"{runs[0].ratio}/{name}" for name in runs[0].values)]
    ]
    for run in runs:
        values = [*run.means.values(), *run.values.values()]
        about = [run.name, run.split, run.settings.get("seed", ""), "" if run.steps is None else run.steps]
        rows.append([*about, *("" if math.isnan(value) else value for value in values)])
    return rows


def notes(runs: Sequence[EvaluatedRun], *, mark: str = BEST) -> list[str]:
    """Return what the table needs to be read: data, order of the columns, marks, names left short, number of seeds."""
    first, scores = runs[0], make_scores(runs)
    images = f"{first.num_images} image{'s' if first.num_images != 1 else ''}"
    lines = [
        f"{first.split}, {images}: {_ratio_name(first)} in %; classes from the rarest by {_counted_pixels(first)}",
    ]
    if "miou_tail" in first.means:
        lines.append(f"tail: mean over {', '.join(first.tail)}")
    if scores.best:
        lines.append(f"{mark}: highest of the runs")
    if any(math.isnan(value) for row in scores.values for value in row):
        lines.append(
            f"{UNDEFINED}: undefined, {UNDEFINED_WHERE.get(first.ratio, 'neither in the masks nor predicted')}"
        )
    if scores.prefix:
        lines.append(f"names of runs without their common beginning {scores.prefix}")
    found = seeds(runs)
    if len(runs) > 1 and len(found) == 1:
        lines.append(f"one seed ({found[0]}): differences as small as those between seeds mean nothing")
    return lines


def _ratio_name(run: EvaluatedRun) -> str:
    return RATIO_NAMES.get(run.ratio, run.ratio)


def _sentences(lines: Sequence[str]) -> list[str]:
    return [f"{line[0].upper()}{line[1:]}." for line in lines]


def _counts(run: EvaluatedRun) -> dict[str, int]:
    trained = {name: count for name, count in run.train_pixels.items() if count is not None}
    return trained if len(trained) == len(run.values) else dict(run.pixels)


def _counted_pixels(run: EvaluatedRun) -> str:
    known = all(count is not None for count in run.train_pixels.values())
    return "training pixels" if known else f"pixels of {run.split} (training pixels unknown)"


def _best(values: Sequence[Sequence[float]]) -> frozenset[tuple[int, int]]:
    found: set[tuple[int, int]] = set()
    if len(values) < 2:
        return frozenset()
    for column in range(len(values[0])):
        shown = [_shown(row[column]) for row in values]
        defined = [float(text) for text in shown if text != UNDEFINED]
        if len(set(defined)) > 1:
            found |= {(row, column) for row, text in enumerate(shown) if text == f"{max(defined):.1f}"}
    return frozenset(found)


def _common_beginning(names: Sequence[str]) -> str:
    """The beginning up to a _, - or / that all names share, if something is left of each."""
    if len(names) < 2:
        return ""
    low, high = min(names), max(names)
    length = next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), len(low))
    end = max(low[:length].rfind(separator) for separator in "_-/") + 1
    return low[:end] if all(len(name) > end for name in names) else ""


def _shown(value: float) -> str:
    return UNDEFINED if math.isnan(value) else f"{value:.1f}"


def _cell(scores: Scores, run: int, column: int) -> Text:
    text, best = _shown(scores.values[run][column]), (run, column) in scores.best
    return Text(f"{text}{BEST if best else ' '}", style="bold" if best else "")


def _bold(scores: Scores, run: int, column: int) -> str:
    text = _shown(scores.values[run][column])
    return f"**{text}**" if (run, column) in scores.best else text


def _escaped(text: str) -> str:
    """Text without meaning for Markdown; underscores within words have none."""
    return re.sub(r"[\\|*`\[<]|\b_|_\b", r"\\\g<0>", " ".join(text.split()))


def _headed(head: str, share: str) -> str:
    return f"{_broken(head)}\n{share} %" if share else head


def _broken(name: str) -> str:
    """The name in lines that end after _, -, / or a space where there are any, so that columns can be narrow."""
    lines = [""]
    for part in re.findall(r"[^_\-/ ]*[_\-/ ]?", name):
        if lines[-1] and len(lines[-1] + part) > HEAD_WIDTH:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def _width(head: str) -> int:
    return max(6, *(min(len(line), HEAD_WIDTH) for line in head.split("\n")))


def _blocks(rows: Sequence[str], heads: Sequence[str], *, width: int) -> list[list[int]]:
    """Split the columns into as few tables as have room in `width` characters beside the names of the rows."""
    room = width - min(NAME_WIDTH, max(len(row.replace("\n", "  ")) for row in rows))
    blocks: list[list[int]] = [[]]
    left = room
    for column, head in enumerate(heads):
        needed = _width(head) + GAP
        if needed > left and blocks[-1]:
            blocks.append([])
            left = room
        blocks[-1].append(column)
        left -= needed
    return blocks


def _table(
    corner: str, rows: Sequence[str], heads: Sequence[str], chosen: Sequence[int], cell: Callable[[int, int], Text]
) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column(corner, max_width=NAME_WIDTH, overflow="fold", vertical="bottom")
    for column in chosen:
        head = Text(heads[column], overflow="fold", justify="right")
        table.add_column(head, justify="right", min_width=_width(heads[column]), max_width=HEAD_WIDTH)
    for row, name in enumerate(rows):
        table.add_row(Text(name), *(cell(row, column) for column in chosen))
    return table
