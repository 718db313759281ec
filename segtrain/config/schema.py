"""The schema of a training file: every key, its type, its range and its default."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any, Literal

from pydantic import (
    Discriminator,
    Field,
    SerializerFunctionWrapHandler,
    Tag,
    field_validator,
    model_serializer,
    model_validator,
)

from segtrain.config.loss import LossConfig
from segtrain.config.optimizer import AdamW, OptimizerConfig
from segtrain.config.sections import NonNegative, Positive, Section
from segtrain.config.transforms import Size, TransformConfig

Count = Annotated[int, Field(ge=1)]
Channel = Annotated[int, Field(ge=0, le=255)]

MAX_CLASSES = 32767  # what class maps of int16 hold
MAX_MASK_VALUE = 65535  # of 16-bit masks

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class ClassConfig(Section):
    """One class: a name and, if wished, the colour that shows it."""

    name: str = Field(min_length=1)
    color: tuple[Channel, Channel, Channel] | None = Field(None, description="RGB, 0 to 255")

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


class DataConfig(Section):
    """Where images and masks are, what the values of the masks mean, and how images reach the model."""

    root: str = Field(min_length=1, description="folder of the data set; relative to the current folder")
    generate: GenerateConfig | None = None
    layout: Literal["folders", "lists"] = Field(
        "folders", description="folders: images/<split> and masks/<split> paired by stem; lists: text files of pairs"
    )
    images: str = "images"
    masks: str = "masks"
    splits: dict[str, str] = Field(
        default_factory=lambda: {"train": "train", "val": "val", "test": "test"},
        description="split name: sub-folder (folders) or list file under root (lists)",
    )
    classes: tuple[ClassConfig, ...] = Field(min_length=1)
    label_map: dict[int, int | str] | None = Field(
        None, description="raw mask value: class name, class number or 'ignore'; values not listed are errors"
    )
    ignore_index: int = 255
    on_bad: Literal["error", "skip"] = Field("error", description="skip: leave bad samples out, and count them")
    max_pixels: Count = Field(100_000_000, description="larger images are refused before they are decoded")
    input_size: Size | None = Field(None, description="[height, width] to which images are resized for the model")
    normalize: NormalizeConfig = NormalizeConfig()
    train_transforms: tuple[TransformConfig, ...] = ()
    workers: Annotated[int, Field(ge=0)] = 2

    @field_validator("classes")
    @classmethod
    def _distinct_names(cls, classes: tuple[ClassConfig, ...]) -> tuple[ClassConfig, ...]:
        if len(classes) > MAX_CLASSES:
            raise ValueError(f"{len(classes)} classes: at most {MAX_CLASSES} can be told apart")
        names = [entry.name for entry in classes]
        repeated = sorted(name for name, count in Counter(names).items() if count > 1)
        if repeated:
            raise ValueError(f"class names must be distinct, found twice: {', '.join(repeated)}")
        if len(names) == 1:
            raise ValueError("one class leaves nothing to tell apart: name the background as a class too")
        if "ignore" in names:
            raise ValueError("'ignore' is the word for pixels that count nowhere: give the class another name")
        return classes

    @field_validator("label_map")
    @classmethod
    def _values_of_masks(cls, label_map: dict[int, int | str] | None) -> dict[int, int | str] | None:
        outside = [raw for raw in label_map or {} if not 0 <= raw <= MAX_MASK_VALUE]
        if outside:
            raise ValueError(
                f"masks hold values from 0 to {MAX_MASK_VALUE}, so none can be {', '.join(map(str, outside[:5]))}: "
                "the keys are the values in the mask files"
            )
        return label_map

    @model_validator(mode="after")
    def _labels_agree(self) -> DataConfig:
        num_classes = len(self.classes)
        if num_classes > 255 and self.ignore_index != -1:
            raise ValueError(f"{num_classes} classes need ignore_index: -1 (masks are then int16)")
        if num_classes <= 255 and not num_classes <= self.ignore_index <= 255:
            raise ValueError(
                f"ignore_index must lie in {num_classes} (the number of classes) to 255, found {self.ignore_index}"
            )
        names = [entry.name for entry in self.classes]
        for raw, label in (self.label_map or {}).items():
            if isinstance(label, str) and label != "ignore" and label not in names:
                raise ValueError(
                    f"label_map[{raw}]: {label!r} is not a class; classes: {', '.join(names)}, or 'ignore'"
                )
            if isinstance(label, int) and not 0 <= label < num_classes:
                raise ValueError(f"label_map[{raw}]: class {label} is not in 0 to {num_classes - 1}")
        return self

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes in the order of their numbers."""
        return tuple(entry.name for entry in self.classes)


class ModelConfig(Section):
    """An architecture and an encoder of segmentation-models-pytorch, and where the weights start."""

    arch: str = "unet"
    encoder: str = "resnet18"
    encoder_weights: str | None = Field(None, description="null, a name of the hub such as imagenet, or a local file")
    in_channels: Count = 3
    params: dict[str, Any] = Field(default_factory=dict, description="further arguments of the architecture")
    init_from: str | None = Field(None, description="checkpoint whose weights are taken where names and sizes agree")
    freeze: tuple[Literal["encoder", "batchnorm"], ...] = ()
    prior_bias: bool = Field(False, description="start the output bias at the log of the class frequencies")


