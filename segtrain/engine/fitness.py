"""Whether the loss fits the data, the model and the way of accumulating: what does not is refused before step 1."""

from __future__ import annotations

from segtrain.config import Config
from segtrain.config.loss import LossConfig
from segtrain.data.dataset import TrainDataset
from segtrain.distributed import world_size
from segtrain.engine.custom_loss import CustomLoss, TrainingLoss
from segtrain.errors import ConfigError


def check_loss_section(config: Config, section: LossConfig | None, *, custom_model: bool) -> None:
    """Refuse a loss that the data, the model or the evaluation cannot serve; None is a loss that is not one of ours.

    Raises:
        ConfigError: further heads that the model lacks, coarse logits that the loss or the configuration does not know
            of, or a loss that evaluations do not measure as the best metric.
    """
    if config.fused_upsample != (section is not None and section.fused_upsample):
        raise ConfigError(
            f"loss.fused_upsample is {str(config.fused_upsample).lower()} in the configuration, by which the model is "
            "built and rebuilt, and not so in the loss that was given in code: let them agree"
        )
    if section is None:
        return
    if config.train.best_metric == "val/loss" and not uses_labels(section):
        raise ConfigError(
            "train.best_metric: val/loss is measured against the labels, and the only term of loss is distillation, "
            "which does not use them: choose val/miou"
        )
    if section.auxiliary is not None and not custom_model:
        raise ConfigError(
            f"loss.auxiliary weighs {len(section.auxiliary.weights)} heads, and the models of model.arch have one: "
            "drop it, or give a model that returns a list of logits in code: train(config, model=...)"
        )


def uses_labels(section: LossConfig) -> bool:
    """Whether any term compares with the labels, as evaluations do, and not with a teacher."""
    return any(term.name != "distillation" for term in section.terms)


def check_distances(data: TrainDataset, wanted: tuple[int, ...] | None) -> None:
    """Refuse data given in code whose items hold distance maps of other classes than the loss reads.

    Raises:
        ConfigError: maps of other classes, in another order, or maps that no term reads.
    """
    made = getattr(data, "distance_classes", None)
    if made is not None and made != wanted:
        reads = (
            "no term of the loss reads any" if wanted is None else f"the boundary term reads those of {list(wanted)}"
        )
        raise ConfigError(f"train_data makes distance maps of the classes {list(made)}, and {reads}: let them agree")


def check_accumulation(config: Config, loss: TrainingLoss) -> None:
    """Refuse train.exact_accumulation where it would change nothing, or cannot work.

    Raises:
        ConfigError: the loss is exact anyway, or is not one of ours and keeps no statistics.
    """
    if not config.train.exact_accumulation:
        return
    if not hasattr(loss, "statistics"):
        raise ConfigError(
            "train.exact_accumulation adds up statistics of the loss terms, which the loss that was given in code does "
            "not have: drop it, or describe the loss in the section loss"
        )
    if loss.inexact_under_accumulation is None:
        raise ConfigError(
            "train.exact_accumulation changes nothing: every term of this loss is exact under accumulation as it is; "
            "drop it, and save the second pass"
        )


def activation_note(section: LossConfig | None) -> str | None:
    """Return in a line what sigmoid means with masks of one class for each pixel, None without it."""
    if section is None or section.activation == "softmax":
        return None
    return (
        "loss.activation: sigmoid learns each class against all others; the masks hold one class for each pixel, and "
        "the class of the largest logit is predicted"
    )


def ranks_note(loss: object) -> str | None:
    """Return in a line what several ranks do not do as one process with their batches would, None where all agrees."""
    if world_size() == 1:
        return None
    if isinstance(loss, CustomLoss):
        return "the given loss is averaged over the ranks, each with the same weight"
    apart = getattr(loss, "inexact_with_rest", None)
    return None if apart is None else f"on each rank by itself: {apart}"


def accumulation_note(config: Config, loss: TrainingLoss) -> str | None:
    """Return in a line what a window of batches does not do as one large batch would, None where nothing differs."""
    if config.train.accumulate == 1:
        return None
    if not config.train.exact_accumulation:
        return loss.inexact_under_accumulation
    return getattr(loss, "inexact_with_rest", None)
