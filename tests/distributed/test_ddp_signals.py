"""Under torchrun: a signal to its parent stops all ranks with one checkpoint, a killed rank ends the others in time."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from segtrain.engine.checkpoint import load_checkpoint

SECONDS = 300
SMALL = {"arch": "unet", "encoder": "resnet18", "params": {"encoder_depth": 3, "decoder_channels": [16, 8, 8]}}

pytestmark = [pytest.mark.distributed, pytest.mark.slow]


class Launch:
    """Two ranks of the command train, started by torchrun."""

    def __init__(self, config: Path, folder: Path, *overrides: str) -> None:
        self.metrics = folder / "metrics.jsonl"
        self._text = config.with_name("told.txt")
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        with self._text.open("w") as stream:
            self.process = subprocess.Popen(
                [*launch, "-m", "segtrain.cli.main", "train", str(config), *overrides],
                stdout=stream,
                stderr=subprocess.STDOUT,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )

    def wait_for_step(self, step: int) -> None:
        """Return once a line of the logs is about a later step."""
        deadline = time.monotonic() + SECONDS
        while not (self.metrics.exists() and self._last_step() > step):
            assert self.process.poll() is None, self.text()
            assert time.monotonic() < deadline, self.text()
            time.sleep(0.05)

    def _last_step(self) -> int:
        lines = self.metrics.read_text().splitlines()[:-1]
        return max((json.loads(line)["step"] for line in lines), default=0)

    def children(self) -> list[int]:
        """Process numbers of the ranks, in order."""
        listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(self.process.pid)], capture_output=True, text=True)
        return sorted(int(pid) for pid in listed.stdout.split())

    def end(self) -> int:
        """Wait for the parent, and return its exit code."""
        try:
            return self.process.wait(timeout=SECONDS)
        finally:
            self.process.kill()

    def text(self) -> str:
        return self._text.read_text()


def test_torchrun_passes_a_signal_on_and_a_killed_rank_ends_the_run(
    tmp_path: Path, folder_dataset: Callable[..., Any]
) -> None:
    plain = folder_dataset(splits={"train": 8, "val": 2}).config
    plain["model"] = SMALL | {"encoder_weights": None}
    plain["train"] = {"steps": 100_000, "batch_size": 2, "log_every": 1, "evaluate_every": 1000}
    config = tmp_path / "config.yaml"
    with config.open("w") as stream:
        YAML().dump(plain, stream)
    folder = Path(plain["output"]) / plain["name"]

    first = Launch(config, folder)
    first.wait_for_step(2)
    first.process.send_signal(signal.SIGTERM)
    code, told = first.end(), first.text()
    assert code == 1, told  # torchrun's own; the ranks' are in its table
    assert told.count("stopped by a signal after step") == 1, told
    stopped = load_checkpoint(folder / "checkpoints" / "last.pt")["step"]
    assert f"after step {stopped};" in told
    assert [len(one) for one in [load_checkpoint(folder / "checkpoints" / "last.pt")["training"]["ranks"]]] == [2]

    second = Launch(config, folder, "train.resume=auto")
    second.wait_for_step(stopped + 2)
    os.kill(second.children()[1], signal.SIGKILL)
    code, told = second.end(), second.text()
    assert code == 1, told
    assert re.search(r"rank 0: error: rank 1 of 2 no longer answers: killed.*train\.resume=auto", told), told
    assert f"going on from step {stopped} of" in told
