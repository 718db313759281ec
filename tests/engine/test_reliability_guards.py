"""A disk that is full, data that breaks and batches without a label: one clear error, and no step is lost."""

from __future__ import annotations

import errno
import io
import json
import os
import resource
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from segtrain.config import Config
from segtrain.engine import train
from segtrain.engine.checkpoint import load_checkpoint, save_checkpoint
from segtrain.errors import CheckpointError, DataError
from segtrain.tracking import LogError, Tracker, _EventFile

MakeConfig = Callable[..., Config]
SECONDS = 120
STEPS = {"steps": 6, "batch_size": 2, "evaluate_every": 4, "evaluate_unit": "steps", "log_every": 5}


def run(config: Config, model: nn.Module) -> None:
    train(config, model=model, console=Console(file=io.StringIO(), width=200))


def folder_of(config: Config) -> Path:
    return Path(config.output) / config.name


class FullDisk:
    """A stream that has no more room."""

    def write(self, text: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def close(self) -> None:
        """Nothing is left to write."""


def test_a_full_disk_for_logs_is_one_error_after_the_last_checkpoint(
    tiny_config: MakeConfig, tiny_net: type[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, config = tiny_config(name="whole", train=STEPS), tiny_config(name="full", train=STEPS)
    run(whole, tiny_net())
    report = Tracker.scalars

    def fill(self: Tracker, step: int, values: Any, **options: Any) -> None:
        if step == 5:
            self._file.close()
            monkeypatch.setattr(self, "_file", FullDisk())
        report(self, step, values, **options)

    monkeypatch.setattr(Tracker, "scalars", fill)
    with pytest.raises(LogError, match=r"logs of the run cannot be written under .*full: No space left.*resume=auto"):
        run(config, tiny_net())
    assert load_checkpoint(folder_of(config) / "checkpoints" / "last.pt")["step"] == 5
    monkeypatch.setattr(Tracker, "scalars", report)
    run(tiny_config(name="full", train=STEPS | {"resume": "auto"}), tiny_net())
    found, expected = (load_checkpoint(folder_of(each) / "checkpoints" / "last.pt") for each in (config, whole))
    assert all(torch.equal(found["model"][key], value) for key, value in expected["model"].items())
    assert found["training"]["exposure"] == expected["training"]["exposure"]


def test_logs_that_fail_with_an_evaluation_let_it_come_again(
    tiny_config: MakeConfig, tiny_net: type[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(train=STEPS)
    report = Tracker.scalars

    def refuse(self: Tracker, step: int, values: Any, *, kind: str, **options: Any) -> None:
        if kind == "val":
            raise LogError("full")
        report(self, step, values, kind=kind, **options)

    monkeypatch.setattr(Tracker, "scalars", refuse)
    with pytest.raises(LogError):
        run(config, tiny_net())
    monkeypatch.setattr(Tracker, "scalars", report)
    run(tiny_config(train=STEPS | {"resume": "auto"}), tiny_net())
    lines = [json.loads(line) for line in (folder_of(config) / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "val"] == [4, 6]


def test_a_full_disk_in_a_save_ends_the_run_with_the_earlier_checkpoint_whole(
    tiny_config: MakeConfig, tiny_net: type[nn.Module]
) -> None:
    config = tiny_config(train=STEPS)
    model = tiny_net()
    steps = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal steps
        steps += module.training
        if steps == 5:
            resource.setrlimit(resource.RLIMIT_FSIZE, (9_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

    model.register_forward_pre_hook(count)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with pytest.raises((CheckpointError, LogError), match=r"(last\.pt is intact|cannot be written)") as caught:
            run(config, model)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert "\n" not in str(caught.value)
    left = sorted(path.name for path in (folder_of(config) / "checkpoints").iterdir())
    assert left == ["best.pt", "last.pt"]
    assert load_checkpoint(folder_of(config) / "checkpoints" / "last.pt")["step"] == 4


def test_a_folder_that_may_not_be_written_is_a_clear_error_and_keeps_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = {"format": 1, "config": {}, "step": 1, "epoch": 0.0, "frequencies": {}, "model": {}}
    save_checkpoint(tmp_path / "last.pt", content)
    tmp_path.chmod(0o500)
    if os.geteuid() == 0:  # whom no mode of a folder keeps out

        def refuse(path: Path, *args: Any, **options: Any) -> Any:
            raise PermissionError(errno.EACCES, "Permission denied")

        monkeypatch.setattr(Path, "open", refuse)
    try:
        with pytest.raises(CheckpointError, match=r"Permission denied.*last\.pt is intact.*choose another folder"):
            save_checkpoint(tmp_path / "last.pt", content | {"step": 2})
    finally:
        monkeypatch.undo()
        tmp_path.chmod(0o700)
    assert load_checkpoint(tmp_path / "last.pt")["step"] == 1


def test_a_file_that_breaks_in_training_costs_no_step(tiny_config: MakeConfig, tiny_net: type[nn.Module]) -> None:
    config = tiny_config(train=STEPS | {"steps": 10, "evaluate_every": 10})
    model = tiny_net()
    steps = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal steps
        steps += module.training
        if steps == 3:
            for path in Path(config.data.root).glob("images/train/*"):
                path.write_bytes(b"")

    model.register_forward_pre_hook(count)
    with pytest.raises(DataError, match="the file is empty"):
        run(config, model)
    assert load_checkpoint(folder_of(config) / "checkpoints" / "last.pt")["step"] == 3


class Labelled(nn.Module):
    """Notes the logits that get a gradient."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.gradients: list[float] = []

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.inner(images)
        if self.training:
            logits.register_hook(lambda gradient: self.gradients.append(float(gradient.abs().sum())))
        return logits


def test_a_batch_without_a_labelled_pixel_has_loss_zero_and_training_goes_on(
    tiny_config: MakeConfig, tiny_net: type[nn.Module]
) -> None:
    from PIL import Image

    config = tiny_config(train={"steps": 5, "batch_size": 2, "log_every": 1})
    folder = Path(config.data.root) / "masks" / "train"
    for path in sorted(folder.iterdir())[1:]:
        Image.new("L", (32, 24), 255).save(path)
    model = Labelled(tiny_net())
    run(config, model)
    lines = [json.loads(line) for line in (folder_of(config) / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["kind"] == "train"]
    # one batch of five holds the one image with labels
    assert sorted(loss > 0 for loss in losses) == [False] * 4 + [True]
    assert [loss > 0 for loss in losses] == [gradient > 0 for gradient in model.gradients]
    assert losses.count(0.0) == 4
    assert lines[-1]["step"] == 5


def test_what_was_reported_is_on_the_disk_before_a_checkpoint_of_it(
    tiny_config: MakeConfig, tiny_net: type[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a kill after the save would leave a gap in TensorBoard's curves."""
    config = tiny_config(train=STEPS | {"log_every": 1})
    write, flush, asked, seen = _EventFile._write, _EventFile.flush, threading.Event(), []

    def write_when_asked(self: _EventFile, record: bytes) -> None:
        asked.wait(SECONDS)
        write(self, record)

    def ask(self: _EventFile) -> None:
        asked.set()
        flush(self)
        asked.clear()

    def look(path: Path, payload: dict[str, Any]) -> None:
        save_checkpoint(path, payload)
        board = EventAccumulator(str(folder_of(config) / "tensorboard"))
        board.Reload()
        seen.append((payload["step"], [event.step for event in board.Scalars("train/loss")]))

    monkeypatch.setattr(_EventFile, "_write", write_when_asked)
    monkeypatch.setattr(_EventFile, "flush", ask)
    monkeypatch.setattr("segtrain.engine.saving.save_checkpoint", look)
    run(config, tiny_net())
    assert {step for step, _ in seen} == {4, 6}
    assert all(shown == list(range(1, step + 1)) for step, shown in seen)
