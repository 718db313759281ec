"""What surrounds an optimizer step in the loop: its data in their order, the counts and means, and a line of log."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segtrain.engine.run import Run
from segtrain.engine.step import make_step


def windows(run: Run) -> Iterator[list[dict[str, Any]]]:
    """Yield lists of `accumulate` batches from the run's position on, over the ends of epochs."""
    epoch, batch = run.schedule.position(run.state.step)
    window: list[dict[str, Any]] = []
    while True:
        run.sampler.set_position(epoch, batch)
        for item in run.loader:
            window.append(item)
            if len(window) == run.schedule.accumulate:
                yield window
                window = []
        epoch, batch = epoch + 1, 0


def advance(run: Run, window: list[dict[str, Any]], *, waited: float) -> None:
    """Make one step of the run, and take it down: classes seen, means, speed; `waited`: seconds for its data."""
    counting = run.exposure.count([batch["target"] for batch in window])
    values = make_step(run, window)
    if run.device.type == "cpu":  # where looking costs nothing, a run that is lost need not go on to the next log line
        run.settle()
    run.meter.add(values, num_images=sum(len(batch["image"]) for batch in window), waited=waited)
    _report_exposure(run, counting)


def log_step(run: Run) -> dict[str, float]:
    """Report what was taken down since the last call, and begin anew; waits for the device. Return what was reported.

    Raises:
        SegtrainError: so many steps in a row were not finite that going on is of no use, or the log cannot be written.
    """
    run.settle()
    values = run.meter.values()
    for group in run.optimizer.param_groups:
        values[f"lr_{group['name']}"] = group["lr"]
    values["skipped_steps"] = run.state.skipped_steps
    if run.telemetry is not None:
        values |= run.telemetry.values()
    run.tracker.scalars(run.state.step, values, kind="train", epoch=run.schedule.epoch(run.state.step))
    run.meter.restart()
    return values


def _report_exposure(run: Run, counting: Future[list[NDArray[np.int64]]]) -> None:
    """Take in what was counted in the targets of a step, and report it at the end of an epoch."""
    # all is counted before any of it is reported: where the logs fail, the state is whole, and can be saved
    for values in [run.exposure.add(rows) for rows in counting.result()]:
        if values is not None:
            run.tracker.scalars(run.state.step, values, kind="exposure", epoch=run.schedule.epoch(run.state.step))
