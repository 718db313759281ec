"""A run that is stopped, or dies, and goes on ends in the bits and the logs of one that nothing disturbed."""

from __future__ import annotations

import copy
import hashlib
import io
import json
import os
import random
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from segtrain.config import Config
from segtrain.config.optimizer import AdamW
from segtrain.engine import train
from segtrain.engine.checkpoint import load_checkpoint, save_checkpoint
from segtrain.engine.run import restore
from segtrain.engine.signals import StopRequest
from segtrain.engine.state import TrainState, rng_state, set_rng_state
from segtrain.optim import build_optimizer

STEPS = 12
# of the clock, and so of every run its own
OF_THE_CLOCK = ("time", "seconds", "images_per_second", "data_wait")
STATE = (
    "model",
    "ema",
    "step",
    "epoch",
    "thresholds",
    "frequencies",
    "training.state",
    "training.optimizer",
    "training.scaler",
    "training.num_averaged",
    "training.rng",
    "training.exposure",
    "training.meter",
    "training.telemetry",
    "training.non_finite_in_a_row",
)
DISTURBED = ("stopped", "died")

LABELS = {
    "labels": "multi_label",
    "classes": ["block", "dot"],
    "label_map": {0: "none", 1: "block", 2: "dot", 255: "ignore"},
}
SETTINGS: dict[str, Any] = {
    "data": {
        **LABELS,
        "sampling": {"name": "rare_class", "min_pixels": 2, "epoch_samples": 10},
        "cache": "disk",
        "train_transforms": [{"name": "random_scale"}, {"name": "crop", "size": [16, 16]}, {"name": "color"}],
    },
    "loss": {"activation": "sigmoid", "terms": [{"name": "cross_entropy"}, {"name": "dice"}]},
    "optimizer": {"name": "adamw", "lr": 0.01, "schedule": {"name": "poly", "warmup_steps": 2}},
    "evaluate": {"tune_thresholds": True},
}
# 2.5 steps make an epoch, no log line falls on an evaluation, and no stop falls on either
TRAIN = {
    "steps": STEPS,
    "batch_size": 2,
    "accumulate": 2,
    "ema": 0.9,
    "log_every": 5,
    "evaluate_every": 4,
    "evaluate_unit": "steps",
    "best_metric": "val/loss",
}


class Dead(Exception):
    """The end of a process, as far as what it leaves on the disk goes."""


class Disturbed(nn.Module):
    """A model with dropout that draws from all global generators, and gets a signal in a forward pass of training."""

    def __init__(self, inner: nn.Module, *, at: int = 0, number: int = 0) -> None:
        super().__init__()
        self.inner, self.at, self.number, self.count = inner, at, number, 0

    def forward(self, images: Tensor) -> Tensor:
        if not self.training:
            return self.inner(images)
        self.count += 1
        if self.count == self.at:
            os.kill(os.getpid(), self.number)
        noise = random.random() + np.random.random()  # noqa: NPY002 - a model of one's own may do so
        return self.inner(images) * (1 + 0.01 * noise)


@dataclass(frozen=True)
class Finished:
    """A finished run: the content of its checkpoints, its lines and its events."""

    last: dict[str, Any]
    best: dict[str, Any]
    lines: list[dict[str, Any]]
    events: dict[str, list[tuple[int, Any]]]


def run(config: Config, model: nn.Module) -> int | None:
    """Train, and return the signal that stopped it; the generators start elsewhere each time but the first."""
    return train(config, model=model, console=Console(file=io.StringIO(), width=200)).signal


def finished(config: Config) -> Finished:
    folder = Path(config.output) / config.name
    last, best = (load_checkpoint(folder / "checkpoints" / f"{name}.pt") for name in ("last", "best"))
    text = (folder / "metrics.jsonl").read_text(encoding="utf-8")
    lines = [
        {key: value for key, value in json.loads(line).items() if key not in OF_THE_CLOCK} for line in text.splitlines()
    ]
    return Finished(last, best, lines, events_of(folder / "tensorboard"))


