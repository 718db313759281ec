"""Checks that anyone can run on their own loss: `check_loss` reports which properties hold."""

from __future__ import annotations

from segtrain.testing.check import check_loss
from segtrain.testing.properties import PROPERTIES, Property
from segtrain.testing.report import LossReport, Result

__all__ = ["PROPERTIES", "LossReport", "Property", "Result", "check_loss"]
