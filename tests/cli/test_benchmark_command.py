"""The command benchmark measures, prints and writes; wrong arguments get one clear line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from segtrain.cli.main import main

SMALL = ["benchmark", "losses", "--size", "16", "--batch", "1", "--rounds", "3", "--threads", "1"]


def test_losses_are_measured_printed_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "figures" / "losses.json"
    code = main(
        [*SMALL, "--classes", "2", "3", "--memory-format", "both", "--only", "ce", "--no-memory", "--out", str(out)]
    )
    printed = capsys.readouterr()
    assert code == 0
    assert printed.out.count("F.cross_entropy ") == 4
    assert "logits 1×3×16×16 float32 channels_last, uint8 targets, 10 % ignored, cpu" in printed.out
    assert f"written: {out}" in printed.err
    result = json.loads(out.read_text(encoding="utf-8"))
    assert result["environment"]["threads"] == 1
    assert [(case["classes"], case["memory_format"]) for case in result["cases"]] == [
        (2, "nchw"),
        (2, "channels_last"),
        (3, "nchw"),
        (3, "channels_last"),
    ]
    for case in result["cases"]:
        base, ours = case["losses"]
        assert (base["name"], ours["name"]) == ("torch_ce", "ce")
        assert base["time"] == {"median": 1.0, "lower": 1.0, "upper": 1.0}
        assert len(ours["seconds"]) == len(ours["cpu_seconds"]) == 3
        assert min(ours["seconds"]) > 0
        assert ours["problem"] is None
    capsys.readouterr()
    assert main(["benchmark", "losses", "--show", str(out), "--markdown"]) == 0
    markdown = capsys.readouterr().out
    assert "| loss | time | quartiles | CPU time | ms | memory |" in markdown
    assert markdown.count("| F.cross_entropy | 1.00 |") == 4


def test_memory_is_measured_beside_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "losses.json"
    assert main([*SMALL, "--size", "256", "--no-others", "--only", "torch_ce", "--out", str(out)]) == 0
    (row,) = json.loads(out.read_text(encoding="utf-8"))["cases"][0]["losses"]
    if row["memory"] is None:
        pytest.skip("this system does not tell the peak of resident memory")
    assert 2.5 < row["memory"] < 3.5
    assert f"{row['memory']:.2f}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["benchmark"], "the following arguments are required: subject"),
        (["benchmark", "loses"], "invalid choice: 'loses'"),
        (["benchmark", "losses", "--round", "3"], "unknown arguments --round 3; did you mean '--rounds'?"),
        (["benchmark", "losses", "--only", "dise"], "unknown loss 'dise'; known: torch_ce"),
        (["benchmark", "losses", "--classes", "0"], "expected a whole number of at least 1, found '0'"),
        (["benchmark", "losses", "--classes", "300"], "--classes 300 does not fit --target-dtype uint8"),
        (["benchmark", "losses", "--ignored", "1"], "expected a number from 0 to below 1, found '1'"),
        (["benchmark", "losses", "--dtype", "int8"], "invalid choice: 'int8'"),
        (["benchmark", "losses", "--device", "gpu"], "--device is 'gpu'; expected cpu, cuda or cuda:<number>"),
        (["benchmark", "losses", "--device", "cuda:99"], "CUDA devices here: use --device cpu"),
        (["benchmark", "losses", "--show", "missing.json"], "missing.json"),
        (["benchmark", "losses", "--show", "a.json", "--out", "b.json"], "--out: not allowed with argument --show"),
    ],
)
def test_wrong_arguments_get_one_line(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.startswith("error: ")
    assert len(printed.err.splitlines()) == 1
    assert printed.out == ""


def test_a_file_that_is_no_measurement_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other.json"
    other.write_text('{"benchmark": "data"}', encoding="utf-8")
    assert main(["benchmark", "losses", "--show", str(other)]) == 2
    assert "is no measurement of losses" in capsys.readouterr().err
    other.write_text("nothing", encoding="utf-8")
    assert main(["benchmark", "losses", "--show", str(other)]) == 2
    assert "is no JSON" in capsys.readouterr().err
