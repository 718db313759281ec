"""Watches the evaluations: the best one, when to stop early, and classes that collapse or never rise."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from segtrain.config import Config
from segtrain.engine.state import TrainState
from segtrain.errors import ConfigError, some, suggest
from segtrain.metrics.scores import RATIOS, score_names

RISEN_IOU = 0.05
COLLAPSED_IOU = 0.005
NEVER_RISEN_FROM = 0.5
EVALUATIONS_BEFORE_NEVER = 2
MAX_NAMED = 10


def metric_names(config: Config) -> list[str]:
    """Return the names of all metrics that an evaluation of this run reports."""
    names = score_names(config.data.class_names, exclude=config.evaluate.exclude)
    return ["val/loss", *(f"val/{name}" for name in names)]


def check_metric_name(config: Config) -> None:
    """Raise ConfigError unless train.best_metric is among `metric_names`."""
    names = metric_names(config)
    wanted = config.train.best_metric
    if wanted == "val/loss" and config.evaluate.tile is not None:
        raise ConfigError(
            "train.best_metric: val/loss is not measured with evaluate.tile: choose val/miou, or no tiles"
        )
    if wanted not in names:
        overall = ", ".join(name for name in names if name.count("/") == 1)
        raise ConfigError(
            f"train.best_metric: {wanted!r} is not reported{suggest(wanted, names)}. Reported: {overall}, and "
            f"val/{'|'.join(RATIOS)}/<class> for the classes {', '.join(config.data.class_names)}"
        )


def check_val_classes(config: Config, val_pixels: Sequence[int]) -> list[str]:
    """Return a warning for the classes that val lacks; refuse a best_metric that cannot be measured there.

    Args:
        config: the configuration.
        val_pixels: pixels of each class in val, in class order.

    Raises:
        ConfigError: val has no pixel of any class, or none of the class that train.best_metric is about.
    """
    names = config.data.class_names
    absent = [name for name, pixels in zip(names, val_pixels, strict=True) if pixels == 0]
    if len(absent) == len(names):
        missing = _what_is_missing(config)
        raise ConfigError(f"val has {missing}: nothing can be measured; check data.splits, label_map and ignore_index")
    metric = config.train.best_metric
    if metric.split("/")[1] in RATIOS and metric.split("/", 2)[2] in absent:
        raise ConfigError(
            f"train.best_metric: {metric} cannot be measured, val has no pixel of that class; choose another"
        )
    return [f"val has no pixel of {some(absent, limit=MAX_NAMED)}, and measures nothing there"] if absent else []


def _what_is_missing(config: Config) -> str:
    if not config.data.multi_label:
        return "no labelled pixel"
    names = some(config.data.class_names, limit=MAX_NAMED)
    return f"no pixel of {names} (of one class alone, and of classes that overlap, masks say 1 for yes and 0 for no)"


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
    state: TrainState, scores: Mapping[str, float], *, support: Mapping[str, int], progress: float
) -> list[str]:
    """Return a warning for the classes that have collapsed to 0, and one for those that never rose; each named once.

    A class is said never to have risen from the second evaluation on, once half of the training is done: the first one
    of a short run is no sign yet.

    Args:
        state: its `evaluations`, `best_iou` and `warned` are brought up to date.
        scores: of this evaluation.
        support: pixels of each class in the evaluated masks, by name; classes without any are left out.
        progress: share of the training done, 0 to 1.
    """
    state.evaluations += 1
    collapsed, never_risen = [], []
    telling = state.evaluations >= EVALUATIONS_BEFORE_NEVER and progress >= NEVER_RISEN_FROM
    for name in (name for name, pixels in support.items() if pixels > 0):
        value = scores[f"iou/{name}"]
        best = state.best_iou[name] = max(value, state.best_iou.get(name, 0.0))
        if value > RISEN_IOU and name in state.warned:
            state.warned.remove(name)
        if value > COLLAPSED_IOU or name in state.warned:
            continue
        if best > RISEN_IOU:
            collapsed.append(f"{name!r} (IoU {value:.3f} after {best:.3f})")
        elif telling:
            never_risen.append(name)
        else:
            continue
        state.warned.append(name)
    return [*_collapsed_warning(collapsed), *_never_risen_warning(never_risen, progress=progress)]


def _collapsed_warning(told: Sequence[str]) -> list[str]:
    if not told:
        return []
    verb = "class {} has" if len(told) == 1 else "classes {} have"
    return [
        f"{verb.format(some(told, limit=MAX_NAMED))} collapsed. Lower the learning rate or clip the gradient; "
        "train.best_metric=val/iou/<class> keeps the best checkpoint of a class"
    ]


def _never_risen_warning(names: Sequence[str], *, progress: float) -> list[str]:
    if not names:
        return []
    verb = "class {} has" if len(names) == 1 else "classes {} have"
    subject = verb.format(some([repr(name) for name in names], limit=MAX_NAMED))
    return [
        f"{subject} never risen from an IoU of 0, with {progress:.0%} of the training done. What may help: more weight "
        "(loss: auto, class_weights, a dice term), a higher input resolution, longer training"
    ]
