"""What each of two ranks does in the tests of training on several ranks: runs of the real engine, one after another.

Started by torchrun as `ddp_scenarios.py FOLDER`: FOLDER/config.json is the configuration that all runs vary.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from segtrain.config import Config, parse_config
from segtrain.distributed import joined_ranks, rank, world_size
from segtrain.engine import evaluate, train
from segtrain.engine.train import TrainResult
from segtrain.engine.validation_images import ValidationImages
from segtrain.errors import SegtrainError
from segtrain.tracking import SilentTracker

Report = dict[str, Any]


class Net(nn.Module):
    """Two convolutions, with BatchNorm and dropout or with neither.

    `poison` makes the logits NaN in one step, `stop` sends the process SIGTERM in one, `stop_evaluation` in evaluation.
    """

    def __init__(self, *, plain: bool = True, poison: int = 0, stop: int = 0, stop_evaluation: bool = False) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.body = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.Identity() if plain else nn.BatchNorm2d(8)
        self.dropout = nn.Dropout(0.0 if plain else 0.3)
        self.head = nn.Conv2d(8, 3, 1)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.3, generator=generator)
        self.poison, self.stop, self.stop_evaluation, self.count = poison, stop, stop_evaluation, 0

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.dropout(torch.relu(self.norm(self.body(images)))))
        self.count += int(self.training)
        if self.count == self.stop if self.training else self.stop_evaluation:
            os.kill(os.getpid(), signal.SIGTERM)
        return logits * math.nan if self.training and self.count == self.poison else logits


class MeanError(nn.Module):
    """A loss of the user's own."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits, target.long(), ignore_index=255)


def variant(plain: dict[str, Any], name: str, **sections: Any) -> Config:
    """The configuration with some keys of its sections changed."""
    changed = dict(plain) | {"name": name}
    for key, value in sections.items():
        changed[key] = plain[key] | value if isinstance(value, dict) and key not in ("loss", "optimizer") else value
    return parse_config(changed)


def run(config: Config, model: nn.Module, **options: Any) -> TrainResult:
    """Train in silence."""
    return train(config, model=model, console=Console(quiet=True), **options)


EXACT_LOSSES: dict[str, Any] = {
    "cross_entropy and dice": {"terms": [{"name": "cross_entropy"}, {"name": "dice"}]},
    "weighted, per image": {
        "terms": [{"name": "cross_entropy"}, {"name": "tversky", "per": "image"}],
        "class_weights": {"scheme": "median_frequency"},
        "reduction": "weighted",
    },
}
WINDOWS: dict[str, dict[str, Any]] = {
    "one batch": {},
    "accumulated": {"accumulate": 2},
    "accumulated exactly": {"accumulate": 2, "exact_accumulation": True},
}


