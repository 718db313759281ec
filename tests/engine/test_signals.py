"""A signal ends a run politely: the step is finished, the state saved, and the rest gives the same bits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ruamel.yaml import YAML

from segtrain.config import Config, config_to_dict, load_config
from segtrain.engine import train
from segtrain.engine.checkpoint import load_checkpoint
from segtrain.engine.signals import Interrupted, StopRequest

SMALL = {"arch": "unet", "encoder": "resnet18", "params": {"encoder_depth": 3, "decoder_channels": [16, 8, 8]}}
SECONDS_TO_START = 120


def test_a_signal_sets_a_flag_and_the_old_handlers_come_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest() as stop:
        stop.hold()
        stop.check()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested
        assert stop.signal == signal.SIGTERM
        with pytest.raises(Interrupted):
            stop.check()
    assert signal.getsignal(signal.SIGTERM) == before


def test_the_third_ctrl_c_interrupts_at_once() -> None:
    with StopRequest() as stop:
        stop.hold()
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_before_the_first_step_a_signal_ends_the_program_at_once() -> None:
    with StopRequest():
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(SystemExit) as ended:
            os.kill(os.getpid(), signal.SIGTERM)
        assert ended.value.code == 128 + signal.SIGTERM


def write_config(config: Config, path: Path) -> Path:
    with path.open("w") as stream:
        YAML().dump(config_to_dict(config), stream)
    return path


def start_and_stop(path: Path, metrics: Path, *, number: int) -> int:
    """Train in a process group of its own, send the signal after the first logged steps, and return the exit code."""
    command = [sys.executable, "-c", "from segtrain.cli.main import main; raise SystemExit(main())", "train", str(path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True, env=environment)
    deadline = time.monotonic() + SECONDS_TO_START
    while process.poll() is None and not (metrics.exists() and len(metrics.read_text().splitlines()) > 2):
        assert time.monotonic() < deadline, "the run did not start"
        time.sleep(0.02)
    os.killpg(process.pid, number)
    return process.wait(timeout=60)


@pytest.mark.slow
def test_a_program_stopped_by_ctrl_c_in_an_epoch_goes_on_to_the_same_bits(
    tiny_config: Callable[..., Config], tmp_path: Path
) -> None:
    options: dict[str, Any] = {"steps": 100, "log_every": 1, "evaluate_every": 100, "evaluate_unit": "steps"}
    optimizer = {"name": "adamw", "lr": 0.001, "schedule": {"name": "constant"}}
    config = tiny_config(name="stopped", data={"workers": 2}, model=SMALL, optimizer=optimizer, train=options)
    path = write_config(config, tmp_path / "stopped.yaml")
    folder = Path(config.output) / "stopped"
    code = start_and_stop(path, folder / "metrics.jsonl", number=signal.SIGINT)
    assert code == 130
    stopped_at = load_checkpoint(folder / "checkpoints" / "last.pt")["step"]
    assert 0 < stopped_at < 100
    total = stopped_at + 3
    overrides = [f"train.steps={total}", "data.workers=0"]
    plain = load_config(path, [*overrides, "train.evaluate_every=100", "name=plain"])
    resumed = load_config(path, [*overrides, "train.resume=auto"])
    train(resumed)
    train(plain)
    one = load_checkpoint(folder / "checkpoints" / "last.pt")["model"]
    two = load_checkpoint(Path(config.output) / "plain" / "checkpoints" / "last.pt")["model"]
    assert all(torch.equal(one[key], two[key]) for key in one)
