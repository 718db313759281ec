"""The data section of a training file: where the samples are, what their masks mean, and what is done to them."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator

from segtrain.config.layouts import IGNORE, NONE, RAW_NONE, Color, LayoutSection
from segtrain.config.sampling import SamplingConfig, UniformSampling, check_choice
from segtrain.config.sections import Count, Positive, Section
from segtrain.config.transforms import Size, TransformConfig, class_choices

MAX_CLASSES = 32767  # what class maps of int16 hold
MAX_LABELS = 254  # of classes that may overlap: beside them, 'none' and 'ignore' are told apart in a byte

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class ClassConfig(Section):
    """One class: a name and, if wished, the colour that shows it."""

    name: str = Field(min_length=1)
    color: Color | None = Field(None, description="RGB, 0 to 255")

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @model_serializer(mode="wrap")
    def _to_name(self, serialize: SerializerFunctionWrapHandler) -> Any:
        return self.name if self.color is None else serialize(self)


class GenerateConfig(Section):
    """A data set that segtrain draws by itself when data.root does not exist yet."""

    name: Literal["quickstart"]
    seed: Annotated[int, Field(ge=0)] = 0


class NormalizeConfig(Section):
    """(value / largest value of the image's type − mean) / std, for each channel, on the device."""

    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[Positive, ...] = IMAGENET_STD

    @field_validator("mean", "std")
    @classmethod
    def _fractions(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        if not all(0 <= value <= 1 for value in values):
            raise ValueError(
                f"mean and std are fractions of the value range, from 0 to 1, found {list(values)}: divide numbers "
                "meant for values of 0 to 255 by 255"
            )
        return values

    @model_validator(mode="after")
    def _same_length(self) -> NormalizeConfig:
        if len(self.mean) != len(self.std):
            raise ValueError(f"mean has {len(self.mean)} values and std {len(self.std)}: give one of each per channel")
        return self


class DataConfig(LayoutSection):
    """Where images and masks are, what the values of the masks mean, and how images reach the model."""

    generate: GenerateConfig | None = None
    classes: tuple[ClassConfig, ...] = Field(min_length=1)
    labels: Literal["exclusive", "multi_label"] = Field(
        "exclusive", description="multi_label: classes may overlap, each is a yes or no; so it is with a single class"
    )
    ignore_index: int = 255
    on_bad: Literal["error", "skip"] = Field("error", description="skip: leave bad samples out, and count them")
    max_pixels: Count = Field(100_000_000, description="larger images are refused before they are decoded")
    input_size: Size | None = Field(None, description="[height, width] to which images are resized for the model")
    decode: Literal["exact", "reduced"] = Field(
        "exact",
        description="reduced: JPEG images of twice input_size and more are decoded at a half, quarter or eighth",
    )
    normalize: NormalizeConfig = NormalizeConfig()
    train_transforms: tuple[TransformConfig, ...] = ()
    sampling: SamplingConfig = UniformSampling(name="uniform")
    workers: Annotated[int, Field(ge=0)] = 2
    prefetch: Count = Field(2, description="batches that each worker reads ahead")
    cache: Literal["none", "ram", "disk"] = Field(
        "none", description="decoded training and validation files, in one file for all processes, in RAM or on disk"
    )

    @field_validator("classes")
    @classmethod
    def _distinct_names(cls, classes: tuple[ClassConfig, ...]) -> tuple[ClassConfig, ...]:
        if len(classes) > MAX_CLASSES:
            raise ValueError(f"{len(classes)} classes: at most {MAX_CLASSES} can be told apart")
        names = [entry.name for entry in classes]
        repeated = sorted(name for name, count in Counter(names).items() if count > 1)
        if repeated:
            raise ValueError(f"class names must be distinct, found twice: {', '.join(repeated)}")
        if "ignore" in names:
            raise ValueError("'ignore' is the word for pixels that count nowhere: give the class another name")
        return classes

    @model_validator(mode="after")
    def _labels_agree(self) -> DataConfig:
        num_classes = len(self.classes)
        if num_classes > 255 and self.ignore_index != -1:
            raise ValueError(f"{num_classes} classes need ignore_index: -1 (masks are then int16)")
        if num_classes <= 255 and not num_classes <= self.ignore_index <= 255:
            raise ValueError(
                f"ignore_index must lie in {num_classes} (the number of classes) to 255, found {self.ignore_index}"
            )
        words = (IGNORE, NONE) if self.multi_label else (IGNORE,)
        for place, label in self.named_labels():
            if isinstance(label, str) and label not in (*words, *self.class_names):
                spelled = " or ".join(repr(word) for word in words)
                raise ValueError(
                    f"{place}: {label!r} is not a class; classes: {', '.join(self.class_names)}, or {spelled}"
                )
            if isinstance(label, int) and not 0 <= label < num_classes:
                raise ValueError(f"{place}: class {label} is not in 0 to {num_classes - 1}")
        self.raw_labels()
        return self

    @model_validator(mode="after")
    def _chosen_classes_exist(self) -> DataConfig:
        choices = class_choices(self.train_transforms)
        if self.sampling.negatives is not None:
            choices["sampling.negatives.classes"] = self.sampling.negatives.classes
        for key, choice in choices.items():
            check_choice(choice, self.class_names, key=key)
        return self

    @model_validator(mode="after")
    def _multi_label_is_said(self) -> DataConfig:
        if not self.multi_label:
            return self
        num_classes = len(self.classes)
        if num_classes > MAX_LABELS:
            raise ValueError(f"labels: multi_label goes with {MAX_LABELS} classes at most, found {num_classes}")
        if self.ignore_index <= num_classes:
            raise ValueError(
                f"ignore_index must lie in {num_classes + 1} (the number of classes, and 'none') to 255 with labels "
                f"that may overlap, found {self.ignore_index}"
            )
        for step in self.train_transforms:
            if step.name == "copy_paste" or (step.name == "crop" and step.cat_max_ratio is not None):
                what = "copy_paste" if step.name == "copy_paste" else "cat_max_ratio of crop"
                raise ValueError(
                    f"train_transforms: {what} takes one class for each pixel, and here classes may overlap: drop it; "
                    "center_on of crop and data.sampling work with any labels"
                )
        if "none" in self.class_names:
            raise ValueError("'none' is the word for pixels of none of the classes: give the class another name")
        decided = self.mask_per_class.changed_keys() & {"overlap", "unlabeled"}
        if decided:
            raise ValueError(
                f"mask_per_class.{min(decided)} makes one class of each pixel, and here classes may overlap: drop it"
            )
        if num_classes > 1 and self.raw_labels() is None:
            raise ValueError(
                "labels: multi_label with one mask for each image needs label_map, which says of each value in the "
                "masks which class it is, or 'none' of them: such as {0: none, 1: " + self.class_names[0] + "}"
            )
        return self

    @property
    def multi_label(self) -> bool:
        """Whether each class is a yes or no of its own at each pixel: targets are [C, H, W] of 0, 1 and ignore_index.

        It is so with `labels: multi_label`, and with a single class (binary segmentation).
        """
        return self.labels == "multi_label" or len(self.classes) == 1

    @model_validator(mode="after")
    def _channels_agree(self) -> DataConfig:
        if self.bands is not None and len(self.bands) != len(self.normalize.mean):
            raise ValueError(
                f"bands names {len(self.bands)} bands, and normalize has {len(self.normalize.mean)} channels: give "
                "normalize.mean and std one value for each band"
            )
        return self

    @model_validator(mode="after")
    def _reduced_has_a_size(self) -> DataConfig:
        if self.decode == "reduced" and self.input_size is None:
            raise ValueError(
                "decode: reduced goes by input_size, which is not set: give [height, width], or use decode: exact"
            )
        return self

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes in the order of their numbers."""
        return tuple(entry.name for entry in self.classes)

    def raw_labels(self) -> dict[int, int | str] | None:
        """What raw mask values mean: class name, class number or 'ignore'; None: they are the class numbers."""
        labels = self.value_map(self.class_names)
        return {**labels, RAW_NONE: NONE} if labels and self.multi_label and not self.holds_numbers else labels
