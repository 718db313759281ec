"""From the configuration of each term to the term: one maker for each name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from segtrain.config import loss_terms as schema
from segtrain.config.loss import LossConfig
from segtrain.losses.own_terms import BoundaryOwnTerm, ClDiceOwnTerm, DistillationOwnTerm, LovaszOwnTerm
from segtrain.losses.per_class import class_numbers, in_class_order
from segtrain.losses.pixel import BalancedCrossEntropyTerm, PixelTerm
from segtrain.losses.region import GeneralizedDiceTerm, OverlapTerm
from segtrain.losses.term import AnyTerm


@dataclass(frozen=True)
class Setting:
    """What the makers know besides the term: the loss around it and its classes."""

    config: LossConfig
    num_classes: int
    class_names: tuple[str, ...] | None

    def per_class(self, given: float | Sequence[float] | Mapping[str, float], *, key: str) -> tuple[float, ...]:
        """Return one number, or one for each class."""
        if isinstance(given, (int, float)):
            return (float(given),)
        return in_class_order(
            given, num_classes=self.num_classes, class_names=self.class_names, key=f"loss.terms: {key}", what="value"
        )

    def numbers(self, classes: Sequence[str | int] | None, *, key: str) -> tuple[int, ...]:
        """Return the numbers of the classes that a term runs over."""
        return class_numbers(
            classes, num_classes=self.num_classes, class_names=self.class_names, key=f"loss.terms: {key}"
        )


def make_term(term: schema.TermConfig, setting: Setting) -> AnyTerm:
    """Return what computes the configured term, reduced as `like` says.

    Raises:
        ConfigError: values by class that do not fit the classes.
    """
    made = TERMS[term.name](term, setting)
    return made if setting.config.like is None else _PRESETS[setting.config.like](made, term.name, setting)


def _cross_entropy(term: schema.CrossEntropyTerm, setting: Setting) -> PixelTerm:
    return replace(_pixel_term(setting), label_smoothing=term.label_smoothing)


def _focal(term: schema.FocalTerm, setting: Setting) -> PixelTerm:
    return replace(_pixel_term(setting), name="focal", gamma=setting.per_class(term.gamma, key="gamma of focal"))


def _pixel_term(setting: Setting) -> PixelTerm:
    config = setting.config
    return PixelTerm(
        name="cross_entropy",
        num_classes=setting.num_classes,
        activation=config.activation,
        reduction=config.reduction,
        mined=config.ohem is not None,
    )


def _balanced_cross_entropy(term: schema.BalancedCrossEntropyTerm, setting: Setting) -> BalancedCrossEntropyTerm:
    config = setting.config
    return BalancedCrossEntropyTerm(
        num_classes=setting.num_classes, per=term.per, reduction=config.reduction, mined=config.ohem is not None
    )


def _dice(term: schema.DiceTerm, setting: Setting) -> OverlapTerm:
    return replace(_overlap(term, setting), squared=term.squared, smooth=term.smooth / 2)


def _jaccard(term: schema.JaccardTerm, setting: Setting) -> OverlapTerm:
    return replace(_overlap(term, setting), alpha=1.0, beta=1.0)


def _tversky(term: schema.TverskyTerm | schema.FocalTverskyTerm, setting: Setting) -> OverlapTerm:
    return replace(_overlap(term, setting), alpha=term.alpha, beta=term.beta)


def _focal_tversky(term: schema.FocalTverskyTerm, setting: Setting) -> OverlapTerm:
    gammas = setting.per_class(term.gamma, key="gamma of focal_tversky")
    return replace(_tversky(term, setting), exponents=tuple(1 / gamma for gamma in gammas))


def _overlap(term: schema.RegionTerm, setting: Setting) -> OverlapTerm:
    return OverlapTerm(
        num_classes=setting.num_classes,
        smooth=term.smooth,
        per=term.per,
        absent_classes=term.absent_classes,
        class_weights=term.class_weights,
        activation=setting.config.activation,
    )


def _generalized_dice(term: schema.GeneralizedDiceTerm, setting: Setting) -> GeneralizedDiceTerm:
    return GeneralizedDiceTerm(
        num_classes=setting.num_classes, per=term.per, smooth=term.smooth, activation=setting.config.activation
    )


def _lovasz(term: schema.LovaszTerm, setting: Setting) -> LovaszOwnTerm:
    return LovaszOwnTerm(per=term.per, bins=term.bins, activation=setting.config.activation)


def _boundary(term: schema.BoundaryTerm, setting: Setting) -> BoundaryOwnTerm:
    classes = setting.numbers(term.classes, key="classes of boundary")
    return BoundaryOwnTerm(classes=classes, activation=setting.config.activation)


def _distillation(term: schema.DistillationTerm, setting: Setting) -> DistillationOwnTerm:
    return DistillationOwnTerm(temperature=term.temperature, activation=setting.config.activation)


def _cl_dice(term: schema.ClDiceTerm, setting: Setting) -> ClDiceOwnTerm:
    return ClDiceOwnTerm(
        classes=setting.numbers(term.classes, key="classes of cl_dice"),
        iterations=term.iterations,
        smooth=term.smooth,
        per=term.per,
        activation=setting.config.activation,
    )


TERMS: dict[str, Callable[[Any, Setting], AnyTerm]] = {
    "cross_entropy": _cross_entropy,
    "focal": _focal,
    "balanced_cross_entropy": _balanced_cross_entropy,
    "dice": _dice,
    "jaccard": _jaccard,
    "tversky": _tversky,
    "focal_tversky": _focal_tversky,
    "generalized_dice": _generalized_dice,
    "lovasz": _lovasz,
    "boundary": _boundary,
    "cl_dice": _cl_dice,
    "distillation": _distillation,
}


def _like_torch(term: AnyTerm, name: str, setting: Setting) -> AnyTerm:
    """CrossEntropyLoss: Σ w ℓ / Σ w. BCEWithLogitsLoss(weight): Σ w ℓ / number of pixels and channels."""
    assert isinstance(term, PixelTerm)
    return replace(term, reduction="weighted" if term.activation == "softmax" else "valid")


def _like_smp(term: AnyTerm, name: str, setting: Setting) -> AnyTerm:
    """SoftCrossEntropyLoss and SoftBCEWithLogitsLoss average over ignored pixels too, DiceLoss and TverskyLoss over
    absent classes (at a loss of 0); FocalLoss is a sigmoid one for each class, also of class labels."""
    if isinstance(term, OverlapTerm):
        return replace(term, absent_classes="zero")
    assert isinstance(term, PixelTerm)
    if name == "focal":
        return replace(term, activation="sigmoid", reduction="weighted")
    return replace(term, over="all")


def _like_monai(term: AnyTerm, name: str, setting: Setting) -> AnyTerm:
    """DiceLoss and TverskyLoss average all (image, class) pairs, smoothed by 1e-5, and never divide by their weights.

    FocalLoss averages over the channels too, so it is 1/C of the multiclass focal loss (with its own `ignore_index`
    it leaves that factor out). Cross entropy is that of DiceCELoss: torch's.
    """
    if isinstance(term, OverlapTerm):
        smooth = 1e-5 / 2 if name == "dice" else 1e-5
        return replace(term, per="image", absent_classes="all", smooth=smooth, weighted_mean=False)
    assert isinstance(term, PixelTerm)
    if name == "cross_entropy":
        return _like_torch(term, name, setting)
    return term if term.activation == "sigmoid" else replace(term, divisor=float(setting.num_classes))


_PRESETS: dict[str, Callable[[AnyTerm, str, Setting], AnyTerm]] = {
    "torch": _like_torch,
    "smp": _like_smp,
    "monai": _like_monai,
}