def events_of(folder: Path) -> dict[str, list[tuple[int, Any]]]:
    """Steps and values of every tag, scalars and images; of the clock, the steps alone."""
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0})
    accumulator.Reload()
    found: dict[str, list[tuple[int, Any]]] = {}
    for tag in accumulator.Tags()["scalars"]:
        timed = tag.rpartition("/")[2] in OF_THE_CLOCK
        found[tag] = [(event.step, None if timed else event.value) for event in accumulator.Scalars(tag)]
    for tag in accumulator.Tags()["images"]:
        found[tag] = [(event.step, event.encoded_image_string) for event in accumulator.Images(tag)]
    return found


def digest(value: Any) -> str:
    """SHA-256 of the bits of tensors and plain values, at any depth."""
    sha = hashlib.sha256()

    def add(part: Any) -> None:
        if isinstance(part, Tensor):
            sha.update(f"{part.dtype}{tuple(part.shape)}".encode())
            sha.update(part.contiguous().numpy().tobytes())
        elif isinstance(part, dict):
            for key in part:
                sha.update(repr(key).encode())
                add(part[key])
        elif isinstance(part, list | tuple):
            sha.update(str(len(part)).encode())
            for entry in part:
                add(entry)
        else:
            sha.update(repr(part).encode())

    add(value)
    return sha.hexdigest()


def part_of(payload: dict[str, Any], key: str) -> Any:
    for name in key.split("."):
        payload = payload[name]
    return payload


@pytest.fixture(scope="module")
def runs(module_config: Callable[..., Config], tiny_net: type[nn.Module]) -> dict[str, Finished]:
    """An undisturbed run; one stopped by SIGINT and by SIGTERM; one that died; on 0 and 2 workers by turns."""

    def config(name: str, *, workers: int, resume: str = "none") -> Config:
        data = SETTINGS["data"] | {"workers": workers}
        return module_config(name=name, **SETTINGS | {"data": data, "train": TRAIN | {"resume": resume}})

    def net(**options: int) -> nn.Module:
        return Disturbed(tiny_net(2), **options)

    for name in ("whole", *DISTURBED):
        random.seed(3)
        np.random.seed(3)  # noqa: NPY002
        if name == "whole":
            assert run(config(name, workers=0), net()) is None
        elif name == "stopped":
            # in the first batch of step 4, and in the second one of step 7: both in the middle of an epoch
            assert run(config(name, workers=2), net(at=7, number=signal.SIGINT)) == signal.SIGINT
            assert saved_step(config(name, workers=0)) == 4
            shaken()
            assert run(config(name, workers=0, resume="auto"), net(at=6, number=signal.SIGTERM)) == signal.SIGTERM
            assert saved_step(config(name, workers=0)) == 7
            shaken()
            assert run(config(name, workers=2, resume="auto"), net()) is None
        else:
            die_twice(config, net)
    return {name: finished(config(name, workers=0)) for name in ("whole", *DISTURBED)}


def shaken() -> None:
    """As in a process of its own, the global generators are somewhere else."""
    random.seed()
    np.random.seed()  # noqa: NPY002
    torch.seed()


def saved_step(config: Config) -> int:
    return int(load_checkpoint(Path(config.output) / config.name / "checkpoints" / "last.pt")["step"])


