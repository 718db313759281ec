"""From which probability on a class is present: as the configuration says, or chosen on val and kept with the run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from segtrain.config import Config
from segtrain.errors import ConfigError
from segtrain.metrics.multilabel import threshold_logits

NUM_CANDIDATES = 999  # 0.001, 0.002 ... 0.999
CANDIDATES = torch.arange(1, NUM_CANDIDATES + 1, dtype=torch.float64) / (NUM_CANDIDATES + 1)


@dataclass(frozen=True)
class TunedThresholds:
    """The threshold of each class that was best on val, by class name.

    iou: what the class reaches on val with it. It is chosen on the very pixels that it is measured on, so it flatters.
    step: of the model that it was chosen for.
    """

    thresholds: dict[str, float]
    iou: dict[str, float]
    step: int

    def to_dict(self) -> dict[str, object]:
        """Return plain values, for checkpoints."""
        return {"thresholds": self.thresholds, "iou": self.iou, "step": self.step}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TunedThresholds:
        """Rebuild from `to_dict`."""
        return cls(dict(values["thresholds"]), dict(values["iou"]), values["step"])

    def scalars(self) -> dict[str, float]:
        """Return flat numbers to report: threshold/<class> and iou_tuned/<class>."""
        chosen = {f"threshold/{name}": value for name, value in self.thresholds.items()}
        return chosen | {f"iou_tuned/{name}": value for name, value in self.iou.items()}

    def describe(self) -> str:
        """Return a line for people: each class with its threshold and the IoU that it has on val with it."""
        each = [
            f"{name} {value:.3f} (no such pixel in val)"
            if math.isnan(self.iou[name])
            else f"{name} {value:.3f} (IoU {self.iou[name]:.4f} there)"
            for name, value in self.thresholds.items()
        ]
        return ", ".join(each)


def thresholds_in_force(config: Config, tuned: Mapping[str, float] | None) -> tuple[float, ...] | None:
    """Return the threshold of each class in class order, None where classes exclude each other.

    tuned: {class name: threshold} as the checkpoint holds them; taken with evaluate.tune_thresholds, and only then.

    Raises:
        ConfigError: evaluate.tune_thresholds is set, and no threshold has been chosen for some class.
    """
    if not config.data.multi_label:
        return None
    names = config.data.class_names
    if not config.evaluate.tune_thresholds:
        return config.evaluate.thresholds(names)
    missing = [name for name in names if name not in (tuned or {})]
    if tuned is None or missing:
        raise ConfigError(
            "evaluate.tune_thresholds is set, and the run holds no thresholds that were chosen on val: train with "
            "evaluate.tune_thresholds=true and let it evaluate once, or give evaluate.threshold and set "
            "evaluate.tune_thresholds=false"
        )
    return tuple(float(tuned[name]) for name in names)


class ThresholdTuner:
    """Counts, for each class and candidate, what would be predicted: positives and negatives by their probability.

    counts: int64 [C, 2, 1000], rows negatives and positives; column k holds the pairs whose probability reaches the
    first k candidates. Exact: `predict_labels` with a candidate predicts what is counted here.
    """

    def __init__(self, num_classes: int, ignore_index: int = 255) -> None:
        self.ignore_index = ignore_index
        self.counts = torch.zeros(num_classes, 2, NUM_CANDIDATES + 1, dtype=torch.int64)
        self._limits = threshold_logits(CANDIDATES)

    @torch.no_grad()
    def add(self, logits: Tensor, target: Tensor) -> None:
        """Count images: logits floats [N, C, H, W], target integers [N, C, H, W] of 0, 1 and ignore_index."""
        limits, width = self._limits.to(logits.device), NUM_CANDIDATES + 1
        for c in range(self.counts.shape[0]):
            labels = target[:, c].to(logits.device)
            valid = labels != self.ignore_index
            values = logits[:, c][valid].float().nan_to_num(nan=-torch.inf)
            reached = torch.bucketize(values, limits, right=True)
            index = reached + labels[valid].long() * width
            self.counts[c] += torch.bincount(index, minlength=2 * width).view(2, width).cpu()

    def tuned(self, class_names: tuple[str, ...], *, step: int) -> TunedThresholds:
        """Return the candidate with the highest IoU of each class; of equals the one nearest to 0.5.

        The same candidate has the highest F1 (Dice), which grows with the IoU. A class without a positive in the data
        keeps 0.5: nothing is known about it.
        """
        # of the pairs that reach candidate k, and so would be predicted: a sum from the right
        predicted = self.counts.flip(-1).cumsum(-1).flip(-1)[:, :, 1:]
        hits, invented = predicted[:, 1].double(), predicted[:, 0].double()
        support = self.counts[:, 1].sum(-1, keepdim=True).double()
        iou = hits / (support + invented).clamp(min=1)
        best = iou == iou.amax(dim=1, keepdim=True)
        distance = torch.where(best, (CANDIDATES - 0.5).abs(), torch.inf)
        chosen = torch.where(support[:, 0] > 0, distance.argmin(dim=1), NUM_CANDIDATES // 2)
        found = torch.where(support[:, 0] > 0, iou.gather(1, chosen[:, None])[:, 0], torch.nan)
        return TunedThresholds(
            thresholds=dict(zip(class_names, CANDIDATES[chosen].tolist(), strict=True)),
            iou=dict(zip(class_names, found.tolist(), strict=True)),
            step=step,
        )
