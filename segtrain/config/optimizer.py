"""The schema of the optimizer section: the algorithm, its rates, and the schedule of the learning rate."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from segtrain.config.sections import NonNegative, Positive, Section


class PolySchedule(Section):
    """lr × (1 − progress)^power, down to min_factor."""

    name: Literal["poly"]
    power: Positive = 0.9
    min_factor: Annotated[float, Field(ge=0, lt=1)] = 0.0
    warmup_steps: Annotated[int, Field(ge=0)] = 0


class CosineSchedule(Section):
    """Half a cosine from lr down to min_factor × lr (Loshchilov & Hutter 2017, one cycle)."""

    name: Literal["cosine"]
    min_factor: Annotated[float, Field(ge=0, lt=1)] = 0.0
    warmup_steps: Annotated[int, Field(ge=0)] = 0


class ConstantSchedule(Section):
    """lr as it is, after the warm-up."""

    name: Literal["constant"]
    warmup_steps: Annotated[int, Field(ge=0)] = 0


ScheduleConfig = Annotated[PolySchedule | CosineSchedule | ConstantSchedule, Field(discriminator="name")]


class Optimizer(Section):
    """What the optimizers share."""

    lr: Positive
    encoder_lr: Positive | None = Field(None, description="lr of the encoder; default: lr")
    weight_decay: NonNegative = 0.01
    decay_norm_and_bias: bool = Field(False, description="apply weight_decay to biases and norm layers too")
    clip_norm: Positive | None = Field(None, description="largest L2 norm of the gradient")
    schedule: ScheduleConfig = PolySchedule(name="poly")


class AdamW(Optimizer):
    """AdamW (Loshchilov & Hutter 2019)."""

    name: Literal["adamw"]
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)


class SGD(Optimizer):
    """Stochastic gradient descent with momentum."""

    name: Literal["sgd"]
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    nesterov: bool = False


OptimizerConfig = Annotated[AdamW | SGD, Field(discriminator="name")]