def die_twice(config: Callable[..., Config], net: Callable[..., nn.Module]) -> None:
    """Die with the evaluation of step 4 reported and not saved, then three steps after that of step 8."""

    def save_or_die(path: Path, payload: dict[str, Any]) -> None:
        if path.name == "best.pt":
            raise Dead
        save_checkpoint(path, payload)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("segtrain.engine.saving.save_checkpoint", save_or_die)
        with pytest.raises(Dead):
            run(config("died", workers=0), net())
    assert saved_step(config("died", workers=0)) == 4
    shaken()
    deadly = net()
    steps = iter(range(7 * TRAIN["accumulate"]))

    def count(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if module.training and next(steps, None) is None:
            raise Dead

    deadly.register_forward_pre_hook(count)
    with pytest.raises(Dead):
        run(config("died", workers=0, resume="auto"), deadly)
    assert saved_step(config("died", workers=0)) == 8
    shaken()
    assert run(config("died", workers=0, resume="auto"), net()) is None


@pytest.mark.parametrize("name", DISTURBED)
@pytest.mark.parametrize("key", STATE)
def test_every_part_of_the_state_ends_in_the_same_bits(runs: dict[str, Finished], key: str, name: str) -> None:
    whole, other = part_of(runs["whole"].last, key), part_of(runs[name].last, key)
    assert whole is not None
    assert digest(other) == digest(whole)


@pytest.mark.parametrize("name", DISTURBED)
def test_the_best_checkpoint_is_the_same(runs: dict[str, Finished], name: str) -> None:
    for key in ("model", "scores", "thresholds", "step"):
        assert digest(runs[name].best[key]) == digest(runs["whole"].best[key]), key


@pytest.mark.parametrize("name", DISTURBED)
def test_the_lines_of_metrics_have_neither_gaps_nor_doubles(runs: dict[str, Finished], name: str) -> None:
    whole = runs["whole"].lines
    assert [line["step"] for line in whole if line["kind"] == "train"] == [5, 10, 12]
    assert [line["step"] for line in whole if line["kind"] == "val"] == [4, 8, 12]
    assert sum(line["kind"] == "exposure" for line in whole) == 4
    assert runs[name].lines == whole


@pytest.mark.parametrize("name", DISTURBED)
def test_tensorboard_shows_the_same_curves_and_pictures(runs: dict[str, Finished], name: str) -> None:
    whole, other = runs["whole"].events, runs[name].events
    assert {"train/loss", "val/miou", "val/threshold/dot", "exposure/realised/dot", "hparam/best/miou"} <= set(whole)
    assert other.keys() == whole.keys()
    for tag, events in whole.items():
        assert other[tag] == events, tag


def test_nothing_of_the_state_is_left_out_of_the_comparison(runs: dict[str, Finished]) -> None:
    payload = runs["whole"].last
    compared = {key.partition(".")[0] for key in STATE} | {"config", "format", "segtrain", "custom_model"}
    assert payload.keys() == compared
    assert payload["training"].keys() == {key.partition(".")[2] for key in STATE if "." in key} | {
        "num_samples",
        "world_size",
    }


def test_going_on_and_stopping_at_once_changes_nothing(
    runs: dict[str, Finished],
    module_config: Callable[..., Config],
    tiny_net: type[nn.Module],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So a signal in the moment before the first new step loses nothing of what the evaluation before it found."""
    config = module_config(name="whole", **SETTINGS | {"train": TRAIN | {"resume": "auto"}})
    monkeypatch.setattr(StopRequest, "hold", lambda stop: setattr(stop, "signal", int(signal.SIGTERM)))
    shaken()
    assert run(config, Disturbed(tiny_net(2))) == signal.SIGTERM
    left = load_checkpoint(Path(config.output) / "whole" / "checkpoints" / "last.pt")
    # each step sets the learning rate, which follows from its number
    for key in [key + ".state" if key == "training.optimizer" else key for key in STATE]:
        assert digest(part_of(left, key)) == digest(part_of(runs["whole"].last, key)), key


def test_the_loss_scale_of_fp16_goes_on(tiny_net: type[nn.Module]) -> None:
    def learner() -> tuple[nn.Module, torch.optim.Optimizer, torch.amp.GradScaler]:
        model = tiny_net()
        optimizer = build_optimizer(model, AdamW(name="adamw", lr=0.01))
        return model, optimizer, torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=2)

    def step(model: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> None:
        optimizer.zero_grad()
        scaler.scale(model(torch.ones(1, 3, 4, 4)).square().mean()).backward()
        scaler.step(optimizer)
        scaler.update()

    device = torch.device("cpu")
    one = learner()
    for _ in range(3):
        step(*one)
    training = {"optimizer": one[1].state_dict(), "scaler": one[2].state_dict(), "rng": rng_state(device)}
    training |= {"state": TrainState(step=3).to_dict(), "num_averaged": 0, "num_samples": 7}
    payload = copy.deepcopy({"model": one[0].state_dict(), "training": training})
    two = learner()
    restore(payload, model=two[0], optimizer=two[1], scaler=two[2], num_samples=7, has_best=True, device=device)
    for learner_ in (one, two):
        set_rng_state(payload["training"]["rng"], device)
        step(*learner_)
    assert one[2].state_dict()["scale"] == 32.0  # it grew twice, and had a step towards the next time
    assert two[2].state_dict() == one[2].state_dict()
    assert digest(two[0].state_dict()) == digest(one[0].state_dict())
