"""train.profile writes a trace and the phases of a few steps, and costs nothing and changes nothing elsewhere."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from segtrain.config import parse_config
from segtrain.engine import train
from segtrain.engine.phases import PHASES, Phases
from segtrain.engine.profile import make_phases
from segtrain.errors import ConfigError

SECTION = {"wait": 1, "warmup": 1, "active": 2}


def test_a_few_steps_are_traced_and_told_by_phase_and_the_weights_stay_the_same(
    tiny_config: Callable[..., Any], tiny_net: Callable[..., Any]
) -> None:
    results = {}
    for name, profile in (("plain", False), ("profiled", SECTION)):
        steps = {"steps": 5, "evaluate_every": 3, "evaluate_unit": "steps", "profile": profile}
        console = Console(file=io.StringIO(), width=120)
        results[name] = train(tiny_config(name=name, train=steps), model=tiny_net(), console=console), console
    folder = results["profiled"][0].folder / "profile"
    assert not (results["plain"][0].folder / "profile").exists()
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert summary["steps"] == 2
    assert list(summary["seconds"]) == list(PHASES)
    assert all(value > 0 for value in summary["seconds"].values())
    events = json.loads(gzip.decompress((folder / "trace.json.gz").read_bytes()))["traceEvents"]
    names = [event.get("name") for event in events if event.get("cat") == "user_annotation"]
    assert names.count("step/forward") == names.count("step/backward") == 2
    text = (folder / "summary.txt").read_text(encoding="utf-8")
    assert "aten::" in text
    output = results["profiled"][1].file.getvalue()
    for line in text.partition("\n\n")[0].splitlines():
        assert line in output
    weights = [
        torch.load(result.folder / "checkpoints" / "last.pt", weights_only=True)["model"]
        for result, _ in results.values()
    ]
    torch.testing.assert_close(weights[1], weights[0], rtol=0, atol=0)


def test_a_run_that_is_too_short_for_its_profile_is_refused_and_leaves_nothing(
    tiny_config: Callable[..., Any], tiny_net: Callable[..., Any]
) -> None:
    config = tiny_config(name="short", train={"steps": 3, "profile": SECTION})
    with pytest.raises(ConfigError, match=r"train\.profile needs 4 steps .* and the training has 3"):
        train(config, model=tiny_net(), console=Console(quiet=True))
    assert not (Path(config.output) / "short").exists()


def test_a_run_that_goes_on_with_too_few_steps_left_says_so_and_is_not_profiled(tmp_path: Path) -> None:
    told: list[str] = []
    phases = make_phases(True, tmp_path, device=torch.device("cpu"), steps=range(95, 100), tell=told.append)
    assert type(phases) is Phases
    assert told == ["note: train.profile needs 12 steps, and 5 are left: nothing is profiled"]


def test_a_profile_that_is_cut_short_writes_nothing_and_stops_the_profiler(tmp_path: Path) -> None:
    phases = make_phases(True, tmp_path, device=torch.device("cpu"), steps=range(100), tell=lambda text: None)
    for _ in range(8):
        phases.begin_step()
        with phases.of("forward"):
            torch.ones(2).sum()
        phases.end_step(waited=0.0)
    phases.close()
    phases.close()
    assert list(tmp_path.iterdir()) == []
    assert not torch.autograd._profiler_enabled()


@pytest.mark.parametrize("profile", ["yes", 3, {"active": 0}, {"actve": 2}])
def test_profile_is_a_switch_or_a_section(folder_dataset: Callable[..., Any], profile: Any) -> None:
    values = folder_dataset().config
    with pytest.raises(ConfigError, match=r"train\.profile"):
        parse_config(values | {"train": values["train"] | {"profile": profile}})