def comparable() -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Cases by name, (loss, train): on two ranks they are to end as on one with batches of twice the size."""
    cases = {}
    for loss_name, loss in EXACT_LOSSES.items():
        for window, options in WINDOWS.items():
            exact = all(term.get("per") == "image" or "dice" not in term["name"] for term in loss["terms"])
            if (window == "accumulated") != exact and window != "one batch":
                continue  # dice needs exact_accumulation, and where nothing does it is refused
            cases[f"{loss_name}, {window}"] = (loss, options)
    return cases


def train_comparable(plain: dict[str, Any], *, ranks: int, name: str) -> Report:
    """Train every comparable case; report weights, scores and the last logged numbers."""
    found: Report = {}
    for number, (case, (loss, options)) in enumerate(comparable().items()):
        settings = options | {"batch_size": 4 // ranks, "steps": 4, "log_every": 2, "evaluate_every": 9}
        config = variant(plain, f"{name}-{number}", loss=loss, train=settings)
        model = Net()
        result = run(config, model)
        assert result.evaluation is not None
        lines = (result.folder / "metrics.jsonl").read_text().splitlines() if rank() == 0 else []
        found[case] = {
            "weights": torch.cat([value.detach().flatten() for value in model.parameters()]).tolist(),
            "scores": {key: value for key, value in result.evaluation.scores.items() if not math.isnan(value)},
            "loss": result.evaluation.loss,
            "num_images": result.evaluation.num_images,
            "matrix": result.evaluation.confusion.matrix.tolist(),
            "logged": [json.loads(line) for line in lines],
        }
    return found


def flat(model: nn.Module) -> list[float]:
    return torch.cat([value.double().flatten() for value in model.state_dict().values()]).tolist()


def last_checkpoint(result: TrainResult) -> Report:
    payload: Report = torch.load(result.folder / "checkpoints" / "last.pt", weights_only=True)
    return payload


def resumed(plain: dict[str, Any]) -> Report:
    """Six steps at once, and six with a signal to one rank in the second: mid-epoch, with all that has a state."""
    options = {"evaluate_every": 3, "evaluate_unit": "steps", "ema": 0.9, "batch_size": 2, "log_every": 2, "steps": 6}
    optimizer = {"name": "sgd", "lr": 0.1, "momentum": 0.9, "clip_norm": 1.0}
    whole = Net(plain=False)
    one = run(variant(plain, "whole", optimizer=optimizer, train=options), whole)
    config = variant(plain, "parts", optimizer=optimizer, train=options)
    stopped = run(config, Net(plain=False, stop=2 if rank() == 1 else 0))
    again = variant(plain, "parts", optimizer=optimizer, train=options | {"resume": "auto"})
    interrupted = run(again, Net(plain=False, stop_evaluation=rank() == 1))
    two = run(again, Net(plain=False))
    payloads = [last_checkpoint(one), last_checkpoint(two)]
    ends = [[flat_values(payload[key]) for key in ("model", "ema")] for payload in payloads]
    lines = [(result.folder / "metrics.jsonl").read_text().splitlines() for result in (one, two)]
    states = [payload["training"]["ranks"] for payload in payloads]
    return {
        "stopped": [(result.signal, result.step) for result in (stopped, interrupted, two)],
        "equal": ends[0] == ends[1],
        "weights": flat(whole),
        "rng_equal": all(
            torch.equal(first["rng"]["cpu"], second["rng"]["cpu"]) for first, second in zip(*states, strict=True)
        ),
        "rng_differs_between_ranks": not torch.equal(states[0][0]["rng"]["cpu"], states[0][1]["rng"]["cpu"]),
        "logs": [[without_times(json.loads(line)) for line in each] for each in lines],
    }


def flat_values(values: dict[str, Tensor]) -> list[float]:
    return torch.cat([value.double().flatten() for value in values.values()]).tolist()


def without_times(line: Report) -> Report:
    return {key: value for key, value in line.items() if key not in ("images_per_second", "data_wait")}


def poisoned(plain: dict[str, Any]) -> Report:
    """The logits of one rank are NaN in the second of four steps."""
    model = Net(plain=False, poison=2 if rank() == 1 else 0)
    result = run(variant(plain, "poisoned", train={"steps": 4, "batch_size": 2, "ema": 0.9, "log_every": 1}), model)
    payload = last_checkpoint(result)
    return {
        "skipped": payload["training"]["state"]["skipped_steps"],
        "weights": flat(model),
        "finite": all(math.isfinite(value) for value in flat_values(payload["ema"]) + flat(model)),
    }


def hopeless(plain: dict[str, Any]) -> Report:
    """No step is finite."""

    class Nothing(Net):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images) * (math.nan if self.training else 1.0)

    return {"error": error_of(lambda: run(variant(plain, "hopeless", train={"steps": 40}), Nothing()))}


def own_loss(plain: dict[str, Any]) -> Report:
    """A loss given in code: the mean of the ranks', and the numbers logged are those of all; weights begin unequal."""
    model = Net()
    nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(rank()))
    result = run(variant(plain, "own", train={"steps": 2, "batch_size": 2, "log_every": 1}), model, loss=MeanError())
    lines = (result.folder / "metrics.jsonl").read_text().splitlines()
    return {"weights": flat(model), "losses": [json.loads(line).get("loss") for line in lines]}


def error_of(work: Callable[[], object]) -> str:
    try:
        work()
    except SegtrainError as error:
        return str(error)
    return "none"