class EarlyStoppingConfig(Section):
    """Stop after `patience` evaluations in a row without a gain of `min_delta` in the best metric."""

    patience: Count
    min_delta: NonNegative = 0.0


class TrainConfig(Section):
    """How long, how often and how precisely to train."""

    epochs: Count | None = None
    steps: Count | None = Field(None, description="number of optimizer steps; instead of epochs")
    batch_size: Count = 8
    accumulate: Count = Field(1, description="batches whose gradients make one optimizer step")
    exact_accumulation: bool = Field(
        False, description="two forward passes over them: region losses are then those of all in one batch"
    )
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    channels_last: bool = False
    compile: bool = False
    ema: Annotated[float, Field(gt=0, lt=1)] | None = Field(None, description="decay of the averaged weights")
    evaluate_every: Count = Field(1, description="evaluations come every so many epochs (or steps, see next)")
    evaluate_unit: Literal["epochs", "steps"] = "epochs"
    best_metric: str = Field("val/miou", description="any reported metric, such as val/iou/bicyclist or val/miou_tail")
    early_stopping: EarlyStoppingConfig | None = None
    resume: str = Field("none", description="none, auto (newest complete checkpoint of the run) or a checkpoint file")
    overwrite: bool = Field(False, description="delete an earlier run of the same name")
    save_every_seconds: Positive = Field(600.0, description="last.pt is written at evaluations, and at least so often")
    log_every: Count = 10
    validation_samples: Annotated[int, Field(ge=0)] = Field(4, description="fixed samples drawn in TensorBoard")

    @model_validator(mode="after")
    def _one_length(self) -> TrainConfig:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give either epochs or steps")
        return self

    @model_validator(mode="after")
    def _accumulates(self) -> TrainConfig:
        if self.exact_accumulation and self.accumulate == 1:
            raise ValueError(
                "exact_accumulation makes several batches act as one, and accumulate is 1: raise accumulate, or drop it"
            )
        return self


class TileConfig(Section):
    """Overlapping tiles for large images."""

    size: Size
    overlap: Annotated[float, Field(ge=0, le=0.9)] = 0.25


class EvaluateConfig(Section):
    """How predictions are made and which means are reported besides the mean of all classes."""

    batch_size: Count = 8
    tile: TileConfig | None = None
    exclude: tuple[str, ...] = Field((), description="class names left out of the further mean miou_selected")
    tail_fraction: Annotated[float, Field(gt=0, le=1)] = Field(
        1 / 3, description="share of the classes, rarest first by training pixels, that miou_tail averages"
    )
    prior_tau: Positive | None = Field(
        None, description="predict argmax(z - prior_tau log(share of the class)): post-hoc logit adjustment"
    )


def _loss_kind(value: Any) -> str:
    return "auto" if isinstance(value, str) else "section"


AnyLoss = Annotated[
    Annotated[Literal["auto"], Tag("auto")] | Annotated[LossConfig, Tag("section")], Discriminator(_loss_kind)
]


class Config(Section):
    """A whole training file."""

    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="name of the run's folder")
    output: str = Field("runs", description="folder in which the run's folder is made")
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    data: DataConfig
    model: ModelConfig = ModelConfig()
    loss: AnyLoss = "auto"
    optimizer: OptimizerConfig = AdamW(name="adamw", lr=1e-3)
    train: TrainConfig
    evaluate: EvaluateConfig = EvaluateConfig()

    @model_validator(mode="after")
    def _sections_agree(self) -> Config:
        names = self.data.class_names
        unknown = [name for name in self.evaluate.exclude if name not in names]
        if unknown:
            raise ValueError(f"evaluate.exclude: {', '.join(unknown)} not among the classes: {', '.join(names)}")
        if len(self.data.normalize.mean) != self.model.in_channels:
            raise ValueError(
                f"data.normalize has {len(self.data.normalize.mean)} channels and model.in_channels is "
                f"{self.model.in_channels}: give data.normalize.mean and std one value per channel"
            )
        loss = None if self.loss == "auto" else self.loss
        if loss is not None:
            loss.check_classes(names)
        if self.evaluate.prior_tau is not None and loss is not None and loss.activation == "sigmoid":
            raise ValueError(
                "evaluate.prior_tau adjusts classes that exclude each other, and loss.activation: sigmoid learns each "
                "on its own: drop one of them"
            )
        if self.evaluate.prior_tau is not None and loss is not None and loss.prior is not None:
            raise ValueError(
                "evaluate.prior_tau and loss.prior both adjust to the class frequencies: once, at training "
                "(loss.prior) or at test (evaluate.prior_tau); drop one of them"
            )
        for split in ("train", "val"):
            if split not in self.data.splits:
                raise ValueError(f"data.splits has no {split!r}; found: {', '.join(self.data.splits) or 'nothing'}")
        return self
