"""The schema of the loss section: terms, and what they share: weights, mining, priors, margins, heads."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from segtrain.config.loss_terms import PIXEL_TERMS, RegionTerm, TermConfig
from segtrain.config.per_class import class_numbers, in_class_order
from segtrain.config.sections import NonNegative, Positive, Section

Fraction = Annotated[float, Field(gt=0, le=1)]
Frequencies = Annotated[
    Literal["natural", "realised"],
    Field(description="of the training images, or of what training sees of them: after sampling, crops and paste"),
]
LIKE = {
    "torch": ("cross_entropy",),
    "smp": ("cross_entropy", "focal", "dice", "tversky"),
    "monai": ("cross_entropy", "focal", "dice", "tversky"),
}  # what the presets reproduce
WITH_FULL_LOGITS = ("lovasz", "boundary", "cl_dice", "distillation")  # their pass is over all of an image


class ClassWeightsConfig(Section):
    """How class weights are made from the frequencies; `manual` takes `weights` as they stand."""

    scheme: Literal["none", "inverse", "sqrt_inverse", "median_frequency", "enet", "effective_number", "manual"]
    weights: tuple[NonNegative, ...] | dict[str, NonNegative] | None = None
    power: Annotated[float, Field(gt=0)] = 1.0
    max_ratio: Annotated[float, Field(ge=1)] | None = None
    beta: Annotated[float, Field(ge=0, lt=1)] | Literal["auto"] = "auto"
    count: Literal["pixels", "images"] = "images"
    start_epoch: NonNegative = Field(0.0, description="deferred re-weighting: all classes weigh 1 before this epoch")
    frequencies: Frequencies = "natural"

    @model_validator(mode="after")
    def _only_what_the_scheme_uses(self) -> ClassWeightsConfig:
        given = self.changed_keys()
        if self.scheme == "manual" and self.weights is None:
            raise ValueError("scheme: manual needs weights: a list, or {class name: weight}")
        if self.weights is not None and not any(
            self.weights.values() if isinstance(self.weights, dict) else self.weights
        ):
            raise ValueError(
                "weights are all 0, so nothing would be learnt: give a class a weight, or drop class_weights"
            )
        if self.scheme != "manual" and self.weights is not None:
            raise ValueError(f"weights belong to scheme: manual, not to {self.scheme}")
        if self.scheme in ("none", "manual") and given & {"power", "max_ratio"}:
            raise ValueError(f"power and max_ratio do not apply to scheme: {self.scheme}")
        if self.scheme in ("none", "manual") and "frequencies" in given:
            raise ValueError(f"scheme: {self.scheme} does not go by frequencies: drop frequencies")
        if self.scheme == "none" and "start_epoch" in given:
            raise ValueError("start_epoch defers class weights, and scheme: none has none: drop it")
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


class PriorConfig(Section):
    """Balanced softmax (Ren 2020; tau 1) or logit adjustment (Menon 2021): z + tau log(pi) in the pixel terms."""

    tau: Positive = 1.0
    frequencies: Frequencies = "natural"


class MarginConfig(Section):
    """LDAM (Cao 2019): the label's logit gives up a margin ∝ n_c^(−1/4), then all are multiplied by `scale`."""

    max_margin: Positive = Field(0.5, description="margin of the rarest class, in logits")
    scale: Positive = Field(30.0, description="s; 30 is meant for a normalised classifier, 1 leaves the logits")
    frequencies: Frequencies = "natural"


class AuxiliaryConfig(Section):
    """A loss over several logits `[N, C, h_i, w_i]`: auxiliary heads or deep supervision, the main head first."""

    weights: Annotated[tuple[NonNegative, ...], Field(min_length=2)]
    resize: Literal["logits", "target"] = Field(
        "logits", description="logits: bring them to the target's size (bilinear); target: bring it to theirs (nearest)"
    )

    @model_validator(mode="after")
    def _any_weight(self) -> AuxiliaryConfig:
        if not any(self.weights):
            raise ValueError("weights are all 0, so nothing would be learnt: give the main head, the first, a weight")
        return self


