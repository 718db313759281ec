"""The figures of the step benchmark as tables: for the terminal at 80 columns, and in markdown."""

from __future__ import annotations

import statistics
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from segtrain.benchmark.report import NONE, header_lines, markdown_table, milliseconds

HEADINGS = ("a training step", "time", "quartiles", "CPU time", "ms")
PHASE_HEADINGS = ("phase", "ms", "share")
PHASE_LABELS = {
    "data_wait": "waiting for data",
    "to_device": "to device and normalise",
    "forward": "forward",
    "loss": "loss",
    "backward": "backward",
    "optimizer": "norm of the gradient, guard, optimizer",
    "rest": "rest",
}
NOTES = (
    "Both make the same steps from the same weights on the same batches, read beforehand. time and CPU time: median "
    "over the rounds of the ratio to the first row's. Phases: mean of steps of the engine with the loader of the run, "
    "in which a clock waits for the device at both ends of each phase; rest is telemetry, the count of the classes "
    "seen, logs, and what the steps take around the phases."
)


def step_table(result: dict[str, Any]) -> Group:
    """Return the measurement for a rich console: both loops, the aim, and the phases."""
    lines = [Text(line) for line in [*_same_lines(result), _aim_line(result), ""]]
    loops = _table(HEADINGS, [_cells(row) for row in result["rows"]])
    phases = _table(PHASE_HEADINGS, _phase_cells(result))
    return Group(Text(result["case"]["title"], style="bold"), Text(), loops, *lines, phases)


def step_markdown(result: dict[str, Any]) -> str:
    """Return the whole report in markdown: what docs/performance.md shows."""
    loops = markdown_table(HEADINGS, [_cells(row) for row in result["rows"]])
    phases = markdown_table(PHASE_HEADINGS, _phase_cells(result))
    head = [f"- {line}" for line in header_lines(result)]
    tail = [f"- {line}" for line in [*_same_lines(result), _aim_line(result)]]
    title = f"**{result['case']['title']}**"
    return "\n".join([*head, "", title, "", *loops, "", *tail, "", *phases, "", NOTES])


def _table(headings: tuple[str, ...], rows: list[tuple[str, ...]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1))
    table.add_column(headings[0], overflow="fold")
    for heading in headings[1:]:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    time, cpu = row["time"], row["cpu_time"]
    quartiles = f"{time['lower']:.3f}–{time['upper']:.3f}"
    of_cpu = NONE if cpu is None else f"{cpu['median']:.3f}"
    return row["label"], f"{time['median']:.3f}", quartiles, of_cpu, milliseconds(statistics.median(row["seconds"]))


def _phase_cells(result: dict[str, Any]) -> list[tuple[str, ...]]:
    phases: dict[str, float] = result["phases"]
    whole = max(sum(phases.values()), 1e-12)
    return [(PHASE_LABELS[name], milliseconds(value), f"{100 * value / whole:.1f} %") for name, value in phases.items()]


def _same_lines(result: dict[str, Any]) -> list[str]:
    if result["largest_difference"] == 0:
        return ["both ended with the same bits in every weight"]
    return [f"largest difference between two weights at the end: {result['largest_difference']:.1e}"]


def _aim_line(result: dict[str, Any]) -> str:
    time = result["rows"][-1]["time"]
    met = "met" if time["median"] <= result["at_most"] else "NOT met"
    spread = f"{time['median']:.3f} ({time['lower']:.3f}–{time['upper']:.3f})"
    return f"aim {met}: time of the bare loop: {spread}, ≤ {result['at_most']:g}"
