"""What a run says of itself before its first step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from rich.console import Console
from torch import nn

from segtrain.console import say
from segtrain.distributed import world_size
from segtrain.engine.changes import changed_settings, rate_change
from segtrain.engine.fitness import accumulation_note, activation_note, ranks_note
from segtrain.engine.parts import loss_section
from segtrain.engine.run import Run
from segtrain.engine.teacher import size_note


def announce(run: Run, payload: Mapping[str, Any] | None, console: Console) -> None:
    """Print what is about to happen in a few lines."""
    config, schedule = run.config, run.schedule
    millions = sum(parameter.numel() for parameter in run.model.parameters()) / 1e6
    model = run.custom_model or f"{config.model.arch}/{config.model.encoder}"
    say(console, f"{config.name}: {model}, {millions:.2f} M parameters, on {run.device}")
    num_images = run.sampler.batch_size * world_size() * schedule.accumulate
    steps = f"{schedule.total_steps} step{'s' if schedule.total_steps != 1 else ''}"
    length = f"{steps} of {num_images} images ({schedule.epoch(schedule.total_steps):.1f} epochs)"
    say(console, f"{len(run.train_data)} training and {len(run.val_data)} validation images; {length}")
    if world_size() > 1:
        say(console, _ranks_line(run))
    if run.teacher is not None:
        say(console, f"teacher: {run.teacher.path}")
    for note in (
        None if config.data.multi_label else activation_note(loss_section(config, cast(nn.Module, run.loss))),
        accumulation_note(config, run.loss),
        ranks_note(run.loss),
        None if run.teacher is None else size_note(run.teacher, config),
    ):
        if note is not None:
            say(console, f"note: {note}")
    if payload is None:
        return
    say(console, f"going on from step {run.state.step} of {schedule.total_steps}")
    before = payload["training"].get("world_size", 1)
    if before != world_size():
        text = (
            f"note: {before} ranks came to this step, and {world_size()} go on: images come in the same order, but the "
            "model's random numbers (dropout), BatchNorm's batches and rounding differ"
        )
        say(console, text)
    rates = rate_change(config, payload, batches_per_epoch=schedule.batches_per_epoch)
    for change in [*changed_settings(config, payload), *([] if rates is None else [rates])]:
        say(console, f"changed since then: {change}", style="yellow")


def _ranks_line(run: Run) -> str:
    size, batch, accumulate = world_size(), run.sampler.batch_size, run.schedule.accumulate
    batches = f" × {accumulate} batches" if accumulate > 1 else ""
    images = size * batch * accumulate
    return f"{size} ranks × {batch} images{batches} = {images} images in a step; rank 0 writes and tells"
