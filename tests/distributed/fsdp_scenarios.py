"""What each of two ranks does in the tests of sharded training: runs of the real engine, one after another.

Started as `fsdp_scenarios.py FOLDER`: FOLDER/config.json is the configuration that all runs vary.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from segtrain.config import parse_config
from segtrain.distributed import joined_ranks, rank
from segtrain.engine import shard_files, train
from segtrain.engine.shards import whole
from segtrain.engine.train import TrainResult
from segtrain.errors import SegtrainError

Report = dict[str, Any]


class Net(nn.Module):
    """Convolutions with BatchNorm and dropout; `poison` makes the logits NaN in one step, `stop` is SIGTERM in one."""

    def __init__(self, *, poison: int = 0, stop: int = 0) -> None:
        super().__init__()
        torch.manual_seed(0)
        # a bias before BatchNorm has no gradient but rounding, which AdamW makes whole steps of
        self.body = nn.Sequential(nn.Conv2d(3, 9, 3, padding=1, bias=False), nn.BatchNorm2d(9), nn.ReLU())
        self.head = nn.Conv2d(9, 3, 1)
        self.poison, self.stop, self.count = poison, stop, 0

    def forward(self, images: Tensor) -> Tensor:
        self.count += int(self.training)
        if self.training and self.count == self.stop:
            os.kill(os.getpid(), signal.SIGTERM)
        logits: Tensor = self.head(nn.functional.dropout(self.body(images), 0.2, self.training))
        return logits * math.nan if self.training and self.count == self.poison else logits


def run(plain: dict[str, Any], name: str, model: nn.Module, **changes: Any) -> TrainResult:
    """Train in silence with some keys of `train` changed."""
    config = parse_config(plain | {"name": name, "train": plain["train"] | changes})
    return train(config, model=model, console=Console(quiet=True))


def flat(model: nn.Module) -> list[float]:
    return torch.cat([whole(value.detach()).double().flatten() for value in model.state_dict().values()]).tolist()


def compared(plain: dict[str, Any], parallel: str) -> Report:
    """Six steps, the third of which is not finite on one rank."""
    model = Net(poison=5 if rank() == 1 else 0)
    result = run(plain, parallel, model, parallel=parallel, steps=6, accumulate=2, batch_size=1)
    assert result.evaluation is not None
    return {
        "weights": flat(model),
        "loss": result.evaluation.loss,
        "matrix": result.evaluation.confusion.matrix.tolist(),
        "is_spread": all(type(value).__name__ == "DTensor" for value in model.parameters()),
    }


def resumed(plain: dict[str, Any]) -> Report:
    """Six steps at once, and six with a signal to one rank in the second."""
    whole_model, last_model = Net(), Net()
    run(plain, "whole", whole_model, parallel="fsdp")
    stopped = run(plain, "parts", Net(stop=2 if rank() == 1 else 0), parallel="fsdp")
    done = run(plain, "parts", last_model, parallel="fsdp", resume="auto")
    weights = [flat(whole_model), flat(last_model)]
    return {"stopped": [stopped.signal, stopped.step, done.step], "equal": weights[0] == weights[1]}


def torn(plain: dict[str, Any]) -> Report:
    """The second save of a step ends before its folder has its name; the run goes on from the first."""
    take_name = shard_files._take_name
    folder = Path(plain["output"]) / "torn" / "checkpoints"

    def fail(temporary: Path, target: Path) -> None:
        if target == folder / "sharded-00000006" and target.exists():
            raise OSError("the disk is full")
        take_name(temporary, target)

    shard_files._take_name = fail
    error = error_of(plain, "torn", parallel="fsdp")
    shard_files._take_name = take_name
    left = sorted(path.name for path in folder.iterdir())
    model = Net()
    step = run(plain, "torn", model, parallel="fsdp", resume="auto").step
    return {"error": error, "left": left, "step": step, "weights": flat(model)}


def error_of(plain: dict[str, Any], name: str, **changes: Any) -> str:
    try:
        run(plain, name, Net(), **changes)
    except SegtrainError as error:
        return str(error)
    return "none"


def main(folder: Path) -> None:
    """Do all of it as one rank, and write what was found."""
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    plain = json.loads((folder / "config.json").read_text())
    with joined_ranks(timeout_seconds=120):
        sgd = plain | {"optimizer": {"name": "sgd", "lr": 0.1}}
        found = {
            "ddp": compared(plain, "ddp"),
            "fsdp": compared(plain, "fsdp"),
            "resumed": resumed(plain),
            "torn": torn(plain),
            "refused": error_of(sgd, "refused", parallel="fsdp", channels_last=True),
            "other": error_of(plain, "whole", resume="auto"),
        }
        number = rank()
    (folder / f"rank{number}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
