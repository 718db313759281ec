"""When a run's checkpoints are written: the state once for each place in the run, the logs before it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from segtrain.distributed import rank, world_size
from segtrain.engine.checkpoint import save_checkpoint
from segtrain.engine.ranks import agreed
from segtrain.engine.rotation import rotate
from segtrain.engine.run import Run
from segtrain.engine.shard_files import rotate_sharded, save_sharded
from segtrain.engine.shards import is_sharded, sharded_tensors, whole_weights


def save_last(run: Run) -> None:
    """Write all that the run needs to go on, unless the checkpoint on the disk holds this very state.

    Every rank must call it, and gives its part; the first one writes, and where that fails all ranks end. What was
    reported up to here reaches the disk first: a run that goes on from this checkpoint repeats none of it.

    Raises:
        CheckpointError: it could not be written; the one before it is untouched.
        SegtrainError: the logs could not be written, or too many steps in a row were not finite.
    """
    run.settle()
    state = (run.state.step, run.state.evaluated_step)
    if run.saved == state:
        return
    payload = run.resume_payload()
    if is_sharded(run.model):
        _save_shards(run, payload)
        run.saved = state
        return
    with agreed():
        if rank() == 0:
            run.tracker.flush()
            save_checkpoint(run.last_path, payload)
            rotate(run.last_path, step=run.state.step, keep_last=run.config.train.keep_last)
    run.saved = state


def save_unsaved(run: Run) -> bool:
    """Save the steps since the last save as an error is about to end the run between two steps; whether there were any.

    Of several ranks the others are in the middle of something: then nothing is saved.

    Raises:
        CheckpointError: it could not be written; the one before it is untouched.
    """
    step = run.state.step
    if world_size() > 1 or step == 0 or (run.saved is not None and run.saved[0] == step):
        return False
    run.settle()
    save_checkpoint(run.last_path, run.resume_payload())
    rotate(run.last_path, step=step, keep_last=run.config.train.keep_last)
    return True


def _save_shards(run: Run, payload: Mapping[str, Any]) -> None:
    """Write the run as a folder, each rank its part of the tensors."""
    with agreed():
        run.tracker.flush()
    folder = run.last_path.parent
    tensors = sharded_tensors(run.model, run.optimizer, None if run.ema is None else run.ema.module)
    save_sharded(folder, tensors, payload, step=run.state.step)
    with agreed():
        if rank() == 0:
            rotate_sharded(folder, step=run.state.step, keep_last=run.config.train.keep_last)


def save_best(run: Run, scores: Mapping[str, float], *, support: Mapping[str, int]) -> None:
    """Write the weights whose results count, with these results; ranks and errors as in `save_last`."""
    weights = whole_weights(run.evaluated_model())
    with agreed():
        if rank() == 0:
            save_checkpoint(run.best_path, run.best_payload(scores, support=support) | {"model": weights})
