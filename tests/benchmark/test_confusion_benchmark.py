"""The ways to a confusion matrix that are compared count the same, and the report says what was measured."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from segtrain.benchmark import bandwidth, report
from segtrain.benchmark.aims import CUDA_AIMS, check_aims
from segtrain.benchmark.cases import Case, make_inputs
from segtrain.benchmark.confusion import ConfusionSettings, benchmark_confusion, measure_confusion_memory
from segtrain.benchmark.confusion_report import confusion_markdown, confusion_table
from segtrain.benchmark.confusion_subjects import CONFUSION_SUBJECTS, OURS, TORCHMETRICS
from segtrain.benchmark.losses import least_bytes
from segtrain.benchmark.memory import has_resident_peak, in_child
from segtrain.benchmark.subjects import HEADLINE
from segtrain.cli.main import main
from segtrain.kernels.confusion import confusion_update
from segtrain.kernels.upsample import CoarseLogits

SMALL = Case(batch=2, classes=5, size=24)


@pytest.mark.parametrize("memory_format", ["nchw", "channels_last"])
@pytest.mark.parametrize("name", [name for name, subject in CONFUSION_SUBJECTS.items() if not subject.is_ours])
def test_what_is_compared_counts_what_we_count(name: str, memory_format: str) -> None:
    subject = CONFUSION_SUBJECTS[name]
    if (reason := subject.missing()) is not None:
        pytest.skip(reason)
    case = replace(SMALL, memory_format=memory_format, dtype="float64")
    inputs = make_inputs(case)
    values = subject.values(case, inputs)
    counted = subject.make(case)(values, inputs.target)
    given = CoarseLogits(values, (24, 24), (24, 24)) if subject.reads == "coarse" else values
    ours = confusion_update(given, inputs.target, num_classes=5, ignore_index=case.ignore_index)
    assert isinstance(counted, torch.Tensor)
    assert torch.equal(counted, ours.matrix.sum(0))


def test_a_run_has_a_row_for_every_way_and_a_missing_library_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segtrain.benchmark.confusion_subjects.find_spec", lambda name: None)
    monkeypatch.setattr(bandwidth, "SMALLEST", 2**12)
    result = benchmark_confusion(ConfusionSettings(cases=(SMALL,), rounds=3, memory=False))
    (case,) = result["cases"]
    assert [row["name"] for row in case["rows"]] == list(CONFUSION_SUBJECTS)
    rows = {row["name"]: row for row in case["rows"]}
    assert "torchmetrics is not installed" in rows[TORCHMETRICS]["problem"]
    assert case["baseline"] == "torch"
    assert rows["torch"]["time"]["median"] == 1.0
    assert rows[OURS]["bytes"] == 2 * 5 * 24 * 24 * 4 + 2 * 24 * 24
    assert rows["ours_classes"]["bytes"] == 2 * (2 * 24 * 24)
    assert rows[OURS]["of_limit"] == pytest.approx(
        sorted(rows[OURS]["seconds"])[1] / (rows[OURS]["bytes"] / case["copy_bytes_per_second"])
    )
    assert "aim" not in confusion_markdown(result)


def test_an_error_of_ours_ends_the_run_and_one_of_others_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise RuntimeError("no such type\nand a long story")

    monkeypatch.setattr(bandwidth, "SMALLEST", 2**12)
    settings = ConfusionSettings(cases=(SMALL,), rounds=3, memory=False)
    broken = replace(CONFUSION_SUBJECTS["torch_coarse"], make=lambda case: refuse)
    monkeypatch.setitem(CONFUSION_SUBJECTS, "torch_coarse", broken)
    rows = {row["name"]: row for row in benchmark_confusion(settings)["cases"][0]["rows"]}
    assert rows["torch_coarse"]["problem"] == "no such type"
    monkeypatch.setitem(CONFUSION_SUBJECTS, OURS, replace(CONFUSION_SUBJECTS[OURS], make=lambda case: refuse))
    with pytest.raises(RuntimeError, match="no such type"):
        benchmark_confusion(settings)


def _case(faster: float) -> dict[str, Any]:
    spread = {"median": 12.345, "lower": 1.1, "upper": 1234.5}
    row = {"problem": None, "time": spread, "cpu_time": spread, "of_limit": 123.4, "peak_bytes": 4000, "seconds": [1.0]}
    rows = [row | {"name": name, "label": subject.label} for name, subject in CONFUSION_SUBJECTS.items()]
    for each in rows:
        each["faster"] = spread | {"median": faster}
    case = {"title": SMALL.title(), "logits_bytes": 1000, "copy_bytes_per_second": 4.3e12, "device": "cpu"}
    return case | {"rows": rows, "baseline": TORCHMETRICS}


@pytest.mark.parametrize(("faster", "text"), [(5.0, "aim met: "), (4.9, "aim NOT met: ")])
def test_the_table_fits_80_columns_and_tells_the_aim(faster: float, text: str) -> None:
    console = Console(file=io.StringIO(), width=80)
    console.print(confusion_table(_case(faster)))
    assert isinstance(console.file, io.StringIO)
    printed = console.file.getvalue()
    assert max(map(len, printed.splitlines())) <= 80
    for subject in CONFUSION_SUBJECTS.values():
        assert any(line.startswith(f"{subject.label} ") and "4.00" in line for line in printed.splitlines())
    assert text in printed
    assert "a copy moves 4300.0 GB/s" in printed


def test_a_copy_counts_its_bytes_read_and_written(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([100.0, 100.0, *[1.0, 2.0, 4.0, 0.5, 2.0, 9.0, 0.1]])
    monkeypatch.setattr(bandwidth, "SMALLEST", 1000)
    monkeypatch.setattr(bandwidth, "time_call", lambda call, *, device: (next(seconds), 0.0))
    assert bandwidth.copy_bytes_per_second(4000, device="cpu") == 2 * 4000 / 2.0
    assert bandwidth.limit_ratio([0.2, 0.3, 0.1], 100, bytes_per_second=1000) == pytest.approx(2.0)
    assert bandwidth.limit_ratio([], 100, bytes_per_second=1000) is None


def test_the_limit_of_a_loss_is_two_reads_and_one_write() -> None:
    case = Case(batch=16, classes=19, size=1024, dtype="bfloat16")
    assert least_bytes(case.logits_bytes, 16 * 1024 * 1024) == pytest.approx(1.95e9, rel=5e-3)


def test_the_losses_on_cuda_are_held_against_the_limit() -> None:
    row = {
        "name": HEADLINE,
        "label": "ours",
        "problem": None,
        "memory": 1.0,
        "seconds": [0.001] * 3,
        "rounds": [0, 1, 2],
    }
    row |= {"of_limit": 1.2, "limit_bytes": 2e9}
    case = {"device": "cuda", "classes": 19, "losses": [row], "copy_bytes_per_second": 4.3e12}
    findings = {finding.aim: finding for finding in check_aims(case, headline=HEADLINE)}
    limit = next(aim for aim in CUDA_AIMS if aim.other == "limit")
    assert (findings[limit].value.median, findings[limit].met) == (1.2, True)
    row["of_limit"] = 1.3
    findings = {finding.aim: finding for finding in check_aims(case, headline=HEADLINE)}
    assert not findings[limit].met
    assert report.limit_lines(case)[1] == "ours: 1.30 times the byte limit, 2000 GB/s"
    assert report.limit_lines({"losses": [row]}) == []


def test_the_command_measures_prints_and_writes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bandwidth, "SMALLEST", 2**12)
    out = tmp_path / "confusion.json"
    small = ["benchmark", "confusion", "--size", "16", "24", "--batch", "1", "2", "--rounds", "3", "--no-memory"]
    assert main([*small, "--classes", "2", "--out", str(out)]) == 0
    printed = capsys.readouterr()
    assert printed.out.count("ours, coarse logits") == 4
    shapes = [(case["batch"], case["size"]) for case in json.loads(out.read_text(encoding="utf-8"))["cases"]]
    assert shapes == [(1, 16), (2, 16), (1, 24), (2, 24)]
    assert main(["benchmark", "confusion", "--show", str(out), "--markdown"]) == 0
    assert capsys.readouterr().out.count("| ours, logits |") == 4
    assert main(["benchmark", "losses", "--show", str(out)]) == 2
    assert "is no measurement of losses" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(not has_resident_peak(), reason="this system does not tell the peak of resident memory")
def test_coarse_logits_are_counted_without_the_full_ones() -> None:
    case = Case(batch=2, classes=19, size=512)
    plain, ours = (in_child(measure_confusion_memory, (name, case, 1)) for name in ("torch_coarse", "ours_coarse"))
    assert plain / case.logits_bytes > 1
    assert ours / case.logits_bytes < 0.6
