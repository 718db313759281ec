"""The figures in docs/performance.md are those of the measurements that lie beside it, word for word."""

from __future__ import annotations

import json
from pathlib import Path

from segtrain.benchmark import report
from segtrain.benchmark.aims import CPU_AIMS, CPU_TWO_CLASSES, CUDA_AIMS
from segtrain.benchmark.step import AT_MOST
from segtrain.benchmark.step_report import step_markdown

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = (DOCS / "performance.md").read_text(encoding="utf-8")


def test_every_measurement_is_on_the_page_as_the_command_prints_it() -> None:
    paths = sorted((DOCS / "measurements").glob("losses*.json"))
    assert paths
    for path in paths:
        assert report.markdown(json.loads(path.read_text(encoding="utf-8"))) in PAGE, (
            f"print it anew: python tools/benchmark.py losses --show docs/measurements/{path.name} --markdown"
        )


def test_every_measurement_of_a_step_is_on_the_page_as_the_command_prints_it() -> None:
    section = PAGE.partition("## A training step")[2]
    for path in (DOCS / "measurements").glob("step*.json"):
        assert step_markdown(json.loads(path.read_text(encoding="utf-8"))) in section, (
            f"print it anew: python tools/benchmark.py step --show docs/measurements/{path.name} --markdown"
        )
    assert f"≤ {AT_MOST}" in section


def test_the_page_states_the_aims_that_runs_are_held_against() -> None:
    table = PAGE.partition("## Aims")[2].partition("## Measured")[0]
    for aim in (*CPU_AIMS, *CPU_TWO_CLASSES, *CUDA_AIMS):
        bound = f"≤ {aim.at_most}" if aim.at_most is not None else f"≥ {aim.at_least}"
        assert f"| {bound} |" in table, aim.text