class LossConfig(Section):
    """Any weighted combination of terms, with what they share."""

    like: Literal["torch", "smp", "monai"] | None = Field(
        None, description="reduce the terms as this library does by default, to migrate from it or compare with it"
    )
    activation: Literal["softmax", "sigmoid"] = Field("softmax", description="sigmoid: a yes or no for each class")
    terms: tuple[TermConfig, ...] = Field(min_length=1)
    class_weights: ClassWeightsConfig = ClassWeightsConfig(scheme="none")
    ohem: OhemConfig | None = None
    prior: PriorConfig | None = None
    margin: MarginConfig | None = None
    auxiliary: AuxiliaryConfig | None = None
    reduction: Literal["valid", "weighted"] = "valid"
    fused_upsample: bool = Field(
        False, description="enlarge the logits of a coarse head while they are read: full-size logits never exist"
    )
    check_labels: bool = Field(False, description="check every batch for labels out of range (costs a device sync)")

    @field_validator("terms")
    @classmethod
    def _distinct_labels(cls, terms: tuple[TermConfig, ...]) -> tuple[TermConfig, ...]:
        labels = [term.label for term in terms if term.label is not None]
        if "total" in labels:
            raise ValueError("'total' is the key of the sum: choose another label")
        taken = [label for label in labels if label.startswith("auxiliary_")]
        if taken:
            raise ValueError(f"{taken[0]!r}: labels that start with auxiliary_ name further heads: choose another")
        for name, key in (("boundary", "classes"), ("distillation", "teacher")):
            if sum(term.name == name for term in terms) > 1:
                raise ValueError(f"{name} stands there twice: one term, with one {key}, is what batches carry maps for")
        if len(set(labels)) < len(labels):
            raise ValueError(f"labels must be distinct, found {labels}")
        return terms

    @model_validator(mode="after")
    def _used(self) -> LossConfig:
        pixel_terms = [term for term in self.terms if term.name in PIXEL_TERMS]
        weighted_region = [term for term in self.terms if isinstance(term, RegionTerm) and term.class_weights]
        for key in ("ohem", "prior", "margin"):
            if getattr(self, key) is not None and not pixel_terms:
                raise ValueError(
                    f"{key} acts on pixel terms, and there is none: add cross_entropy or focal, or drop {key}"
                )
        if self.prior is not None and self.margin is not None:
            raise ValueError("prior and margin both shift the logits by how rare a class is: keep one of them")
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

    @model_validator(mode="after")
    def _activation_has_the_terms(self) -> LossConfig:
        if self.activation == "softmax":
            if any(term.name == "balanced_cross_entropy" for term in self.terms):
                raise ValueError(
                    "balanced_cross_entropy weighs yes against no for each class: set activation: sigmoid, or take "
                    "cross_entropy with class_weights: {scheme: inverse}"
                )
            return self
        for key in ("prior", "margin"):
            if getattr(self, key) is not None:
                raise ValueError(
                    f"{key} belongs to classes that exclude each other: drop it, or set activation: softmax; against "
                    "rare positives take balanced_cross_entropy or class_weights"
                )
        for term in self.terms:
            if term.name == "cross_entropy" and term.label_smoothing:
                raise ValueError("label_smoothing shares a label among all classes: drop it with activation: sigmoid")
        return self

    @model_validator(mode="after")
    def _resized_targets_fit(self) -> LossConfig:
        if self.auxiliary is None or self.auxiliary.resize == "logits":
            return self
        for term in self.terms:
            if term.name in ("boundary", "distillation"):
                raise ValueError(
                    f"auxiliary.resize: target does not go with {term.name}, whose maps have the size of the full "
                    "target: set auxiliary.resize: logits"
                )
        return self

    @model_validator(mode="after")
    def _coarse_logits_are_enough(self) -> LossConfig:
        if not self.fused_upsample:
            return self
        for term in self.terms:
            if term.name in WITH_FULL_LOGITS:
                raise ValueError(
                    f"fused_upsample enlarges the logits strip by strip, and {term.name} needs them whole: drop one of "
                    "them"
                )
        if self.auxiliary is not None and self.auxiliary.resize == "target":
            raise ValueError(
                "fused_upsample brings the logits of each head to the target's size, and auxiliary.resize: target the "
                "target to theirs: drop one of them"
            )
        if self.activation == "sigmoid" and self.ohem is not None:
            raise ValueError("fused_upsample mines with activation: softmax alone: drop ohem, or fused_upsample")
        return self

    def check_classes(self, names: tuple[str, ...]) -> None:
        """Raise ValueError where values by class, or classes chosen, do not fit the classes of the data."""
        classes: dict[str, Any] = {"num_classes": len(names), "class_names": names}
        if self.class_weights.weights is not None:
            in_class_order(self.class_weights.weights, key="loss.class_weights.weights", what="weight", **classes)
        for term in self.terms:
            gamma = getattr(term, "gamma", None)
            if isinstance(gamma, tuple | dict):
                in_class_order(gamma, key=f"loss.terms: gamma of {term.name}", what="value", **classes)
            class_numbers(getattr(term, "classes", None), key=f"loss.terms: classes of {term.name}", **classes)

    @model_validator(mode="after")
    def _preset_decides(self) -> LossConfig:
        if self.like is None:
            return self
        for key in ("ohem", "prior", "margin"):
            if getattr(self, key) is not None:
                raise ValueError(f"like: {self.like} reproduces that library's losses, which have no {key}: drop one")
        if "reduction" in self.changed_keys():
            raise ValueError(f"reduction is decided by like: {self.like}: drop one of them")
        for term in self.terms:
            self._like_has(term)
        return self

    def _like_has(self, term: TermConfig) -> None:
        """Raise for a term, or a setting of it, that the library of `like` has not, or that it decides."""
        known = LIKE[str(self.like)]
        if term.name not in known:
            raise ValueError(
                f"like: {self.like} has {', '.join(known)}, and no {term.name} that could be made of class sums: drop "
                "like, or the term"
            )
        decided = sorted(term.changed_keys() & {"per", "smooth", "absent_classes"})
        if decided:
            raise ValueError(f"{', '.join(decided)} of {term.name}: decided by like: {self.like}; drop one of them")
        weighted = self.class_weights.scheme != "none"
        if self.like == "smp" and getattr(term, "squared", False):
            raise ValueError("squared of dice: smp's DiceLoss has no squared form; drop it, or like: smp")
        if isinstance(getattr(term, "gamma", 0.0), tuple | dict):
            raise ValueError(f"gamma of focal: {self.like} has one for all classes; give a number, or drop like")
        if self.like == "smp" and term.name == "cross_entropy" and weighted:
            raise ValueError("class_weights: smp's cross entropy takes none; drop them, or like: smp")
        if self.like == "monai" and term.name == "cross_entropy" and weighted and self.activation == "sigmoid":
            raise ValueError("class_weights: MONAI gives them to the positives alone with sigmoid; drop like: monai")
        if self.like == "monai" and term.name == "tversky" and getattr(term, "class_weights", False):
            raise ValueError("class_weights of tversky: MONAI's TverskyLoss takes none; drop them, or like: monai")
