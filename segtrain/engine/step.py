"""One optimizer step: the gradients of an accumulation window, as if its batches were one, and the update."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from segtrain.distributed import all_reduce_sum, world_size
from segtrain.engine.device import autocast
from segtrain.engine.run import Run
from segtrain.engine.shards import whole
from segtrain.engine.state import rng_state, set_rng_state
from segtrain.optim import set_learning_rate

Batch = dict[str, Any]


def make_step(run: Run, window: Sequence[Batch]) -> dict[str, Tensor]:
    """Make one optimizer step from `window`; return the detached loss parts and `grad_norm`, still on the device.

    The window's valid pixels are counted first, so that the gradients of its batches add up to that of one large batch;
    with `train.exact_accumulation` so are the statistics of all terms, in a pass of its own. Both are summed over the
    ranks, each of which has its own window: what is returned is of all of them, and equal on all.
    """
    exact = run.config.train.exact_accumulation
    if not run.model.training:  # a walk over hundreds of modules
        run.model.train()
    schedule = run.config.optimizer.schedule
    set_learning_rate(run.optimizer, schedule, step=run.state.step, total_steps=run.schedule.total_steps)
    run.loss.set_progress(run.state.step, run.schedule.epoch(run.state.step))
    with run.phases.of("to_device"):
        targets = [batch["target"].to(run.device, non_blocking=True) for batch in window]
    # the forward pass changes BatchNorm's statistics: a step that is left out must leave no trace in them
    buffers = run.buffers.copy()
    hooks = _hooks(run, window, targets, buffers)
    totals: dict[str, Tensor] = {}
    for number, (batch, target, hook) in enumerate(zip(window, targets, hooks, strict=True)):
        with nullcontext() if number == len(window) - 1 else _ranks_apart(run):
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
        run.buffers.average()
        totals["grad_norm"] = norm = _clip(run)
        left_out = ~(torch.isfinite(norm) & torch.isfinite(totals["loss"]))
        _update(run, left_out=left_out, buffers=buffers)
    run.state.step += 1
    run.guard.add(left_out, step=run.state.step, indices=[batch["index"] for batch in window])
    return totals


def _hooks(
    run: Run, window: Sequence[Batch], targets: Sequence[Tensor], buffers: Sequence[Tensor]
) -> Iterable[dict[str, Any]]:
    """Return for each batch what makes the loss see the whole: the window, and the batches of all ranks."""
    several = world_size() > 1
    shared: dict[str, Any] = {"reduce": all_reduce_sum} if several else {}
    if run.config.train.exact_accumulation:
        return [shared | {"rest": rest} for rest in _rests(run, window, targets, buffers)]
    if len(window) == 1:
        return [shared]
    normalizer = run.loss.normalizer(targets)
    if several and hasattr(normalizer, "reduced"):
        normalizer = normalizer.reduced(all_reduce_sum)
    return [shared | {"normalizer": normalizer}] * len(window)


def _ranks_apart(run: Run) -> AbstractContextManager[None]:
    """Backward passes in here leave the gradients on each rank as they are: once in a window is often enough."""
    return nullcontext() if run.replicas is None else run.replicas.no_sync()


def _rests(run: Run, window: Sequence[Batch], targets: Sequence[Tensor], buffers: Sequence[Tensor]) -> list[Tensor]:
    """Return for each batch the loss statistics of the others, from a forward pass that leaves no trace.

    The second pass must see the same logits: the random numbers are wound back for it, so that dropout agrees, and so
    are the buffers, so that BatchNorm counts each batch once.
    """
    random = rng_state(run.device)
    statistics = []
    # torch.compile may draw other random numbers without gradients: then both passes keep them
    with torch.set_grad_enabled(run.config.train.compile_mode is not None), _ranks_apart(run):
        for batch, target in zip(window, targets, strict=True):
            output, more = _see(run, batch)
            statistics.append(run.loss.statistics(output, target, **more).detach())
    set_rng_state(random, run.device)
    run.buffers.put_back(buffers)
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


def _clip(run: Run) -> Tensor:
    """Return the norm of the gradient, as it was before clipping; under fp16 free of the loss scale."""
    run.scaler.unscale_(run.optimizer)
    parameters = [parameter for group in run.optimizer.param_groups for parameter in group["params"]]
    norm = whole(torch.nn.utils.get_total_norm([value.grad for value in parameters if value.grad is not None]))
    clip = run.config.optimizer.clip_norm
    if clip is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, clip, norm)
    return norm.detach()


def _update(run: Run, *, left_out: Tensor, buffers: Sequence[Tensor]) -> None:
    """Update weights and average, unless `left_out`: then all is as before the step, and under fp16 the scale lower.

    Whether it is stays on the device, as a GPU that has to answer would run dry: the optimizers are fused ones, which
    take it as `found_inf`, and the rest chooses between old and new. No rank leaves out a collective either.
    """
    optimizer: Any = run.optimizer
    optimizer.grad_scale, optimizer.found_inf = None, left_out.float()
    optimizer.step()
    run.buffers.put_back(buffers, where=left_out)
    if run.ema is not None:
        run.ema.update(run.model, leave_out=left_out)
    run.scaler.update()
    run.optimizer.zero_grad(set_to_none=True)
