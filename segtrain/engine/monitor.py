"""Watches the evaluations: the best one, when to stop early, and classes that collapse or never rise."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence

from segtrain.config import Config
from segtrain.engine.state import TrainState
from segtrain.errors import ConfigError

RISEN_IOU = 0.05
COLLAPSED_IOU = 0.005
NEVER_RISEN_FROM = 0.3
PER_CLASS = ("iou", "dice", "precision", "recall")


def metric_names(config: Config) -> list[str]:
    """Return the names of all metrics that an evaluation of this run reports."""
    names = ["val/loss", "val/miou", "val/miou_tail", "val/fwiou", "val/pixel_accuracy"]
    if config.evaluate.exclude:
        names.append("val/miou_selected")
    return names + [f"val/{kind}/{name}" for kind in PER_CLASS for name in config.data.class_names]


def check_metric_name(config: Config) -> None:
    """Raise ConfigError unless train.best_metric is among `metric_names`."""
    names = metric_names(config)
    wanted = config.train.best_metric
    if wanted == "val/loss" and config.evaluate.tile is not None:
        raise ConfigError(
            "train.best_metric: val/loss is not measured with evaluate.tile: choose val/miou, or no tiles"
        )
    if wanted in names:
        return
    near = difflib.get_close_matches(wanted, names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    raise ConfigError(
        f"train.best_metric: {wanted!r} is not reported{hint} Reported: {', '.join(names[:6])}, … "
        f"(val/iou|dice|precision|recall/<class>; classes: {', '.join(config.data.class_names)})"
    )


def record_best(config: Config, state: TrainState, *, scores: Mapping[str, float]) -> bool:
    """Take an evaluation into `state`; return whether it is the best so far.

    An undefined value (NaN) is never the best, unless nothing has been recorded yet.
    """
    metric = config.train.best_metric
    value = scores[metric.removeprefix("val/")]
    smaller = metric == "val/loss"
    delta = config.train.early_stopping.min_delta if config.train.early_stopping else 0.0
    if _gain(state.gain_value, value, smaller=smaller) > delta:
        state.gain_value, state.evaluations_without_gain = value, 0
    else:
        state.evaluations_without_gain += 1
    better = state.best_step < 0 or _gain(state.best_value, value, smaller=smaller) > 0
    if better:
        state.best_value, state.best_step = value, state.step
    return better


def _gain(before: float, value: float, *, smaller: bool) -> float:
    """Return by how much `value` is better than `before`: endless where there was none, below 0 where undefined."""
    if math.isnan(value):
        return -math.inf
    if math.isnan(before):
        return math.inf
    return before - value if smaller else value - before


def should_stop_early(config: Config, state: TrainState) -> bool:
    """Return whether early stopping's patience is used up."""
    stopping = config.train.early_stopping
    return stopping is not None and state.evaluations_without_gain >= stopping.patience


def class_warnings(
    state: TrainState, scores: Mapping[str, float], *, class_names: Sequence[str], progress: float
) -> list[str]:
    """Return a warning for each class that has collapsed to 0 or has never risen; each is named once.

    Args:
        state: its `best_iou` and `warned` are brought up to date.
        scores: of this evaluation; classes without any pixel here (NaN) are left out.
        class_names: in order.
        progress: share of the training done, 0 to 1; "never rose" is said from 0.3 on.
    """
    messages = []
    for name in class_names:
        value = scores[f"iou/{name}"]
        if math.isnan(value):
            continue
        best = max(value, state.best_iou.get(name, 0.0))
        state.best_iou[name] = best
        if value > RISEN_IOU and name in state.warned:
            state.warned.remove(name)
        if value > COLLAPSED_IOU or name in state.warned:
            continue
        if best > RISEN_IOU:
            messages.append(
                f"class {name!r} has collapsed: IoU {value:.3f} after {best:.3f}. Lower the learning rate or clip the "
                f"gradient; keep its best checkpoint with train.best_metric=val/iou/{name}"
            )
        elif progress >= NEVER_RISEN_FROM:
            messages.append(
                f"class {name!r} has never risen from 0 (IoU {value:.3f}, {progress:.0%} of the training done). Give "
                "it more weight (loss: auto, class_weights, a dice term), a higher input resolution, or longer training"
            )
        else:
            continue
        state.warned.append(name)
    return messages
