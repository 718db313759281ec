"""The training loop: read top to bottom, it is the whole story of a run."""

from __future__ import annotations

import math
import time
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor, nn

from segtrain.config import Config
from segtrain.console import make_console, say
from segtrain.data.given import MapDataset
from segtrain.distributed import rank
from segtrain.engine.advance import advance, log_step, windows
from segtrain.engine.checkpoint import load_checkpoint, load_weights
from segtrain.engine.determinism import deterministic_algorithms
from segtrain.engine.display import TrainDisplay
from segtrain.engine.evaluate import Evaluation, evaluate
from segtrain.engine.folder import flat_settings
from segtrain.engine.monitor import class_warnings, record_best, should_stop_early
from segtrain.engine.nan_outputs import nan_warning
from segtrain.engine.pulse import Pulse
from segtrain.engine.ranks import agreed, from_first, rank_console, rank_device, training_ranks
from segtrain.engine.run import Run
from segtrain.engine.saving import save_best, save_last, save_unsaved
from segtrain.engine.setup import prepare
from segtrain.engine.shards import gathered, give_weights, is_sharded
from segtrain.engine.signals import Interrupted, StopRequest
from segtrain.engine.thresholds import ThresholdTuner
from segtrain.errors import DataError, SegtrainError
from segtrain.tracking import LogError

OUT_OF_MEMORY = (
    "out of memory: lower train.batch_size and raise train.accumulate by the same factor, use smaller crops or a "
    "smaller data.input_size, or train.precision=bf16; then go on with train.resume=auto"
)


@dataclass(frozen=True)
class TrainResult:
    """How a run ended.

    Attributes:
        folder: the run's folder; best_checkpoint: the file to use, None when the run was stopped before any evaluation.
        evaluation: of the best checkpoint on `val`, None when the run was stopped by a signal.
        step: optimizer steps done.
        signal: number of the signal that stopped the run, or None.
    """

    folder: Path
    best_checkpoint: Path | None
    evaluation: Evaluation | None
    step: int
    signal: int | None


def train(
    config: Config,
    *,
    model: nn.Module | None = None,
    loss: nn.Module | None = None,
    train_data: MapDataset | None = None,
    val_data: MapDataset | None = None,
    console: Console | None = None,
) -> TrainResult:
    """Train as `config` says, and return how it ended.

    Args:
        config: a validated configuration; see `segtrain.config.load_config`.
        model: takes normalised float images `[N, in_channels, H, W]`, returns logits `[N, num_classes, H, W]`, or
            a list of logits: the loss gets them all (see `loss.auxiliary`), evaluation takes the first. Default:
            built from `config.model`. A checkpoint holds its weights, not its code: evaluate it with
            `segtrain.engine.evaluate(config, model=...)`, as the commands rebuild `config.model`.
        loss: what `build_loss` returns, or any module `loss(logits, target) -> scalar`, target int64; default:
            built from `config.loss`.
        train_data, val_data: default: the splits `train` and `val` of `config.data`, each file checked before step 1.
            Any map-style data set or sequence of (image, mask) stands in for them (see `segtrain.data.given` for what
            images and masks may be): each pair is checked before step 1, and the classes are counted. Label map, input
            size, training transforms and normalisation of `config.data` apply as they do to files.
        console: where progress is shown; default: standard output.

    Under torchrun each rank calls it alike, and gets the same result; see docs/distributed.md. A process group that is
    there already is used and left as it is. The first rank alone writes and shows anything.

    Raises:
        ConfigError, DataError, CheckpointError: what the user can put right, before the first step.
        SegtrainError: the loss stayed non-finite, memory ran out, a log could not be written, or another rank failed.
    """
    with StopRequest() as stop, training_ranks(config), _arithmetic(config):
        console = rank_console(console or make_console())
        run = prepare(config, model=model, loss=loss, train_data=train_data, val_data=val_data, console=console)
        stop.hold()
        times = config.train
        pulse = Pulse(stop, save_every_seconds=times.save_every_seconds, timeout_seconds=times.rank_timeout_seconds)
        with run.tracker, closing(run.loader), closing(run.phases), pulse:
            try:
                evaluation = _loop(run, pulse, console) or _evaluate_best(run, pulse)
                say(console, run.exposure.table())
            except torch.OutOfMemoryError as error:
                raise SegtrainError(OUT_OF_MEMORY) from error
            except (LogError, DataError):  # found between two steps: what was learnt until now is not lost
                if save_unsaved(run):
                    say(console, f"saved step {run.state.step} ahead of the error that ends the run")
                raise
            except Interrupted:
                say(console, f"stopped by a signal after step {run.state.step}; go on with train.resume=auto")
                best = run.best_path if run.best_path.is_file() else None
                return TrainResult(run.folder, best, None, run.state.step, pulse.signal())
            means = {f"best/{key}": value for key, value in evaluation.scores.items() if "/" not in key}
            run.tracker.hparams(run.state.step, flat_settings(run.config), means)
    return TrainResult(run.folder, run.best_path, evaluation, run.state.step, None)


def _arithmetic(config: Config) -> AbstractContextManager[None]:
    """Return the context in which torch computes as `train.deterministic` asks."""
    if not config.train.deterministic:
        return nullcontext()
    return deterministic_algorithms(device=rank_device(config.device))


