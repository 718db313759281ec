"""The schema of the loss section: terms, class weights, hard-example mining, reduction."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from segtrain.config.sections import NonNegative, Section

Fraction = Annotated[float, Field(gt=0, le=1)]


class Term(Section):
    """What all terms share: total loss = Σ weight × term."""

    weight: NonNegative = 1.0
    label: str | None = Field(None, min_length=1, description="key of the term in logs; default: its name")


class CrossEntropyTerm(Term):
    """Cross entropy."""

    name: Literal["cross_entropy"]


class FocalTerm(Term):
    """Multiclass focal loss (Lin 2017): −(1 − p_y)^gamma log p_y."""

    name: Literal["focal"]
    gamma: NonNegative = 2.0


class DiceTerm(Term):
    """Dice loss over the classes (Milletari 2016 when squared)."""

    name: Literal["dice"]
    per: Literal["batch", "image"] = "batch"
    squared: bool = False
    smooth: NonNegative = 0.0
    absent_classes: Literal["skip", "count"] = "skip"
    class_weights: bool = False


TermConfig = Annotated[CrossEntropyTerm | FocalTerm | DiceTerm, Field(discriminator="name")]


class ClassWeightsConfig(Section):
    """How class weights are made from the frequencies; `manual` takes `weights` as they stand."""

    scheme: Literal["none", "inverse", "sqrt_inverse", "median_frequency", "enet", "effective_number", "manual"]
    weights: tuple[NonNegative, ...] | dict[str, NonNegative] | None = None
    power: Annotated[float, Field(gt=0)] = 1.0
    max_ratio: Annotated[float, Field(ge=1)] | None = None
    beta: Annotated[float, Field(ge=0, lt=1)] | Literal["auto"] = "auto"
    count: Literal["pixels", "images"] = "images"

    @model_validator(mode="after")
    def _only_what_the_scheme_uses(self) -> ClassWeightsConfig:
        given = self.changed_keys()
        if self.scheme == "manual" and self.weights is None:
            raise ValueError("scheme: manual needs weights: a list, or {class name: weight}")
        if self.scheme != "manual" and self.weights is not None:
            raise ValueError(f"weights belong to scheme: manual, not to {self.scheme}")
        if self.scheme in ("none", "manual") and given & {"power", "max_ratio"}:
            raise ValueError(f"power and max_ratio do not apply to scheme: {self.scheme}")
        if self.scheme != "effective_number" and given & {"beta", "count"}:
            raise ValueError(f"beta and count belong to scheme: effective_number, not to {self.scheme}")
        return self


class OhemConfig(Section):
    """Online hard-example mining: `threshold` with `min_kept`, or `top_k`."""

    threshold: Annotated[float, Field(gt=0, le=1)] | None = None
    min_kept: Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="number of pixels (int) or fraction of the valid pixels (float); default 0.05"
    )
    top_k: Fraction | None = None
    per_class: bool = Field(False, description="hold min_kept or top_k for the pixels of each class on their own")

    @model_validator(mode="after")
    def _one_rule(self) -> OhemConfig:
        if (self.threshold is None) == (self.top_k is None):
            raise ValueError("give either threshold (with min_kept) or top_k")
        if self.top_k is not None and self.min_kept is not None:
            raise ValueError("min_kept goes with threshold, not with top_k")
        return self


class LossConfig(Section):
    """Any weighted combination of terms, with what they share."""

    terms: tuple[TermConfig, ...] = Field(min_length=1)
    class_weights: ClassWeightsConfig = ClassWeightsConfig(scheme="none")
    ohem: OhemConfig | None = None
    reduction: Literal["valid", "weighted"] = "valid"
    check_labels: bool = Field(False, description="check every batch for labels out of range (costs a device sync)")

    @field_validator("terms")
    @classmethod
    def _distinct_labels(cls, terms: tuple[TermConfig, ...]) -> tuple[TermConfig, ...]:
        labels = [term.label for term in terms if term.label is not None]
        if "total" in labels:
            raise ValueError("'total' is the key of the sum: choose another label")
        if len(set(labels)) < len(labels):
            raise ValueError(f"labels must be distinct, found {labels}")
        return terms

    @model_validator(mode="after")
    def _used(self) -> LossConfig:
        pixel_terms = [term for term in self.terms if term.name in ("cross_entropy", "focal")]
        weighted_region = [term for term in self.terms if isinstance(term, DiceTerm) and term.class_weights]
        if self.ohem is not None and not pixel_terms:
            raise ValueError("ohem masks pixel terms, and there is none: add cross_entropy or focal, or drop ohem")
        if self.class_weights.scheme != "none" and not pixel_terms and not weighted_region:
            raise ValueError(
                "class_weights would weight nothing: add a pixel term or set class_weights: true on a region term"
            )
        if self.class_weights.scheme == "none" and weighted_region:
            raise ValueError("a region term asks for class_weights, but loss.class_weights.scheme is none")
        if self.reduction == "weighted" and (self.class_weights.scheme == "none" or not pixel_terms):
            missing = "pixel term (cross_entropy, focal)" if not pixel_terms else "class_weights"
            raise ValueError(
                f"reduction: weighted divides pixel terms by the sum of their class weights; there is no {missing}, so "
                "it would change nothing: add it, or drop reduction"
            )
        return self
