"""Two torchrun agents, as on two machines, restart their ranks after the end of one: the run ends as if undisturbed."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from segtrain.config import parse_config
from segtrain.engine.checkpoint import load_checkpoint
from segtrain.engine.folder import find_resume
from segtrain.errors import ConfigError

SECONDS = 480
WORKER = Path(__file__).with_name("elastic_worker.py")

pytestmark = [pytest.mark.distributed, pytest.mark.slow]


def start_agent(port: int, folder: Path) -> subprocess.Popen[str]:
    """One of two agents that meet at a port, with one rank each."""
    meeting = ["--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--local-addr", "127.0.0.1"]
    place = ["--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", "elastic"]
    network = {"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "torch.distributed.run", *meeting, *place),
            *("--max-restarts", "2", "--monitor-interval", "0.2", str(WORKER), str(folder)),
        ],
        env=os.environ | network | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, folder_dataset_in: Callable[..., Any]) -> Path:
    """The folder of the three runs of the worker, all at their end."""
    folder = tmp_path_factory.mktemp("elastic")
    plain = folder_dataset_in(folder, splits={"train": 10, "val": 2}).config
    plain["optimizer"] = {"name": "sgd", "lr": 0.1, "momentum": 0.9}
    plain["train"] = {
        **{"steps": 6, "batch_size": 2, "ema": 0.9, "log_every": 1, "validation_samples": 1},
        **{"evaluate_every": 2, "evaluate_unit": "steps", "resume": "auto"},
    }
    (folder / "config.json").write_text(json.dumps(plain))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    agents = [start_agent(port, folder) for _ in range(2)]
    try:
        told = [agent.communicate(timeout=SECONDS)[0] for agent in agents]
    finally:
        for agent in agents:
            agent.kill()
    assert [agent.returncode for agent in agents] == [0, 0], "\n".join(told)
    return folder


def end(folder: Path, name: str) -> dict[str, Any]:
    """What the last checkpoint of a run holds."""
    return load_checkpoint(folder / "runs" / name / "checkpoints" / "last.pt")


def logged(folder: Path, name: str) -> list[dict[str, Any]]:
    """The lines of a run's log, but for what the clock says."""
    lines = (folder / "runs" / name / "metrics.jsonl").read_text().splitlines()
    timed = ("images_per_second", "data_wait")
    return [{key: value for key, value in json.loads(line).items() if key not in timed} for line in lines]


def test_both_agents_restart_their_rank_after_a_kill_and_after_a_signal(runs: Path) -> None:
    for rank in (0, 1):
        assert (runs / f"lives{rank}.txt").read_text().splitlines() == ["started"] * 3


@pytest.mark.parametrize(("name", "step"), [("killed", 2), ("signalled", 4)])
def test_a_restarted_run_ends_with_the_bits_of_one_that_nothing_happened_to(runs: Path, name: str, step: int) -> None:
    # a kill in step 4 goes back to the checkpoint of step 2, a signal saves after the step in which all heard of it
    assert f"going on from step {step} of 6" in (runs / f"{name}-told0.txt").read_text()
    expected, found = end(runs, "whole"), end(runs, name)
    assert found["step"] == expected["step"] == 6
    for part in ("model", "ema"):
        assert found[part].keys() == expected[part].keys()
        assert all(torch.equal(value, expected[part][key]) for key, value in found[part].items()), part
    assert found["training"]["state"] == expected["training"]["state"]


@pytest.mark.parametrize("name", ["killed", "signalled"])
def test_the_log_of_a_restarted_run_has_no_gap_and_no_double(runs: Path, name: str) -> None:
    assert logged(runs, name) == logged(runs, "whole")
    assert [line["step"] for line in logged(runs, name) if line["kind"] == "train"] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("settings", [{"resume": "none"}, {"resume": "none", "overwrite": True}, {"resume": "last.pt"}])
def test_what_would_not_go_on_after_a_restart_is_refused(
    settings: dict[str, Any], folder_dataset: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = folder_dataset().config
    config = parse_config(plain | {"train": plain["train"] | settings})
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "1")
    with pytest.raises(ConfigError, match="starts the ranks anew after a failure"):
        find_resume(config, tell=print)
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "0")
    if settings == {"resume": "none"}:
        assert find_resume(config, tell=print) is None