def _loop(run: Run, pulse: Pulse, console: Console) -> Evaluation | None:
    """Step and evaluate until the end or early stopping; return the best evaluation seen here.

    Raises:
        Interrupted: a signal came, to any rank; all have done the same step, and the state is saved.
    """
    best: Evaluation | None = None
    state, schedule = run.state, run.schedule
    data = windows(run)
    pulse.saved()
    with TrainDisplay(console, total_steps=schedule.total_steps, step=state.step) as display:
        while not pulse.stops:
            if schedule.evaluation_due(state.step) and state.evaluated_step != state.step:
                evaluation = _evaluate(run, pulse, display)
                run.meter.restart_clock()
                pulse.saved()
                best = evaluation if state.best_step == state.step else best
            if state.step >= schedule.total_steps or should_stop_early(run.config, state):
                break
            run.phases.begin_step()
            pulse.begin()
            waited = time.perf_counter()
            window = next(data)
            waited = time.perf_counter() - waited
            advance(run, window, waited=waited)
            if state.step % run.config.train.log_every == 0 or state.step == schedule.total_steps:
                display.update(state.step, schedule.epoch(state.step), log_step(run))
            run.phases.end_step(waited=waited)
            pulse.end()
            if pulse.save_is_due:
                save_last(run)
                pulse.saved()
    if pulse.stops:
        save_last(run)
        raise Interrupted
    if state.step < schedule.total_steps:
        say(console, f"stopped early: no gain in {state.evaluations_without_gain} evaluations")
    return best


def _evaluate(run: Run, pulse: Pulse, display: TrainDisplay) -> Evaluation:
    """Evaluate on `val`, log, warn about classes, keep the best checkpoint, save the last one."""
    state = run.state
    # an evaluation can take long, and a signal leaves it at once
    save_last(run)
    evaluation = _evaluate_val(run, pulse, step=state.step)
    state.evaluated_step = state.step
    scores = dict(evaluation.scores)
    if evaluation.loss is not None:
        scores["loss"] = evaluation.loss
    epoch = run.schedule.epoch(state.step)
    tuned = {} if run.thresholds is None else run.thresholds.scalars()
    run.tracker.scalars(state.step, scores | tuned, kind="val", epoch=epoch)
    run.validation_images.log(run.tracker, state.step)
    # what was counted where no class can be told may look good: it must not become the best
    trusted = dict.fromkeys(scores, math.nan) if evaluation.nan_outputs else scores
    better = record_best(run.config, state, scores=trusted)
    loss = f"val loss {scores['loss']:.4f} " if "loss" in scores else ""
    tail = "" if math.isnan(scores["miou_tail"]) else f" tail {scores['miou_tail']:.4f}"
    metric = run.config.train.best_metric
    chosen = "" if metric == "val/miou" else f" {metric} {scores[metric.removeprefix('val/')]:.4f}"
    mark = " (best so far)" if better and not evaluation.nan_outputs else ""
    display.say(f"step {state.step} epoch {epoch:.1f}: {loss}mIoU {scores['miou']:.4f}{tail}{chosen}{mark}")
    if evaluation.nan_outputs:
        display.say(f"warning: {nan_warning(evaluation.nan_outputs, 'val')}", style="yellow")
    progress = state.step / run.schedule.total_steps
    support = dict(zip(evaluation.class_names, evaluation.confusion.support.tolist(), strict=True))
    told = () if evaluation.nan_outputs else class_warnings(state, scores, support=support, progress=progress)
    for message in told:
        display.say(f"warning: {message}", style="yellow")
    if better and run.thresholds is not None:
        display.say(f"thresholds chosen on val: {run.thresholds.describe()}")
    if better:
        save_best(run, scores, support=support)
    save_last(run)
    return evaluation


def _evaluate_val(run: Run, pulse: Pulse, *, step: int) -> Evaluation:
    """Evaluate the model as it is, with the loss weights of `step`; raises Interrupted once a signal has come.

    Each rank evaluates its share of the images, and all get the whole result.

    With evaluate.tune_thresholds the scores are at evaluate.threshold all the same, so that no choice flatters them,
    and what would be best goes to `run.thresholds`.
    """
    run.loss.set_progress(step, run.schedule.epoch(step))
    data = run.config.data
    tuner = ThresholdTuner(len(data.classes), data.ignore_index) if run.config.evaluate.tune_thresholds else None

    def on_image(index: int, image: Tensor, target: Tensor, prediction: Tensor) -> None:
        pulse.check()
        run.validation_images.take(index, image, target, prediction)

    with gathered(run.evaluated_model()) as model:
        evaluation = evaluate(
            run.config,
            model=model,
            normalize=run.normalize,
            data=run.val_data,
            frequencies=run.frequencies,
            loss=run.validation_loss if run.measures_loss else None,
            on_image=on_image,
            tuner=tuner,
        )
    run.thresholds = None if tuner is None else tuner.tuned(data.class_names, step=step)
    return evaluation


def _evaluate_best(run: Run, pulse: Pulse) -> Evaluation:
    """Evaluate the best checkpoint again: after a resume its evaluation is no longer at hand.

    The run's own weights are gone then: they are in last.pt. The first rank reads, and gives the others the weights.
    """
    step, weights, model = run.state.step, {}, run.evaluated_model()
    path = run.best_path if run.best_path.is_file() else run.last_path
    with agreed():
        if rank() == 0 and path.is_file():  # a sharded run without a best one has no file of whole weights
            payload = load_checkpoint(path)
            step, weights = payload["step"], payload.get("ema") or payload["model"]
            if not is_sharded(model):
                load_weights(model, weights, path=path)
    give_weights(model, weights)
    return _evaluate_val(run, pulse, step=from_first(step))
