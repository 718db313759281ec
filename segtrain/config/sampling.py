"""The schema of data.sampling: which training images an epoch holds, and how often."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from segtrain.config.per_class import class_numbers
from segtrain.config.sections import Count, Positive, Section

Share = Annotated[float, Field(ge=0, lt=1)]
ClassChoice = Literal["rare"] | Annotated[tuple[str | int, ...], Field(min_length=1)]


class NegativesConfig(Section):
    """A quota for the images without a pixel of `classes`: `at_most` or `exactly` this share of each epoch."""

    classes: ClassChoice = Field("rare", description="rare: the rarest third of the classes; or names or numbers")
    at_most: Share | None = None
    exactly: Share | None = None

    @model_validator(mode="after")
    def _one_rule(self) -> NegativesConfig:
        if (self.at_most is None) == (self.exactly is None):
            raise ValueError("give either at_most or exactly: a share of the epoch, such as 0.2")
        return self


class _Sampling(Section):
    """What every way of sampling has."""

    epoch_samples: Count | None = Field(None, description="images in an epoch; null: as many as the training set has")
    negatives: NegativesConfig | None = None


class UniformSampling(_Sampling):
    """Each image once in an epoch, in random order."""

    name: Literal["uniform"]


class RareClassSampling(_Sampling):
    """Draw a class, the rarer the likelier, then an image that holds at least `min_pixels` of it (DAFormer)."""

    name: Literal["rare_class"]
    weighting: Literal["linear", "log"] = Field(
        "linear", description="linear: P(c) ∝ exp((1 - f_c)/T), f_c the share of pixels; log: P(c) ∝ f_c^(-1/T)"
    )
    temperature: Positive | None = Field(None, description="T; default 0.01 (linear), 2 (log)")
    min_pixels: Count = Field(1000, description="a class that no image holds so much of is drawn from all that hold it")


class RepeatFactorSampling(_Sampling):
    """Repeat an image as its rarest class asks: max_c max(1, √(threshold / share of the images with c)) (LVIS)."""

    name: Literal["repeat_factor"]
    threshold: Annotated[float, Field(gt=0, le=1)] = Field(
        0.001, description="t; classes in a smaller share of the images are repeated"
    )


class ClassUniformSampling(_Sampling):
    """Draw every class equally often, then any image that holds it (weights Σ 1/images of the class)."""

    name: Literal["class_uniform"]


SamplingConfig = Annotated[
    UniformSampling | RareClassSampling | RepeatFactorSampling | ClassUniformSampling,
    Field(discriminator="name"),
]


def check_choice(choice: ClassChoice | None, names: tuple[str, ...], *, key: str) -> None:
    """Raise ValueError where a chosen class is none of `names`; `rare` always is one."""
    if choice is not None and choice != "rare":
        class_numbers(choice, num_classes=len(names), class_names=names, key=key)
