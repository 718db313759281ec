"""The figures of a measurement as tables: for the terminal at 80 columns, and in markdown."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from segtrain.benchmark.aims import Finding, check_aims
from segtrain.benchmark.environment import busy_warning, environment_lines

HEADINGS = ("loss", "time", "quartiles", "CPU time", "ms", "memory")
NOTES = (
    "Forward + backward. time and CPU time: median over the rounds of the ratio to the first row's, which weights the "
    "classes and gets int64 targets made beforehand. Ours, the plain form and .long() count all they do with the "
    "stored targets; smp and MONAI get theirs made beforehand, MONAI with class 0 for ignored pixels, which it cannot "
    "leave out. memory: peak beyond the inputs, in sizes of the logits; the gradient is 1."
)
NONE = "–"


def header_lines(result: dict[str, Any]) -> list[str]:
    """Return the environment, and a warning when the machine was busy."""
    warning = busy_warning(result["environment"])
    return [*environment_lines(result["environment"]), *([] if warning is None else [warning])]


def case_table(case: dict[str, Any], *, headline: str) -> Group:
    """Return one case for a rich console: the losses, then the aims."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1))
    table.add_column(HEADINGS[0], overflow="fold")
    for heading in HEADINGS[1:]:
        table.add_column(heading, justify="right", no_wrap=True)
    group = None
    for row in case["losses"]:
        if group not in (None, row["group"]):
            table.add_section()
        group = row["group"]
        table.add_row(*map(Text, _cells(row)))
    problems = [Text(f"{row['label']}: {row['problem']}") for row in case["losses"] if row["problem"] is not None]
    problems += [Text(line) for line in limit_lines(case)]
    aims = [Text(f"aim {line}") for line in _aim_lines(check_aims(case, headline=headline))]
    return Group(Text(case["title"], style="bold"), Text(), table, *problems, Text(), *aims)


def markdown(result: dict[str, Any]) -> str:
    """Return the whole report in markdown: what docs/performance.md shows."""
    lines = [f"- {line}" for line in header_lines(result)]
    for case in result["cases"]:
        lines += ["", f"**{case['title']}**", "", *markdown_table(HEADINGS, map(_cells, case["losses"]))]
        problems = [f"- {row['label']}: {row['problem']}" for row in case["losses"] if row["problem"] is not None]
        problems += [f"- {line}" for line in limit_lines(case)]
        lines += ["", *problems] if problems else []
    return "\n".join([*lines, "", *_markdown_aims(result), "", NOTES])


def _markdown_aims(result: dict[str, Any]) -> list[str]:
    rows = [
        [f"{case['classes']}, {case['memory_format']}", finding.aim.text, _bound(finding), *_measured(finding)]
        for case in result["cases"]
        for finding in check_aims(case, headline=result["headline"])
    ]
    if not rows:
        return ["No aim was measured."]
    labels = {row["name"]: row["label"] for row in result["cases"][0]["losses"]}
    return markdown_table(("classes", labels[result["headline"]], "aim", "measured", "quartiles", "met"), rows)


def limit_lines(case: dict[str, Any]) -> list[str]:
    """Return how far above the byte limit ours lie, where a copy was measured beside them (on CUDA)."""
    speed = case.get("copy_bytes_per_second")
    if speed is None:
        return []
    lines = [f"a copy moves {speed / 1e9:.0f} GB/s here, read and written; the limit is two reads and one write"]
    for row in case["losses"]:
        if row.get("of_limit") is not None:
            moved = row["limit_bytes"] / statistics.median(row["seconds"]) / 1e9
            lines.append(f"{row['label']}: {ratio(row['of_limit'])} times the byte limit, {moved:.0f} GB/s")
    return lines


def markdown_table(headings: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """Return a table in markdown, the first column to the left."""
    headings = tuple(headings)
    marks = ["---", *["---:"] * (len(headings) - 1)]
    return ["| " + " | ".join(cells) + " |" for cells in (headings, marks, *rows)]


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    memory = NONE if row["memory"] is None else f"{row['memory']:.2f}"
    time, cpu = row["time"], row["cpu_time"]
    if time is None:
        return row["label"], NONE, NONE, NONE, NONE, memory
    median = milliseconds(statistics.median(row["seconds"]))
    quartiles = f"{ratio(time['lower'])}–{ratio(time['upper'])}"
    of_cpu = NONE if cpu is None else ratio(cpu["median"])
    return row["label"], ratio(time["median"]), quartiles, of_cpu, median, memory


def _aim_lines(findings: list[Finding]) -> list[str]:
    lines = []
    for finding in findings:
        value, quartiles, met = _measured(finding)
        spread = f" ({quartiles})" if quartiles != NONE else ""
        lines.append(f"{'met' if met == 'yes' else 'NOT met'}: {finding.aim.text}: {value}{spread}, {_bound(finding)}")
    return lines


def _measured(finding: Finding) -> tuple[str, str, str]:
    value = finding.value
    alone = value.lower == value.upper
    quartiles = NONE if alone else f"{ratio(value.lower)}–{ratio(value.upper)}"
    return ratio(value.median), quartiles, "yes" if finding.met else "no"


def _bound(finding: Finding) -> str:
    aim = finding.aim
    return f"≤ {aim.at_most:g}" if aim.at_most is not None else f"≥ {aim.at_least:g}"


def ratio(value: float) -> str:
    """Write a ratio with two digits, from 100 on with none."""
    return f"{value:.2f}" if value < 100 else f"{value:.0f}"


def milliseconds(seconds: float) -> str:
    """Write seconds in milliseconds, with about three digits."""
    milliseconds = 1000 * seconds
    digits = 2 if milliseconds < 10 else 1 if milliseconds < 100 else 0
    return f"{milliseconds:.{digits}f}"
