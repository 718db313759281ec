"""Honest numbers: exact counts over the whole data set, undefined values left undefined."""

from __future__ import annotations

from segtrain.metrics.confusion import ConfusionMatrix
from segtrain.metrics.prediction import predict_classes
from segtrain.metrics.scores import Scores, compute_scores, scores, tail_classes

__all__ = ["ConfusionMatrix", "Scores", "compute_scores", "predict_classes", "scores", "tail_classes"]
