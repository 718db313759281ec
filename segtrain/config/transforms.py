"""The schema of the training augmentations: one section for each name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from segtrain.config.sampling import ClassChoice
from segtrain.config.sections import Count, NonNegative, Positive, Section

Probability = Annotated[float, Field(ge=0, le=1)]


def _ordered(limits: tuple[float, float]) -> tuple[float, float]:
    if limits[0] > limits[1]:
        raise ValueError(f"expected [smallest, largest], found {list(limits)}")
    return limits


Fraction = Annotated[float, Field(gt=0, le=1)]
Range = Annotated[tuple[Positive, Positive], AfterValidator(_ordered)]
FractionRange = Annotated[tuple[Fraction, Fraction], AfterValidator(_ordered)]
Size = tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]]


class RandomScale(Section):
    """Resize image and mask by a factor drawn log-uniformly from `limits`."""

    name: Literal["random_scale"]
    limits: Range = (0.5, 2.0)
    p: Probability = 1.0


class Crop(Section):
    """Cut a random window of `size` [height, width]; smaller images are padded first."""

    name: Literal["crop"]
    size: Size
    center_on: ClassChoice | None = Field(
        None, description="centre on a pixel of these classes where there is one; rare: the rarest third, or names"
    )
    p: Probability = Field(0.5, description="share of the crops that center_on centres")
    cat_max_ratio: Fraction | None = Field(
        None, description="draw again, 10 times at most, where one class has more of the valid pixels"
    )

    @model_validator(mode="after")
    def _only_what_is_used(self) -> Crop:
        if self.center_on is None and "p" in self.changed_keys():
            raise ValueError("p is the share of the crops that center_on centres: give center_on, or drop p")
        return self


class CopyPaste(Section):
    """Paste regions of rare classes from other training images, which are read for it."""

    name: Literal["copy_paste"]
    classes: ClassChoice = Field("rare", description="rare: the rarest third of the classes; or names or numbers")
    p: Probability = 0.5
    max_objects: Count = Field(3, description="1 to so many regions are pasted")
    min_pixels: Count = Field(32, description="smaller regions are not pasted")
    scale: Range = (0.75, 1.5)
    flip: Probability = Field(0.5, description="how often a region is mirrored left and right")
    onto: ClassChoice | None = Field(
        None, description="only where nine tenths of what a region covers are of these classes; null: anywhere"
    )
    feather: NonNegative = Field(0.0, description="pixels over which the rim of a region blends into the image")


class Pad(Section):
    """Pad to at least `size` [height, width]: image with zeros, mask with ignore_index."""

    name: Literal["pad"]
    size: Size


class HorizontalFlip(Section):
    """Mirror left and right."""

    name: Literal["horizontal_flip"]
    p: Probability = 0.5


class VerticalFlip(Section):
    """Mirror top and bottom."""

    name: Literal["vertical_flip"]
    p: Probability = 0.5


class Rotate90(Section):
    """Turn by a random multiple of 90 degrees."""

    name: Literal["rotate90"]
    p: Probability = 0.5


class Rotate(Section):
    """Turn by a random angle within ± `degrees`; the corners that appear are ignored."""

    name: Literal["rotate"]
    degrees: Annotated[float, Field(gt=0, le=180)] = 10.0
    p: Probability = 0.5


class Color(Section):
    """Change brightness, contrast, saturation (factors 1 ± x) and hue (turn of ± x); needs 8-bit RGB."""

    name: Literal["color"]
    brightness: Annotated[float, Field(ge=0, le=1)] = 0.2
    contrast: Annotated[float, Field(ge=0, le=1)] = 0.2
    saturation: Annotated[float, Field(ge=0, le=1)] = 0.2
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.05
    p: Probability = 0.8


class Blur(Section):
    """Gaussian blur with a standard deviation drawn from `sigma` in pixels."""

    name: Literal["blur"]
    sigma: Range = (0.5, 1.5)
    p: Probability = 0.2


class Noise(Section):
    """Gaussian noise with a standard deviation drawn from `std`, as a fraction of the value range."""

    name: Literal["noise"]
    std: FractionRange = (0.01, 0.05)
    p: Probability = 0.2


TransformConfig = Annotated[
    RandomScale | Crop | CopyPaste | Pad | HorizontalFlip | VerticalFlip | Rotate90 | Rotate | Color | Blur | Noise,
    Field(discriminator="name"),
]


def class_choices(steps: Iterable[TransformConfig]) -> dict[str, ClassChoice]:
    """Classes that steps choose, by key, for a check of their names."""
    found: dict[str, ClassChoice] = {}
    for step in steps:
        if isinstance(step, Crop) and step.center_on is not None:
            found["train_transforms: crop.center_on"] = step.center_on
        if isinstance(step, CopyPaste):
            found["train_transforms: copy_paste.classes"] = step.classes
        if isinstance(step, CopyPaste) and step.onto is not None:
            found["train_transforms: copy_paste.onto"] = step.onto
    return found
