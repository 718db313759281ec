"""The report fits 80 columns, tells what was not measured and why, and holds the aims against the figures."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from segtrain.benchmark import report
from segtrain.benchmark.aims import check_aims
from segtrain.benchmark.cases import Case
from segtrain.benchmark.environment import allocator_settings, busy_warning
from segtrain.benchmark.losses import LossSettings, benchmark_losses
from segtrain.benchmark.subjects import BASELINE, HEADLINE, SUBJECTS

ENVIRONMENT: dict[str, Any] = {
    "device": "cpu",
    "device_name": "Some Processor",
    "threads": 2,
    "cores": 2,
    "load_average": 0.1,
    "python": "3.13.0",
    "packages": {"segtrain": "0.1", "torch": "2.15.0"},
    "allocator": {},
}


def _row(
    name: str, seconds: float | None, *, memory: float | None = None, problem: str | None = None
) -> dict[str, Any]:
    times = [] if seconds is None else [seconds] * 3
    ratio = None if seconds is None else {"median": seconds * 10, "lower": seconds * 9, "upper": seconds * 1111}
    subject = SUBJECTS[name]
    row = {"name": name, "label": subject.label, "group": subject.group, "problem": problem, "memory": memory}
    return row | {"rounds": list(range(len(times))), "seconds": times, "time": ratio, "cpu_time": ratio}


def _result(*rows: dict[str, Any], classes: int = 19, **environment: Any) -> dict[str, Any]:
    case = Case(classes=classes)
    record = {
        "classes": classes,
        "memory_format": "channels_last",
        "device": "cpu",
        "title": case.title(),
        "losses": list(rows),
    }
    return {"headline": HEADLINE, "environment": ENVIRONMENT | environment, "cases": [record]}


def _printed(result: dict[str, Any], *, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width)
    for case in result["cases"]:
        console.print(report.case_table(case, headline=result["headline"]))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_table_fits_80_columns_with_every_label_in_one_line() -> None:
    text = _printed(_result(*(_row(name, 12.345, memory=17.25) for name in SUBJECTS)))
    assert max(map(len, text.splitlines())) <= 80
    for subject in SUBJECTS.values():
        assert any(line.startswith(f"{subject.label} ") and "17.25" in line for line in text.splitlines())


def test_a_loss_that_was_not_measured_says_why() -> None:
    result = _result(_row(BASELINE, 0.1), _row("monai_dice_ce", None, problem="monai is not installed"))
    assert "MONAI DiceCELoss: monai is not installed" in _printed(result)
    assert "- MONAI DiceCELoss: monai is not installed" in report.markdown(result)
    assert "No aim was measured." in report.markdown(result)


def test_the_aims_are_held_against_paired_times_and_memory() -> None:
    rows = (
        _row(BASELINE, 0.1),
        _row(HEADLINE, 0.09, memory=1.31),
        _row("smp_ce_dice_focal", 1.8),
        _row("monai_dice_focal", 0.36),
    )
    findings = {finding.aim.text: finding for finding in check_aims(_result(*rows)["cases"][0], headline=HEADLINE)}
    measured = [(round(finding.value.median, 2), finding.met) for finding in findings.values()]
    assert measured == [(0.9, True), (20.0, True), (4.0, False), (1.31, False)]
    text = report.markdown(_result(*rows))
    assert "| 19, channels_last | time of weighted F.cross_entropy alone | ≤ 1 | 0.90 | – | yes |" in text
    assert "| ≥ 5 | 4.00 | – | no |" in text
    assert "NOT met: faster than MONAI DiceFocalLoss: 4.00, ≥ 5" in _printed(_result(*rows))


def test_two_classes_have_an_aim_of_their_own() -> None:
    findings = check_aims(_result(_row(BASELINE, 0.1), _row(HEADLINE, 0.18), classes=2)["cases"][0], headline=HEADLINE)
    assert [(finding.aim.at_most, finding.met) for finding in findings] == [(2.0, True)]


@pytest.mark.parametrize(
    ("load", "cores", "threads", "busy"),
    [(0.1, 2, 2, False), (1.2, 2, 1, True), (3.0, 64, 8, False), (9.0, 64, 60, True)],
)
def test_a_busy_machine_is_said(load: float, cores: int, threads: int, busy: bool) -> None:
    environment = ENVIRONMENT | {"load_average": load, "cores": cores, "threads": threads}
    assert (busy_warning(environment) is not None) == busy


def test_the_allocator_settings_are_those_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in allocator_settings():
        monkeypatch.delenv(name)
    assert "no MALLOC_* variable" in " ".join(report.header_lines(_result()))
    monkeypatch.setenv("MALLOC_TOP_PAD_", "1000")
    assert allocator_settings() == {"MALLOC_TOP_PAD_": "1000"}
    assert "MALLOC_TOP_PAD_=1000" in "\n".join(report.header_lines(_result(allocator=allocator_settings())))


def test_what_another_library_cannot_take_is_a_row_and_not_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise RuntimeError("not implemented for 'Half'\nand a long story")

    subject = SUBJECTS["smp_ce_dice"]
    monkeypatch.setitem(SUBJECTS, "smp_ce_dice", type(subject)("smp CE + Dice", "others", lambda case: refuse))
    settings = LossSettings(
        cases=(Case(batch=1, classes=2, size=8),), subjects=(BASELINE, "smp_ce_dice"), rounds=3, memory=False
    )
    rows = benchmark_losses(settings)["cases"][0]["losses"]
    assert [row["problem"] for row in rows] == [None, "not implemented for 'Half'"]
    monkeypatch.setitem(SUBJECTS, "smp_ce_dice", type(subject)("ours", "segtrain", lambda case: refuse))
    with pytest.raises(RuntimeError, match="Half"):
        benchmark_losses(settings)
