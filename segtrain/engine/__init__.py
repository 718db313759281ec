"""Training and evaluation."""

from segtrain.engine.evaluate import Evaluation, evaluate
from segtrain.engine.train import TrainResult, train

__all__ = ["Evaluation", "TrainResult", "evaluate", "train"]
