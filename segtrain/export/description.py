"""What a shipped model says about itself: classes, pre-processing, how classes are chosen, what it reached on val."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

import segtrain
from segtrain.config import Config
from segtrain.config.data import ClassConfig, NormalizeConfig
from segtrain.config.schema import ModelConfig, Threshold, TileConfig
from segtrain.config.sections import Count, Positive, Section
from segtrain.config.transforms import Size
from segtrain.engine.predict import Predictor
from segtrain.engine.probability_files import activation_of
from segtrain.errors import CheckpointError, some

FORMAT = 1


class Prior(Section):
    """Post-hoc logit adjustment: tau, and the training pixels of each class in class order."""

    tau: Positive
    pixels: tuple[Annotated[int, Field(ge=0)], ...]


class Preprocessing(Section):
    """From an image as stored to what the network takes."""

    channels: str
    normalize: NormalizeConfig
    input_size: Size | None = None
    bands: tuple[Count, ...] | None = None
    max_pixels: Count = 100_000_000


class Results(Section):
    """What the weights reached on val when they were kept: flat scores (null: undefined), and pixels of each class."""

    scores: dict[str, float | None] = Field(default_factory=dict)
    support: dict[str, int] = Field(default_factory=dict)


class Description(Section):
    """All that a shipped model needs besides its weights; nothing in it names a file or code.

    model: None for a network that was given in code. upsampling_outside: of a run with loss.fused_upsample, whose
    network makes coarse logits. activation: what makes probabilities of logits. thresholds: probabilities from which on
    a class is present, in class order, where classes may overlap.
    """

    format: Literal[1] = 1
    segtrain: str
    name: str
    step: int
    model: ModelConfig | None
    upsampling_outside: bool = False
    classes: tuple[ClassConfig, ...]
    labels: Literal["exclusive", "multi_label"]
    activation: Literal["softmax", "sigmoid"]
    preprocessing: Preprocessing
    thresholds: tuple[Threshold, ...] | None = None
    prior: Prior | None = None
    tile: TileConfig | None = None
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    channels_last: bool = False
    batch_size: Count = 8
    results: Results = Results()

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes in the order of their numbers."""
        return tuple(entry.name for entry in self.classes)

    @property
    def in_channels(self) -> int:
        """Number of channels of the images."""
        return len(self.preprocessing.normalize.mean)

    def to_json(self) -> dict[str, Any]:
        """Return JSON types; `read_description` of them gives an equal description."""
        content: dict[str, Any] = self.model_dump(mode="json")
        return content


def describe(
    config: Config,
    predictor: Predictor,
    *,
    step: int,
    pixels: tuple[int, ...],
    checkpoint: Mapping[str, Any],
    in_code: bool,
) -> Description:
    """Describe a run by its config, its predictor and its checkpoint.

    Where the weights came from at the start of training is left out: nobody who loads them needs those files.

    pixels: of each class in the training data. in_code: the network was given in code, and has no name.
    """
    start = {"encoder_weights": None, "init_from": None, "freeze": (), "prior_bias": False}
    data, tau = config.data, config.evaluate.prior_tau
    scores = {key: None if math.isnan(value) else float(value) for key, value in checkpoint.get("scores", {}).items()}
    return Description(
        segtrain=segtrain.__version__,
        name=config.name,
        step=step,
        model=None if in_code else config.model.model_copy(update=start),
        upsampling_outside=config.fused_upsample,
        classes=data.classes,
        labels="multi_label" if data.multi_label else "exclusive",
        activation=activation_of(config),
        preprocessing=Preprocessing(
            channels=_channels(config),
            normalize=data.normalize,
            input_size=data.input_size,
            bands=data.bands,
            max_pixels=data.max_pixels,
        ),
        thresholds=predictor.thresholds,
        prior=None if tau is None else Prior(tau=tau, pixels=pixels),
        tile=config.evaluate.tile,
        precision=config.train.precision,
        channels_last=config.train.channels_last,
        batch_size=config.evaluate.batch_size,
        results=Results(scores=scores, support=dict(checkpoint.get("support", {}))),
    )


def _channels(config: Config) -> str:
    if config.data.bands is not None:
        return f"bands {', '.join(map(str, config.data.bands))} of the file, counted from 1, in this order"
    return {1: "grey", 3: "RGB"}.get(config.model.in_channels, "the bands of the file in their order")


def read_description(text: str, *, place: str) -> Description:
    """Check the JSON text of a description.

    Raises:
        CheckpointError: it is no JSON, of another format, or says something that no description says.
    """
    try:
        content = json.loads(text)
    except ValueError as error:
        raise CheckpointError(f"{place} is damaged, it is no JSON ({error}): fetch it again") from error
    if not isinstance(content, dict) or "format" not in content:
        raise CheckpointError(f"{place} does not describe a segtrain model: it has no 'format'")
    if content["format"] != FORMAT:
        raise CheckpointError(
            f"{place} has format {content['format']!r}, this segtrain {segtrain.__version__} reads {FORMAT}"
        )
    try:
        description = Description.model_validate(content)
    except ValidationError as error:
        wrong = [f"{'.'.join(map(str, found['loc']))}: {found['msg']}" for found in error.errors()]
        raise CheckpointError(
            f"{place} is damaged or of another version (it was written by segtrain {content.get('segtrain')}): "
            f"{some(wrong, limit=3)}"
        ) from error
    _check_classes(description, place=place)
    return description


def _check_classes(description: Description, *, place: str) -> None:
    several, count = description.labels == "multi_label", len(description.classes)
    lengths = {
        "thresholds": None if description.thresholds is None else len(description.thresholds),
        "prior.pixels": None if description.prior is None else len(description.prior.pixels),
    }
    wrong = [f"{key} has {length} values" for key, length in lengths.items() if length not in (None, count)]
    if several != (description.thresholds is not None):
        wrong.append(f"labels are {description.labels}, {'without' if several else 'with'} thresholds")
    if description.model is not None and description.model.in_channels != description.in_channels:
        wrong.append(f"model.in_channels is {description.model.in_channels}, normalize has {description.in_channels}")
    if wrong:
        raise CheckpointError(f"{place} contradicts itself ({count} classes): {'; '.join(wrong)}")
