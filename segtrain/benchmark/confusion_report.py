"""The figures of the confusion benchmark as tables: for the terminal at 80 columns, and in markdown."""

from __future__ import annotations

import statistics
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from segtrain.benchmark.report import NONE, header_lines, markdown_table, milliseconds, ratio

AT_LEAST = 5.0  # times faster than torchmetrics from logits, on a CPU
HEADINGS = ("from", "time", "quartiles", "CPU time", "ms", "limit", "memory")
NOTES = (
    "One update with a batch. torch: argmax + bincount, of coarse logits after F.interpolate. "
    "time and CPU time: median over the rounds of the ratio to the first measured row. "
    "limit: time over that of moving the bytes which must be read (values and targets) at the speed of a plain copy "
    "in the same run. memory: peak beyond the inputs, in sizes of the full logits; classes and coarse logits are made "
    "beforehand."
)


def confusion_table(case: dict[str, Any]) -> Group:
    """Return one case for a rich console: the ways, then the aim."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1))
    table.add_column(HEADINGS[0], overflow="fold")
    for heading in HEADINGS[1:]:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in case["rows"]:
        table.add_row(*map(Text, _cells(row, case["logits_bytes"])))
    lines = [Text(line) for line in [*_problems(case), "", _copy_line(case), *_aim_lines(case)]]
    return Group(Text(case["title"], style="bold"), Text(), table, *lines)


def confusion_markdown(result: dict[str, Any]) -> str:
    """Return the whole report in markdown: what docs/performance.md shows."""
    lines = [f"- {line}" for line in header_lines(result)]
    for case in result["cases"]:
        rows = [_cells(row, case["logits_bytes"]) for row in case["rows"]]
        lines += ["", f"**{case['title']}**", "", *markdown_table(HEADINGS, rows), ""]
        lines += [f"- {line}" for line in [*_problems(case), _copy_line(case), *_aim_lines(case)]]
    return "\n".join([*lines, "", NOTES])


def _cells(row: dict[str, Any], logits_bytes: int) -> tuple[str, ...]:
    memory = NONE if row["peak_bytes"] is None else f"{row['peak_bytes'] / logits_bytes:.2f}"
    time, cpu = row["time"], row["cpu_time"]
    if time is None:
        return row["label"], NONE, NONE, NONE, NONE, NONE, memory
    quartiles = f"{ratio(time['lower'])}–{ratio(time['upper'])}"
    median = milliseconds(statistics.median(row["seconds"]))
    of_cpu = NONE if cpu is None else ratio(cpu["median"])
    return row["label"], ratio(time["median"]), quartiles, of_cpu, median, ratio(row["of_limit"]), memory


def _problems(case: dict[str, Any]) -> list[str]:
    return [f"{row['label']}: {row['problem']}" for row in case["rows"] if row["problem"] is not None]


def _copy_line(case: dict[str, Any]) -> str:
    return f"a copy moves {case['copy_bytes_per_second'] / 1e9:.1f} GB/s here, read and written"


def _aim_lines(case: dict[str, Any]) -> list[str]:
    rows = {row["name"]: row for row in case["rows"]}
    faster = rows["ours"]["faster"]
    if case["device"].startswith("cuda") or case["baseline"] != "torchmetrics" or faster is None:
        return []
    met = "met" if faster["median"] >= AT_LEAST else "NOT met"
    spread = f"{ratio(faster['median'])} ({ratio(faster['lower'])}–{ratio(faster['upper'])})"
    return [f"aim {met}: from logits, times faster than torchmetrics: {spread}, ≥ {AT_LEAST:g}"]
