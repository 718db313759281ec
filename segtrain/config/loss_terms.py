"""The schema of the loss terms: what each takes, and the schedule that its weight may follow."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from segtrain.config.sections import NonNegative, Positive, Section

PerClass = NonNegative | tuple[NonNegative, ...] | dict[str, NonNegative]  # one for all, a list, or {class name: value}
Classes = tuple[str | Annotated[int, Field(ge=0)], ...]


class WeightSchedule(Section):
    """A weight that goes in a straight line from `start` to `end`, or in one step at `start_epoch`."""

    start: NonNegative = Field(0.0, description="the weight until start_epoch")
    end: NonNegative = Field(1.0, description="the weight from end_epoch on")
    start_epoch: NonNegative = 0.0
    end_epoch: Positive | None = Field(None, description="null: the weight steps to its end at start_epoch")

    @model_validator(mode="after")
    def _changes(self) -> WeightSchedule:
        if self.start == self.end:
            raise ValueError(
                f"start and end are both {self.start:g}, so nothing would change: write weight: {self.end:g}"
            )
        if self.end_epoch is None and self.start_epoch == 0:
            raise ValueError(
                "a step at epoch 0 is no schedule: give start_epoch (the epoch of the step), or end_epoch (the end of "
                f"a ramp), or write weight: {self.end:g}"
            )
        if self.end_epoch is not None and self.end_epoch <= self.start_epoch:
            raise ValueError(
                f"end_epoch {self.end_epoch:g} must come after start_epoch {self.start_epoch:g}; for a step, drop it"
            )
        return self


def _weight_kind(value: Any) -> str:
    return "schedule" if isinstance(value, dict | WeightSchedule) else "number"


Weight = Annotated[
    Annotated[NonNegative, Tag("number")] | Annotated[WeightSchedule, Tag("schedule")], Discriminator(_weight_kind)
]


class Term(Section):
    """What all terms share: total loss = Σ weight × term."""

    weight: Weight = 1.0
    label: str | None = Field(None, min_length=1, description="key of the term in logs; default: its name")


class CrossEntropyTerm(Term):
    """Cross entropy; with activation: sigmoid the binary one of each class."""

    name: Literal["cross_entropy"]
    label_smoothing: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0, description="share of the label given to all classes"
    )


class FocalTerm(Term):
    """Multiclass focal loss (Lin 2017): −(1 − p_y)^gamma log p_y; with activation: sigmoid that of each class."""

    name: Literal["focal"]
    gamma: PerClass = Field(2.0, description="a number, a list with one for each class, or {class name: gamma}")


class BalancedCrossEntropyTerm(Term):
    """Class-balanced binary cross entropy (Xie & Tu 2015, HED); activation: sigmoid only."""

    name: Literal["balanced_cross_entropy"]
    per: Literal["batch", "image"] = Field("batch", description="where positives and negatives are balanced")


class RegionTerm(Term):
    """What the overlap terms share."""

    per: Literal["batch", "image"] = "batch"
    smooth: NonNegative = 0.0
    absent_classes: Literal["skip", "count"] = "skip"
    class_weights: bool = False


class DiceTerm(RegionTerm):
    """Dice loss over the classes (Milletari 2016 when squared)."""

    name: Literal["dice"]
    squared: bool = False


class JaccardTerm(RegionTerm):
    """Jaccard (soft IoU) loss over the classes."""

    name: Literal["jaccard"]


class TverskyTerm(RegionTerm):
    """Tversky loss (Salehi 2017): 1 − I / (I + alpha FP + beta FN)."""

    name: Literal["tversky"]
    alpha: NonNegative = Field(0.3, description="weight of the false positives")
    beta: NonNegative = Field(0.7, description="weight of the false negatives")

    @model_validator(mode="after")
    def _penalises(self) -> TverskyTerm:
        if self.alpha == self.beta == 0:
            raise ValueError("alpha and beta are both 0, so no error would cost anything: raise one of them")
        return self


class FocalTverskyTerm(RegionTerm):
    """Focal Tversky loss (Abraham 2019): the mean over the classes of (1 − Tversky index)^(1/gamma)."""

    name: Literal["focal_tversky"]
    alpha: NonNegative = Field(0.3, description="weight of the false positives")
    beta: NonNegative = Field(0.7, description="weight of the false negatives")
    gamma: PerClass = Field(4 / 3, description="a number, a list with one for each class, or {class name: gamma}")

    @model_validator(mode="after")
    def _penalises(self) -> FocalTverskyTerm:
        if self.alpha == self.beta == 0:
            raise ValueError("alpha and beta are both 0, so no error would cost anything: raise one of them")
        return self

    @field_validator("gamma")
    @classmethod
    def _positive(cls, gamma: PerClass) -> PerClass:
        values = gamma.values() if isinstance(gamma, dict) else gamma if isinstance(gamma, tuple) else (gamma,)
        if any(value == 0 for value in values):
            raise ValueError("the exponent is 1 / gamma, so gamma must be above 0 for every class")
        return gamma


class GeneralizedDiceTerm(Term):
    """Generalised dice loss (Sudre 2017): one overlap of all classes, each weighted by 1 / (its pixels)²."""

    name: Literal["generalized_dice"]
    per: Literal["batch", "image"] = "batch"
    smooth: NonNegative = 0.0


class LovaszTerm(Term):
    """Lovász-softmax (Berman 2018), a pass of its own over the logits."""

    name: Literal["lovasz"]
    per: Literal["batch", "image"] = "batch"
    bins: Annotated[int, Field(ge=2)] | None = Field(None, description="null: sorted exactly; else bins of a histogram")


class BoundaryTerm(Term):
    """Boundary loss (Kervadec 2019) on distance maps, a pass of its own; best ramped in beside a region term."""

    name: Literal["boundary"]
    classes: Annotated[Classes, Field(min_length=1)] | None = Field(None, description="names or numbers; null: all")


class ClDiceTerm(Term):
    """Soft clDice (Shit 2021) for thin structures, a pass of its own."""

    name: Literal["cl_dice"]
    classes: Annotated[Classes, Field(min_length=1)] | None = Field(None, description="names or numbers; null: all")
    iterations: Annotated[int, Field(ge=1)] = Field(3, description="erosions: half the width of the widest structure")
    smooth: NonNegative = 1.0
    per: Literal["batch", "image"] = "batch"


class DistillationTerm(Term):
    """Knowledge distillation (Hinton 2015): the softened KL divergence from a teacher, on the valid pixels.

    val/loss, which is measured against the labels, leaves it out.
    """

    name: Literal["distillation"]
    teacher: str = Field(min_length=1, description="folder of a run, or a checkpoint file")
    temperature: Positive = 2.0


TermConfig = Annotated[
    CrossEntropyTerm
    | FocalTerm
    | BalancedCrossEntropyTerm
    | DiceTerm
    | JaccardTerm
    | TverskyTerm
    | FocalTverskyTerm
    | GeneralizedDiceTerm
    | LovaszTerm
    | BoundaryTerm
    | ClDiceTerm
    | DistillationTerm,
    Field(discriminator="name"),
]

PIXEL_TERMS = ("cross_entropy", "focal", "balanced_cross_entropy")  # what ohem, prior, margin and class_weights act on
