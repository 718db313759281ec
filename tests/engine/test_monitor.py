"""The monitor keeps the best result by any metric, stops in time, and names classes in trouble."""

from __future__ import annotations

import math
from typing import Any

import pytest

from segtrain.config import Config, parse_config
from segtrain.engine.monitor import check_metric_name, check_val_classes, class_warnings, record_best, should_stop_early
from segtrain.engine.state import TrainState
from segtrain.errors import ConfigError

NAMES = ("background", "crack")
SUPPORT = {"background": 100, "crack": 3}


def config(**train: Any) -> Config:
    return parse_config({"name": "x", "data": {"root": "d", "classes": list(NAMES)}, "train": {"epochs": 1, **train}})


def scores(**values: float) -> dict[str, float]:
    return {"miou": math.nan, "loss": math.nan, "iou/background": 0.9, "iou/crack": 0.5, **values}


@pytest.mark.parametrize("metric", ["val/miou", "val/miou_tail", "val/iou/crack", "val/recall/crack", "val/loss"])
def test_every_reported_metric_can_choose_the_best_checkpoint(metric: str) -> None:
    check_metric_name(config(best_metric=metric))


def test_an_unknown_metric_is_answered_with_a_suggestion() -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'val/iou/crack'\?"):
        check_metric_name(config(best_metric="val/iou/crck"))


def test_the_best_is_the_largest_score_or_the_smallest_loss() -> None:
    state = TrainState()
    assert [record_best(config(), state, scores=scores(miou=value)) for value in (0.1, 0.3, 0.2)] == [True, True, False]
    state = TrainState()
    cfg = config(best_metric="val/loss")
    assert [record_best(cfg, state, scores=scores(loss=value)) for value in (1.0, 0.5, 0.7)] == [True, True, False]
    assert state.best_value == 0.5


def test_an_undefined_score_never_replaces_a_real_one() -> None:
    state = TrainState()
    assert record_best(config(), state, scores=scores())
    assert record_best(config(), state, scores=scores(miou=0.1))
    assert not record_best(config(), state, scores=scores())
    assert state.best_value == 0.1


def test_early_stopping_counts_evaluations_without_enough_gain() -> None:
    cfg = config(early_stopping={"patience": 2, "min_delta": 0.05})
    state = TrainState()
    stops = []
    for value in (0.50, 0.52, 0.53):
        record_best(cfg, state, scores=scores(miou=value))
        stops.append(should_stop_early(cfg, state))
    assert stops == [False, False, True]
    assert state.best_value == 0.53


def test_small_gains_add_up_to_a_gain() -> None:
    cfg = config(early_stopping={"patience": 2, "min_delta": 0.05})
    state = TrainState()
    for value in (0.50, 0.53, 0.56, 0.59, 0.62):
        record_best(cfg, state, scores=scores(miou=value))
        assert not should_stop_early(cfg, state)


def test_a_collapsed_class_is_named_once_and_again_after_it_recovered() -> None:
    state = TrainState()

    def warn(value: float) -> list[str]:
        return class_warnings(state, scores(**{"iou/crack": value}), support=SUPPORT, progress=0.1)

    assert warn(0.4) == []
    (message,) = warn(0.0)
    assert "class 'crack' (IoU 0.000 after 0.400) has collapsed" in message
    assert warn(0.0) == []
    assert warn(0.3) == []
    assert len(warn(0.0)) == 1


def never_risen(*progress: float, state: TrainState | None = None) -> list[list[str]]:
    """Return the warnings of evaluations in which the crack is at 0, at these shares of the training."""
    state, low = state or TrainState(), scores(**{"iou/crack": 0.0})
    return [class_warnings(state, low, support=SUPPORT, progress=share) for share in progress]


def test_a_class_that_never_rises_is_named_once_after_half_of_the_training() -> None:
    first, second, third, fourth = never_risen(0.2, 0.4, 0.6, 0.8)
    assert first == second == fourth == []
    assert len(third) == 1
    assert "'crack' has never risen from an IoU of 0, with 60% of the training done" in third[0]


def test_the_first_evaluation_says_nothing_of_classes_that_never_rose_and_counts_over_a_resume() -> None:
    state = TrainState()
    assert never_risen(1.0, state=state) == [[]]
    resumed = TrainState.from_dict(state.to_dict())
    assert len(never_risen(1.0, state=resumed)[0]) == 1


def test_many_classes_in_trouble_share_a_warning() -> None:
    names = [f"class{number}" for number in range(300)]
    support, state = dict.fromkeys(names, 5), TrainState()

    def warn(value: float) -> list[str]:
        return class_warnings(state, {f"iou/{name}": value for name in names}, support=support, progress=0.9)

    assert warn(0.0) == []
    (message,) = warn(0.0)
    assert "classes 'class0', 'class1', " in message
    assert "and 290 more have never risen" in message
    assert warn(0.4) == []
    (message,) = warn(0.0)
    assert "'class9' (IoU 0.000 after 0.400) and 290 more have collapsed" in message


def test_a_class_without_pixels_is_not_warned_about() -> None:
    low, state = scores(**{"iou/crack": 0.0}), TrainState()
    for _ in range(2):
        assert class_warnings(state, low, support={"background": 9, "crack": 0}, progress=1.0) == []


def test_a_metric_that_val_cannot_measure_is_refused() -> None:
    assert check_val_classes(config(), [5, 3]) == []
    (message,) = check_val_classes(config(), [5, 0])
    assert "val has no pixel of crack" in message
    with pytest.raises(ConfigError, match="cannot be measured, val has no pixel of that class"):
        check_val_classes(config(best_metric="val/recall/crack"), [5, 0])
    with pytest.raises(ConfigError, match="val has no labelled pixel"):
        check_val_classes(config(), [0, 0])


def test_one_class_without_a_pixel_in_val_is_told_what_masks_say() -> None:
    one = parse_config({"name": "x", "data": {"root": "d", "classes": ["crack"]}, "train": {"epochs": 1}})
    with pytest.raises(ConfigError, match=r"val has no pixel of crack \(of one class alone.* 1 for yes and 0 for no\)"):
        check_val_classes(one, [0])
