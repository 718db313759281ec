"""The step benchmark: both loops make the same steps, every phase is there, and what cannot be compared is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from segtrain.benchmark.step_report import PHASE_LABELS, step_markdown
from segtrain.cli.main import main
from segtrain.config import dump_config, parse_config
from segtrain.engine.phases import PHASES, PhaseClock

TINY = [
    *("data.train_transforms=[]", "train.log_every=2", "model.encoder=tu-regnetx_002"),
    "model.params={encoder_depth: 3, decoder_channels: [8, 8, 8]}",
]


@pytest.fixture
def config_file(folder_dataset: Callable[..., Any], tmp_path: Path) -> Path:
    """A training file over a tiny data set."""
    path = tmp_path / "step.yaml"
    path.write_text(dump_config(parse_config(folder_dataset().config)), encoding="utf-8")
    return path


def test_both_loops_make_the_same_steps_and_every_phase_takes_its_part(
    config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "step.json"
    measure = ["--config", str(config_file), "--rounds", "3", "--steps", "2", "--threads", "1", "--out", str(out)]
    assert main(["benchmark", "step", *TINY, *measure]) == 0
    printed = capsys.readouterr().out
    result = json.loads(out.read_text(encoding="utf-8"))
    assert result["largest_difference"] == 0  # the bare loop is what the engine does, less all around it
    assert [len(row["seconds"]) for row in result["rows"]] == [3, 3]
    assert list(result["phases"]) == list(PHASES)
    assert all(result["phases"][name] > 0 for name in PHASES)
    for label in PHASE_LABELS.values():
        assert label in printed
    assert "aim " in printed
    assert not (tmp_path / "runs").exists()
    assert main(["benchmark", "step", "--show", str(out), "--markdown"]) == 0
    assert capsys.readouterr().out.strip() == step_markdown(result)


def test_what_the_bare_loop_has_nothing_like_is_refused(config_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", "step", "--config", str(config_file), "train.accumulate=2"]) == 2
    assert "no bare loop for train.accumulate above 1" in capsys.readouterr().err


def test_a_phase_clock_counts_what_is_under_no_name_as_rest_and_leaves_out_what_is_between_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0.0

    def pass_time(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr("segtrain.engine.phases.time.perf_counter", lambda: now)
    clock = PhaseClock(torch.device("cpu"))
    for _ in range(2):
        pass_time(100.0)  # an evaluation
        clock.begin_step()
        pass_time(1.0)
        with clock.of("forward"):
            pass_time(2.0)
        with clock.of("loss"):
            pass_time(0.5)
        pass_time(0.25)
        clock.end_step(waited=1.0)
    expected = {"data_wait": 1.0, "forward": 2.0, "loss": 0.5, "rest": 0.25}
    assert clock.seconds() == pytest.approx(dict.fromkeys(PHASES, 0.0) | expected)
