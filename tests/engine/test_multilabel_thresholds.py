"""Thresholds: those of the configuration, those chosen on val, and that what is counted is what is predicted."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from segtrain.config import Config, parse_config
from segtrain.engine.thresholds import CANDIDATES, ThresholdTuner, thresholds_in_force
from segtrain.errors import ConfigError
from segtrain.metrics import MultiLabelConfusion, predict_labels

NAMES = ("crack", "stain")


def config(**evaluate: object) -> Config:
    data = {"root": "d", "classes": list(NAMES), "labels": "multi_label", "label_map": {0: "none", 1: 0, 2: 1}}
    return parse_config({"name": "run", "data": data, "train": {"steps": 1}, "evaluate": evaluate})


def drawn(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits that know something of the target, some pairs ignored: two images [2, 2, 20, 15]."""
    generator = torch.Generator().manual_seed(seed)
    target = (torch.rand(2, 2, 20, 15, generator=generator) < 0.2).to(torch.uint8)
    logits = 1.5 * torch.randn(target.shape, generator=generator) + 2.0 * target - 2.0
    target[torch.rand(target.shape, generator=generator) < 0.1] = 255
    return logits, target


def tuned(logits: Tensor, target: Tensor, *, parts: int = 1) -> ThresholdTuner:
    tuner = ThresholdTuner(target.shape[1])
    for part, labels in zip(logits.chunk(parts), target.chunk(parts), strict=True):
        tuner.add(part, labels)
    return tuner


def iou(logits: Tensor, target: Tensor, threshold: float) -> list[float]:
    confusion = MultiLabelConfusion(target.shape[1])
    confusion.update(predict_labels(logits, [threshold] * target.shape[1]), target)
    return confusion.iou().tolist()


def test_the_chosen_threshold_has_the_highest_iou_that_any_candidate_predicts() -> None:
    logits, target = drawn()
    found = tuned(logits, target).tuned(NAMES, step=7)
    reached = torch.tensor([iou(logits, target, value) for value in CANDIDATES.tolist()], dtype=torch.float64)
    for c, name in enumerate(NAMES):
        assert found.iou[name] == pytest.approx(float(reached[:, c].max()), abs=1e-12)
        assert iou(logits, target, found.thresholds[name])[c] == pytest.approx(found.iou[name], abs=1e-12)
        best = CANDIDATES[reached[:, c] == reached[:, c].max()]
        assert abs(found.thresholds[name] - 0.5) == pytest.approx(float((best - 0.5).abs().min()))
    assert found.step == 7


def test_images_are_counted_alike_in_any_batches_and_types() -> None:
    logits, target = drawn()
    assert torch.equal(tuned(logits, target, parts=2).counts, tuned(logits, target).counts)
    assert torch.equal(tuned(logits, target.long()).counts, tuned(logits, target).counts)


def test_every_valid_pair_is_counted_once() -> None:
    logits, target = drawn()
    logits[0, 0, 0, :3] = torch.tensor([math.nan, math.inf, -math.inf])
    counts = tuned(logits, target).counts
    assert counts.sum(dim=(1, 2)).tolist() == [int((target[:, c] != 255).sum()) for c in range(2)]
    assert counts[:, 1].sum(dim=1).tolist() == [int((target[:, c] == 1).sum()) for c in range(2)]


def test_a_class_that_val_lacks_keeps_the_default() -> None:
    logits, target = drawn()
    target[:, 1] = 0
    found = tuned(logits, target).tuned(NAMES, step=0)
    assert found.thresholds["stain"] == 0.5
    assert math.isnan(found.iou["stain"])
    assert "stain 0.500 (no such pixel in val)" in found.describe()


def test_chosen_thresholds_count_where_they_are_asked_for_and_only_there() -> None:
    chosen = {"stain": 0.2, "crack": 0.4}
    assert thresholds_in_force(config(threshold={"crack": 0.3}), chosen) == (0.3, 0.5)
    assert thresholds_in_force(config(tune_thresholds=True), chosen) == (0.4, 0.2)
    exclusive = parse_config({"name": "r", "data": {"root": "d", "classes": ["a", "b"]}, "train": {"steps": 1}})
    assert thresholds_in_force(exclusive, None) is None


@pytest.mark.parametrize("chosen", [None, {"crack": 0.4}])
def test_thresholds_that_were_never_chosen_are_an_error(chosen: dict[str, float] | None) -> None:
    with pytest.raises(ConfigError, match=r"train with evaluate\.tune_thresholds=true"):
        thresholds_in_force(config(tune_thresholds=True), chosen)
