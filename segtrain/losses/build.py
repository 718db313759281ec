"""From the loss section of a configuration to the loss module, and the rule behind `loss: auto`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from pydantic import ValidationError

from segtrain.config.explain import explain
from segtrain.config.loss import ClassWeightsConfig, LossConfig, MarginConfig, PriorConfig
from segtrain.config.loss_terms import CrossEntropyTerm, DiceTerm
from segtrain.config.sections import Section
from segtrain.config.source import node_from_plain
from segtrain.errors import ConfigError
from segtrain.losses.combined import SegmentationLoss
from segtrain.losses.priors import label_margins, log_prior
from segtrain.losses.weights import class_weights

if TYPE_CHECKING:
    from segtrain.data import ClassFrequencies


def build_loss(
    section: LossConfig | Mapping[str, Any] | str,
    *,
    num_classes: int,
    ignore_index: int = 255,
    frequencies: ClassFrequencies | None = None,
    class_names: Sequence[str] | None = None,
    realised: ClassFrequencies | None = None,
) -> SegmentationLoss:
    """Build the loss module from the `loss` section of a configuration.

    Args:
        section: validated section, a plain dict of the same keys, or "auto" (see `resolve_auto`).
        num_classes: C, the channels of the logits.
        ignore_index: label of the pixels that count nowhere.
        frequencies: of the training data; needed for "auto" and for weights derived from them.
        class_names: in class order, for `manual` weights by name, warnings and the table.
        realised: frequencies of what training sees, for parts of the loss with `frequencies: realised`.

    Raises:
        ConfigError: wrong section, missing frequencies, or frequencies, names or weights that do not fit the classes.
    """
    if num_classes < 1:
        raise ConfigError(f"num_classes is {num_classes}, expected the channels of the logits: 1 or more.")
    if class_names is not None and len(class_names) != num_classes:
        raise ConfigError(f"class_names holds {len(class_names)} names, expected num_classes = {num_classes}.")
    if frequencies is not None and len(frequencies.pixels) != num_classes:
        raise ConfigError(
            f"the class frequencies hold {len(frequencies.pixels)} classes, the loss has {num_classes}: scan the data "
            "again with the classes of this configuration."
        )
    config = _validated(section, frequencies)
    weights = class_weights(
        config.class_weights,
        num_classes=num_classes,
        frequencies=_counted(config.class_weights, frequencies, realised, key="class_weights"),
        class_names=class_names,
        activation=config.activation,
    )
    prior = margin = None
    if config.prior is not None:
        prior = log_prior(_counted(config.prior, frequencies, realised, key="prior"), class_names=class_names)
    if config.margin is not None:
        counted = _counted(config.margin, frequencies, realised, key="margin")
        margin = label_margins(counted, max_margin=config.margin.max_margin)
    shares = None
    by_realised = [part for part in (config.class_weights, config.prior, config.margin) if _is_realised(part)]
    shown = realised if by_realised else frequencies
    if shown is not None:
        pixels = torch.as_tensor(shown.pixels, dtype=torch.float64)
        valid = getattr(shown, "valid", None)
        valid = pixels.sum() if valid is None else torch.as_tensor(valid, dtype=torch.float64)
        shares = (pixels / valid.clamp(min=1)).tolist()
    return SegmentationLoss(
        config,
        num_classes=num_classes,
        ignore_index=ignore_index,
        class_weights=weights,
        log_prior=prior,
        margin=margin,
        class_names=class_names,
        shares=shares,
    )


def _is_realised(part: ClassWeightsConfig | PriorConfig | MarginConfig | None) -> bool:
    return part is not None and part.frequencies == "realised"


def _counted(
    part: ClassWeightsConfig | PriorConfig | MarginConfig,
    natural: ClassFrequencies | None,
    realised: ClassFrequencies | None,
    *,
    key: str,
) -> ClassFrequencies | None:
    """The frequencies that a part of the loss goes by."""
    if part.frequencies == "natural":
        return natural
    if realised is None:
        raise ConfigError(
            f"loss.{key}.frequencies: realised needs the frequencies of what training sees, found none: give them to "
            "build_loss as realised=..., or use natural."
        )
    return realised


def resolve_auto(frequencies: ClassFrequencies) -> LossConfig:
    """Return what `loss: auto` stands for.

    The rule: cross_entropy (weight 1) + dice (weight 1), with class_weights {scheme: sqrt_inverse, max_ratio: 10}.

    - Cross entropy gives every pixel a steady gradient from the first step, whatever the model predicts.
    - sqrt_inverse raises the rare classes by the root of what full balance would take: a class 100 times rarer weighs
      10 times as much. Full inverse weights make the model shout the rare class everywhere, and cost precision.
    - max_ratio 10 bounds that for extreme ratios, where the few pixels of a class would carry gradients so large that
      they are mostly noise; weights of tens are known to lower even the class that they were meant for.
    - Dice, over the classes present in the batch and without weights of its own, scores each class by its overlap: a
      class of 0.05 % of the pixels counts as much as the background, and false alarms cost as misses do. It needs
      no weight, and restrains the over-prediction that weighted cross entropy alone tends to.

    A class without a training pixel gets weight 0 in the cross entropy (with a warning), and dice leaves it out: its
    output is then pushed down by the other classes only.

    Where classes do not exclude each other (frequencies that say how many pixels are valid for each), it is the same
    two terms with activation: sigmoid. The weights are then those of the channels, f_c being the share of yes in the
    labelled pixels of c: a rarer class weighs more against the others, while dice balances yes against no within it. A
    single class has none to be weighed against, and gets no weights.

    Raises:
        ConfigError: the data has no labelled pixel.
    """
    if not any(int(pixels) > 0 for pixels in frequencies.pixels):
        raise ConfigError(
            "loss: auto is chosen from the class frequencies, but the training data has not one labelled pixel: check "
            "data.label_map and data.ignore_index with tools/scan.py."
        )
    terms = (CrossEntropyTerm(name="cross_entropy"), DiceTerm(name="dice"))
    weights = ClassWeightsConfig(scheme="sqrt_inverse", max_ratio=10.0)
    if getattr(frequencies, "valid", None) is None:
        return LossConfig(terms=terms, class_weights=weights)
    if len(frequencies.pixels) == 1:
        weights = ClassWeightsConfig(scheme="none")
    return LossConfig(activation="sigmoid", terms=terms, class_weights=weights)


def _validated(section: LossConfig | Mapping[str, Any] | str, frequencies: ClassFrequencies | None) -> LossConfig:
    if isinstance(section, LossConfig):
        return section
    if isinstance(section, str):
        if section != "auto":
            raise ConfigError(f"the loss is {section!r}; expected a section with terms, or auto.")
        if frequencies is None:
            raise ConfigError("loss: auto is chosen from the class frequencies: pass frequencies to build_loss.")
        return resolve_auto(frequencies)
    if not isinstance(section, Mapping):
        raise ConfigError(
            f"the loss is of type {type(section).__name__}; expected a section such as "
            '{"terms": [{"name": "cross_entropy"}]}, or auto.'
        )
    given = {"loss": dict(section)}
    try:
        return _Root.model_validate(given).loss
    except ValidationError as error:
        problems = dict.fromkeys(map(str, explain(error, node_from_plain(given), schema=_Root)))
        raise ConfigError("the loss section is wrong:\n  " + "\n  ".join(problems)) from error


class _Root(Section):
    """What a loss section stands in, so that problems are told with the keys of a training file."""

    loss: LossConfig
