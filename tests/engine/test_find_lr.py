"""The range test raises the rate as told, stops where the loss diverges, says what it suggests, and leaves no run."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segtrain.cli.main import main
from segtrain.config import dump_config, parse_config
from segtrain.engine.find_lr import RunningMean, explain, rates, smooth, suggestions, sweep
from segtrain.errors import SegtrainError

TINY = "model={arch: unet, encoder: tu-regnetx_002, params: {encoder_depth: 2, decoder_channels: [8, 8]}}"


def test_rates_rise_by_one_ratio_from_end_to_end() -> None:
    lrs = rates(8, 1e-6, 10.0)
    assert lrs[0] == pytest.approx(1e-6)
    assert lrs[-1] == pytest.approx(10.0)
    assert np.diff(np.log10(lrs)) == pytest.approx(np.ones(7))


def test_the_running_mean_has_no_pull_of_its_start() -> None:
    mean = RunningMean()
    assert [mean.add(2.0), mean.add(1.0)] == pytest.approx([2.0, (0.8 * 2.0 + 1.0) / 1.8])


def test_the_smoothed_loss_does_not_lag_behind_and_passes_over_what_is_not_finite() -> None:
    step = np.where(np.arange(81) < 40, 1.0, 0.0)
    smoothed = smooth(step)
    assert np.interp(0.5, smoothed[::-1], np.arange(81.0)[::-1]) == pytest.approx(39.5, abs=1.0)
    assert smooth(np.full(30, 3.0)) == pytest.approx(np.full(30, 3.0))
    assert smooth(np.array([2.0] * 9 + [1.0] * 9 + [1e9])).max() <= 2.0
    broken = smooth(np.array([1.0, 1.0, math.nan, 1.0, math.inf]))
    assert np.isnan(broken).tolist() == [False, False, True, False, True]
    assert broken[[0, 1, 3]] == pytest.approx(1.0)


@pytest.mark.parametrize("rise", [1e6, math.nan, math.inf])
def test_the_sweep_ends_where_the_loss_diverges(rise: float) -> None:
    tried: list[float] = []

    def loss_at(lr: float) -> float:
        tried.append(lr)
        return 1.0 if lr < 0.5 else rise

    lrs = rates(30, 1e-3, 10.0)
    result = sweep(loss_at, lrs)
    assert result.diverged
    assert tried == [lr for lr in lrs if lr < 0.5] + [next(lr for lr in lrs if lr >= 0.5)]
    assert not sweep(lambda lr: 3.9 if lr > 0.5 else 1.0, lrs).diverged


def test_suggestions_are_the_steepest_fall_and_a_tenth_of_the_rate_at_the_minimum() -> None:
    lrs = np.geomspace(1e-6, 1.0, 61)
    # falls as a logistic curve around 1e-3, rises from 1e-1 on
    smoothed = 1 - 0.8 / (1 + np.exp(-3 * np.log10(lrs / 1e-3))) + np.where(lrs > 0.1, lrs, 0.0)
    steepest, tenth = suggestions(lrs, smoothed)
    assert tenth == pytest.approx(0.01, rel=0.3)
    assert steepest == pytest.approx(1e-3, rel=0.3)
    assert suggestions(lrs, smoothed[::-1] + 1) != (steepest, tenth)


def test_a_loss_that_never_falls_gives_no_suggestion_and_says_so(folder_dataset: Callable[..., Any]) -> None:
    result = sweep(lambda lr: 1.0 + lr, rates(30, 1e-3, 1.0))
    assert (result.steepest, result.tenth) == (None, None)
    with pytest.raises(SegtrainError, match="the loss never fell in 30 steps"):
        explain(result, parse_config(folder_dataset().config))


def test_the_command_writes_plot_and_figures_and_touches_no_run(
    folder_dataset: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = folder_dataset(splits={"train": 6, "val": 2})
    path = tmp_path / "cfg.yaml"
    path.write_text(dump_config(parse_config(config.config)), encoding="utf-8")
    assert main(["find-lr", str(path), TINY, "train.accumulate=2", "--steps", "24", "--lowest", "1e-5"]) == 0
    printed = capsys.readouterr().out
    assert "suggested: optimizer.lr=" in printed
    assert [entry.name for entry in (tmp_path / "runs").iterdir()] == ["find-lr"]
    folder = tmp_path / "runs" / "find-lr" / "dataset"
    found = json.loads((folder / "lr.json").read_text(encoding="utf-8"))
    assert f"optimizer.lr={found['suggested']:.1e}" in printed
    rows = list(csv.reader((folder / "lr.csv").read_text(encoding="utf-8").splitlines()))
    assert rows[0] == ["lr", "loss", "smoothed"]
    assert len(rows) - 1 == len(found["steps"]) <= 24
    assert float(rows[1][0]) == pytest.approx(1e-5)
    losses = [float(row[1]) for row in rows[1:]]
    assert min(losses) < losses[0]
    with Image.open(folder / "lr.png") as image:
        assert image.width > 600


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "3"], "a range test of 3 steps tells nothing"),
        (["--lowest", "1", "--highest", "0.1"], "rates from 1 to 0.1 do not rise"),
    ],
)
def test_a_sweep_that_tells_nothing_is_refused(
    arguments: list[str],
    message: str,
    folder_dataset: Callable[..., Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "cfg.yaml"
    path.write_text(dump_config(parse_config(folder_dataset().config)), encoding="utf-8")
    assert main(["find_lr", str(path), *arguments]) == 2
    assert message in capsys.readouterr().err
