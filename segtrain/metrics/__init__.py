"""Honest numbers: exact counts over the whole data set, undefined values left undefined."""

from __future__ import annotations

from segtrain.metrics.confusion import ConfusionMatrix
from segtrain.metrics.multilabel import MultiLabelConfusion, predict_labels, threshold_logits
from segtrain.metrics.prediction import predict_classes, prior_shift
from segtrain.metrics.scores import MEANS, OVERALL, RATIOS, Scores, compute_scores, score_names, tail_classes

__all__ = [
    "MEANS",
    "OVERALL",
    "RATIOS",
    "ConfusionMatrix",
    "MultiLabelConfusion",
    "Scores",
    "compute_scores",
    "predict_classes",
    "predict_labels",
    "prior_shift",
    "score_names",
    "tail_classes",
    "threshold_logits",
]
