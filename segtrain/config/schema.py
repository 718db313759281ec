"""The schema of a training file: every key, its type, its range and its default."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from segtrain.config.data import DataConfig
from segtrain.config.loss import LossConfig
from segtrain.config.optimizer import AdamW, OptimizerConfig
from segtrain.config.sections import Count, NonNegative, Positive, Section
from segtrain.config.transforms import Size


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


class ProfileConfig(Section):
    """Which steps are profiled: after `wait` steps and `warmup` more in which the profiler runs already, `active`."""

    wait: Annotated[int, Field(ge=0)] = 5
    warmup: Annotated[int, Field(ge=0)] = 2
    active: Count = 5


def _switch_kind(value: Any) -> str:
    return "section" if isinstance(value, dict | Section) else "switch"


Profile = Annotated[
    Annotated[bool, Tag("switch")] | Annotated[ProfileConfig, Tag("section")], Discriminator(_switch_kind)
]


class TrainConfig(Section):
    """How long, how often and how precisely to train."""

    epochs: Count | None = None
    steps: Count | None = Field(None, description="number of optimizer steps; instead of epochs")
    batch_size: Count = Field(
        8, description="images of a batch on each rank: an optimizer step sees batch_size × ranks × accumulate"
    )
    accumulate: Count = Field(1, description="batches whose gradients make one optimizer step")
    exact_accumulation: bool = Field(
        False, description="two forward passes over them: region losses are then those of all in one batch"
    )
    sync_batchnorm: bool = Field(False, description="BatchNorm over the batches of all ranks; on CUDA devices")
    rank_timeout_seconds: Positive = Field(
        600.0, description="a rank that waits so long for another gives up, and the run ends; saves must be faster"
    )
    parallel: Literal["ddp", "fsdp"] = Field(
        "ddp", description="of several ranks each has the whole model (ddp), or a part of its weights (fsdp)"
    )
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    channels_last: bool = False
    compile: bool | Literal["default", "reduce-overhead", "max-autotune"] = Field(
        False, description="torch.compile the model, in one of its modes; true is default"
    )
    deterministic: bool = Field(False, description="equal bits from equal runs, at the price of speed on a GPU")
    ema: Annotated[float, Field(gt=0, lt=1)] | None = Field(None, description="decay of the averaged weights")
    evaluate_every: Count = Field(1, description="evaluations come every so many epochs (or steps, see next)")
    evaluate_unit: Literal["epochs", "steps"] = "epochs"
    best_metric: str = Field("val/miou", description="any reported metric, such as val/iou/bicyclist or val/miou_tail")
    early_stopping: EarlyStoppingConfig | None = None
    resume: str = Field("none", description="none, auto (newest complete checkpoint of the run) or a checkpoint file")
    allow_changes: tuple[str, ...] = Field(
        (), description="settings, such as loss or data.train_transforms, that may differ from those of the checkpoint"
    )
    overwrite: bool = Field(False, description="delete an earlier run of the same name")
    save_every_seconds: Positive = Field(600.0, description="last.pt is written at evaluations, and at least so often")
    keep_last: Count = Field(
        1, description="checkpoints to go on from: last.pt, and step-N.pt of the latest with n > 1"
    )
    log_every: Count = 10
    telemetry: bool = Field(True, description="log of each class: its share of the pixels seen, its loss, its IoU")
    profile: Profile = Field(False, description="trace a few steps into <run>/profile, and tell their phases")
    validation_samples: Annotated[int, Field(ge=0)] = Field(4, description="fixed samples drawn in TensorBoard")

    @model_validator(mode="after")
    def _one_length(self) -> TrainConfig:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give either epochs or steps")
        return self

    @model_validator(mode="after")
    def _changes_need_a_run(self) -> TrainConfig:
        if self.allow_changes and self.resume == "none":
            raise ValueError(
                "allow_changes is for a run that goes on, and resume is none: set resume: auto, or drop it"
            )
        return self

    @property
    def compile_mode(self) -> str | None:
        """The mode of torch.compile, None where the model is not compiled."""
        if isinstance(self.compile, bool):
            return "default" if self.compile else None
        return self.compile

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


Threshold = Annotated[float, Field(gt=0, lt=1)]
DEFAULT_THRESHOLD = 0.5


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
    threshold: Threshold | dict[str, Threshold] = Field(
        0.5, description="multi-label: a class is present from this probability on; {class name: threshold}, else 0.5"
    )
    tune_thresholds: bool = Field(
        False, description="multi-label: choose each class's threshold on val; the checkpoint keeps it for test and use"
    )

    @model_validator(mode="after")
    def _one_source_of_thresholds(self) -> EvaluateConfig:
        if self.tune_thresholds and "threshold" in self.changed_keys():
            raise ValueError(
                "threshold is given, and tune_thresholds chooses another one: drop threshold, or set "
                "tune_thresholds: false"
            )
        return self

    def thresholds(self, class_names: tuple[str, ...]) -> tuple[float, ...]:
        """Return the threshold of each class in the order of the classes, as the section gives it."""
        if isinstance(self.threshold, dict):
            return tuple(self.threshold.get(name, DEFAULT_THRESHOLD) for name in class_names)
        return (self.threshold,) * len(class_names)


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
    def _labels_agree(self) -> Config:
        """What is decided by whether classes exclude each other fits together."""
        names, section = self.data.class_names, self.evaluate
        if not self.data.multi_label:
            if section.changed_keys() & {"threshold", "tune_thresholds"}:
                raise ValueError(
                    "evaluate.threshold and tune_thresholds decide whether a class is present, and of classes that "
                    "exclude each other the most probable one is predicted: drop them, or set data.labels: multi_label"
                )
            return self
        if self.loss != "auto" and self.loss.activation == "softmax":
            raise ValueError(
                "one class leaves nothing to tell apart with a softmax: set loss.activation: sigmoid, which asks yes "
                "or no at each pixel, or name the background as a class too"
                if len(names) == 1
                else "data.labels: multi_label goes with loss.activation: sigmoid, and it is softmax, which makes "
                "classes exclude each other: set it, or drop labels"
            )
        if section.prior_tau is not None:
            raise ValueError(
                "evaluate.prior_tau adjusts classes that exclude each other, and here each is a yes or no of its own: "
                "drop it; evaluate.threshold and tune_thresholds weigh misses against false alarms"
            )
        named = section.threshold if isinstance(section.threshold, dict) else {}
        unknown = [name for name in named if name not in names]
        if unknown:
            raise ValueError(f"evaluate.threshold: {', '.join(unknown)} not among the classes: {', '.join(names)}")
        return self

    @property
    def fused_upsample(self) -> bool:
        """Whether the model gives coarse logits while it trains, which the loss enlarges."""
        return self.loss != "auto" and self.loss.fused_upsample

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
