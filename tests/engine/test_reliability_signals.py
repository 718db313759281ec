"""A signal at any moment, to a run or to its whole process group, costs no step and leaves no process behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from segtrain.config import Config, config_to_dict
from segtrain.engine.checkpoint import load_checkpoint
from segtrain.engine.signals import StopRequest

SECONDS = 600
SCRIPT = Path(__file__).with_name("signal_scenarios.py")
CHANNELS = {"decoder_pyramid_channels": 32, "decoder_segmentation_channels": 32}
SMALL = {"arch": "fpn", "encoder": "tu-test_resnet", "params": {"encoder_depth": 5, **CHANNELS}}
CODES = {"SIGINT": 130, "SIGTERM": 143, "SIGUSR1": 138}
# scenario: step and evaluated step of the checkpoint that is left, and saves of it after the signal
LEFT = {
    "epoch, SIGTERM to the group": ((3, -1), 1),
    "epoch, SIGUSR1 to the process": ((3, -1), 1),
    "evaluation, SIGINT to the group": ((4, -1), 0),
    "saving, SIGUSR1 to the group": ((2, -1), 1),
    "the end, SIGTERM to the group": ((4, 4), 0),
}


def run_name(scenario: str) -> str:
    return scenario.replace(", ", "-").replace(" ", "-")


@pytest.fixture(scope="module")
def output(module_config: Callable[..., Config]) -> Path:
    """The folder in which the runs are."""
    return Path(module_config().output)


@pytest.fixture(scope="module")
def found(module_config: Callable[..., Config], output: Path) -> dict[str, Any]:
    """How each child of the script ended."""
    train = {"steps": 30, "batch_size": 2, "evaluate_every": 4, "evaluate_unit": "steps", "validation_samples": 0}
    config = module_config(name="any", data={"workers": 2}, model=SMALL, train=train)
    output.mkdir(parents=True, exist_ok=True)
    path = output / "config.yaml"
    with path.open("w") as stream:
        YAML().dump(config_to_dict(config), stream)
    process = subprocess.run(
        [sys.executable, str(SCRIPT), str(path), str(output)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=SECONDS,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    return json.loads((output / "found.json").read_text())


def log(output: Path, name: str) -> str:
    return (output / f"{name}.log").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", CODES)
def test_before_there_is_anything_to_save_a_signal_ends_the_program(
    found: dict[str, Any], output: Path, name: str
) -> None:
    scenario = f"start-up, {name}"
    assert found[scenario]["code"] == CODES[name], log(output, scenario)
    assert found[scenario]["saves"] == []
    assert not (output / run_name(scenario)).exists()


@pytest.mark.slow
@pytest.mark.parametrize("scenario", LEFT)
def test_the_step_is_finished_and_saved_once(found: dict[str, Any], output: Path, scenario: str) -> None:
    told, (state, saves) = found[scenario], LEFT[scenario]
    number = next(name for name in CODES if name in scenario)
    assert told["code"] == CODES[number], log(output, scenario)
    left = load_checkpoint(output / run_name(scenario) / "checkpoints" / "last.pt")
    assert (left["step"], left["training"]["state"]["evaluated_step"]) == state
    assert len(told["saves"]) - told["sent_after"] == saves
    assert f"stopped by a signal after step {state[0]}; go on with train.resume=auto" in log(output, scenario)
    assert "Traceback" not in log(output, scenario)


@pytest.mark.slow
@pytest.mark.parametrize("scenario", [*LEFT, "epoch, SIGKILL to the process"])
def test_workers_outlive_the_signal_and_none_is_left_behind(found: dict[str, Any], scenario: str) -> None:
    told = found[scenario]
    assert len(told["workers"]) == (0 if "the end" in scenario else 2)
    assert told["workers_alive"] is (None if "SIGKILL" in scenario else True)
    assert told["orphans"] == []


@pytest.mark.slow
def test_a_killed_run_leaves_what_it_had_saved(found: dict[str, Any], output: Path) -> None:
    scenario = "epoch, SIGKILL to the process"
    assert found[scenario]["code"] == -signal.SIGKILL
    assert not list((output / run_name(scenario) / "checkpoints").glob("*.pt"))  # it came before the first save


def test_programs_may_send_a_signal_as_often_as_they_like() -> None:
    with StopRequest() as stop:
        stop.hold()
        for _ in range(5):
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGUSR1)
        assert stop.signal == signal.SIGTERM
