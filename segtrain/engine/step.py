"""One optimizer step: the gradients of an accumulation window, as if its batches were one, and the update."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from segtrain.engine.device import autocast
from segtrain.engine.run import Run
from segtrain.engine.state import rng_state, set_rng_state
from segtrain.optim import set_learning_rate

Batch = dict[str, Any]


def make_step(run: Run, window: Sequence[Batch]) -> dict[str, Tensor]:
    """Make one optimizer step from `window`; return the detached loss parts and `grad_norm`.

    The window's valid pixels are counted first, so that the gradients of its batches add up to that of one large batch;
    with `train.exact_accumulation` so are the statistics of all terms, in a pass of its own.
    """
    exact = run.config.train.exact_accumulation
    run.model.train()
    schedule = run.config.optimizer.schedule
    set_learning_rate(run.optimizer, schedule, step=run.state.step, total_steps=run.schedule.total_steps)
    run.loss.set_progress(run.state.step, run.schedule.epoch(run.state.step))
    with run.phases.of("to_device"):
        targets = [batch["target"].to(run.device, non_blocking=True) for batch in window]
    # the forward pass changes BatchNorm's statistics: a step that is left out must leave no trace in them
    buffers = [buffer.clone() for buffer in run.model.buffers()]
    hooks: list[dict[str, Any]]
    if exact:
        hooks = [{"rest": rest} for rest in _rests(run, window, targets, buffers)]
    else:
        hooks = [{"normalizer": run.loss.normalizer(targets) if len(window) > 1 else None}] * len(window)
    totals: dict[str, Tensor] = {}
    for batch, target, hook in zip(window, targets, hooks, strict=True):
        output, more = _see(run, batch)
        if run.telemetry is not None:
            run.telemetry.see(output, target, step=run.state.step + 1)
            more |= run.telemetry.hooks(run.loss)
        with run.phases.of("loss"):
            terms = run.loss.terms(output, target, **hook, **more)
        with run.phases.of("backward"):
            torch.autograd.backward(run.scaler.scale(terms["total"]))
        for name, value in terms.items():
            key = "loss" if name == "total" else f"loss_{name}"
            # with the rest of the window at hand each batch gives the value of the whole window
            totals[key] = totals.get(key, 0.0) + value.detach() / (len(window) if exact else 1)
    with run.phases.of("optimizer"):
        totals["grad_norm"] = _apply_gradients(run, totals["loss"], buffers)
    run.state.step += 1
    return totals


def _rests(run: Run, window: Sequence[Batch], targets: Sequence[Tensor], buffers: Sequence[Tensor]) -> list[Tensor]:
    """Return for each batch the loss statistics of the others, from a forward pass that leaves no trace.

    The second pass must see the same logits: the random numbers are wound back for it, so that dropout agrees, and so
    are the buffers, so that BatchNorm counts each batch once.
    """
    random = rng_state(run.device)
    statistics = []
    # torch.compile may draw other random numbers without gradients: then both passes keep them
    with torch.set_grad_enabled(run.config.train.compile):
        for batch, target in zip(window, targets, strict=True):
            output, more = _see(run, batch)
            statistics.append(run.loss.statistics(output, target, **more).detach())
    set_rng_state(random, run.device)
    _set_buffers(run, buffers)
    # summed anew for each batch: their sum less the batch's own part would keep a rest of rounding
    indices = range(len(statistics))
    return [torch.stack([statistics[other] for other in indices if other != index]).sum(0) for index in indices]


def _see(run: Run, batch: Batch) -> tuple[Any, dict[str, Any]]:
    """Return what the model makes of a batch, logits or a list of them, and what the loss wants beside the target."""
    train, device = run.config.train, run.device
    with run.phases.of("to_device"):
        stored = batch["image"].to(device, non_blocking=True)
        images = run.normalize(stored, torch.channels_last if train.channels_last else torch.contiguous_format)
    with run.phases.of("forward"), autocast(device, train.precision):
        output = run.forward(images)
    more: dict[str, Any] = {}
    if run.teacher is not None:
        more["teacher_logits"] = run.teacher.logits(stored)
    if "distances" in batch:
        more["distances"] = batch["distances"].to(device, non_blocking=True)
    return output, more


def _apply_gradients(run: Run, loss: Tensor, buffers: Sequence[Tensor]) -> Tensor:
    """Clip, update, average; where loss or gradient is not finite, leave the step out. Return the gradient's norm.

    Under fp16 such a step also lowers the loss scale.
    """
    clip = run.config.optimizer.clip_norm
    run.scaler.unscale_(run.optimizer)
    parameters = [parameter for group in run.optimizer.param_groups for parameter in group["params"]]
    norm = torch.nn.utils.clip_grad_norm_(parameters, clip if clip is not None else math.inf)
    if bool(torch.isfinite(norm) & torch.isfinite(loss)):
        run.scaler.step(run.optimizer)
        if run.ema is not None:
            run.ema.update_parameters(run.model)
    else:
        run.state.skipped_steps += 1
        _set_buffers(run, buffers)
    run.scaler.update()
    run.optimizer.zero_grad(set_to_none=True)
    return norm.detach()


def _set_buffers(run: Run, buffers: Sequence[Tensor]) -> None:
    for buffer, before in zip(run.model.buffers(), buffers, strict=True):
        buffer.copy_(before)