def refused(plain: dict[str, Any]) -> Report:
    """What several ranks cannot do."""

    class Sums(nn.Module):
        def normalizer(self, targets: Any) -> None: ...
        def terms(self, logits: Tensor, target: Tensor, *, normalizer: Any = None) -> dict[str, Tensor]:
            return {"total": logits.mean()}

    differing = {"steps": 1, "accumulate": 1 + rank()}
    return {
        "few images": error_of(lambda: run(variant(plain, "few", train={"batch_size": 8}), Net())),
        "sync_batchnorm": error_of(lambda: run(variant(plain, "sync", train={"sync_batchnorm": True}), Net())),
        "loss": error_of(lambda: run(variant(plain, "terms"), Net(), loss=Sums())),
        "differing": error_of(lambda: run(variant(plain, "differing", train=differing), Net())),
    }


def evaluated(plain: dict[str, Any]) -> Report:
    """Evaluation alone: three images, and one image for two ranks; what each rank saw; a failure on one rank."""
    config = variant(plain, "evaluated")
    model = Net()
    seen: list[int] = []
    loss = MeanError()
    three = evaluate(config, model=model, loss=loss, on_image=lambda index, *_: seen.append(index))
    one = evaluate(variant(plain, "evaluated", data={"splits": {"train": "train", "val": "one"}}), model=model)

    def fail(*_: object) -> None:
        if rank() == 1:
            raise SegtrainError("a bad image")

    return {
        "matrix": three.confusion.matrix.tolist(),
        "loss": three.loss,
        "images": three.num_images,
        "seen": seen,
        "one": one.confusion.matrix.tolist(),
        "failed": error_of(lambda: evaluate(config, model=model, on_image=fail)),
    }


def unsaved(plain: dict[str, Any]) -> Report:
    """The first rank cannot write its checkpoint."""

    class Blocking(Net):
        def forward(self, images: Tensor) -> Tensor:
            if self.training and rank() == 0:
                (checkpoints / "last.pt" / "in the way").mkdir(parents=True)
            return super().forward(images)

    config = variant(plain, "unsaved", train={"steps": 1})
    checkpoints = Path(config.output) / "unsaved" / "checkpoints"
    return {"error": error_of(lambda: run(config, Blocking()))}


class Shown(SilentTracker):
    """Takes down the tags of images."""

    def __init__(self) -> None:
        self.tags: list[str] = []

    def image(self, step: int, tag: str, image: Any) -> None:
        self.tags.append(tag)


def shown(plain: dict[str, Any]) -> Report:
    """The samples that are drawn in an evaluation."""
    config = variant(plain, "shown")
    images = ValidationImages(config, ["a", "b", "c"], indices=(0, 1, 2), rare=(1,))
    evaluate(config, model=Net(), on_image=images.take)
    tracker = Shown()
    images.log(tracker, 1)
    return {"tags": tracker.tags}


def failed(plain: dict[str, Any]) -> Report:
    """One rank fails in its second step, and leaves; the other hears why."""

    class Failing(Net):
        def forward(self, images: Tensor) -> Tensor:
            if self.count == 1 and rank() == 1:
                raise SegtrainError("the lights went out")
            return super().forward(images)

    return {"error": error_of(lambda: run(variant(plain, "failed", train={"steps": 4}), Failing()))}


def main(folder: Path) -> None:
    """Do all of it as one rank, and write what was found."""
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    plain = json.loads((folder / "config.json").read_text())
    with joined_ranks(timeout_seconds=60):
        assert world_size() == 2
        found = {
            "comparable": train_comparable(plain, ranks=2, name="two"),
            "resumed": resumed(plain),
            "poisoned": poisoned(plain),
            "hopeless": hopeless(plain),
            "own_loss": own_loss(plain),
            "refused": refused(plain),
            "evaluated": evaluated(plain),
            "unsaved": unsaved(plain),
            "shown": shown(plain),
            "failed": failed(plain),  # the last: one rank leaves
        }
        number = rank()
    (folder / f"rank{number}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
