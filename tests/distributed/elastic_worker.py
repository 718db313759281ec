"""What each of two ranks does in the tests of restarts: runs that one of them ends the first time, until all are done.

Started by torchrun with --max-restarts as `elastic_worker.py FOLDER`: FOLDER/config.json is what all runs vary.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import warnings
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor, nn

from segtrain.config import parse_config
from segtrain.distributed import launched_rank
from segtrain.engine import train

# name of a run: the signal that rank 1 gets in its fourth step, the first time that it comes there
RUNS = {"whole": None, "killed": signal.SIGKILL, "signalled": signal.SIGTERM}


class Net(nn.Module):
    """Two convolutions with BatchNorm and dropout; the fourth training step of its process sends `number`, once."""

    def __init__(self, mark: Path, number: signal.Signals | None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.norm, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Conv2d(8, 3, 1)
        self.mark, self.number, self.count = mark, number, 0

    def forward(self, images: Tensor) -> Tensor:
        self.count += int(self.training)
        if self.count == 4 and self.number is not None and not self.mark.exists():
            self.mark.touch()
            os.kill(os.getpid(), self.number)
        logits: Tensor = self.head(nn.functional.dropout(torch.relu(self.norm(self.body(images))), 0.3, self.training))
        return logits


def main(folder: Path) -> int:
    """Bring all runs to their end; return the exit code that the command train would."""
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    plain = json.loads((folder / "config.json").read_text())
    rank = launched_rank()
    with (folder / f"lives{rank}.txt").open("a") as stream:
        stream.write("started\n")
    for name, number in RUNS.items():
        done = folder / f"{name}-done{rank}"
        if done.exists():
            continue
        model = Net(folder / f"{name}-mark{rank}", number if rank == 1 else None)
        with (folder / f"{name}-told{rank}.txt").open("a") as told:
            result = train(parse_config(plain | {"name": name}), model=model, console=Console(file=told, width=200))
        if result.signal is not None:
            return 128 + result.signal
        done.touch()
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
