"""Class weights from class frequencies: one formula for each scheme, then power, cap and normalisation."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segtrain.config.loss import ClassWeightsConfig
from segtrain.errors import ConfigError
from segtrain.losses.per_class import in_class_order

if TYPE_CHECKING:
    from segtrain.data import ClassFrequencies

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


class Scheme(Protocol):
    """Raw weights of the classes that are `present` (bool `[C]`), in their order."""

    def __call__(self, config: ClassWeightsConfig, frequencies: ClassFrequencies, *, present: Mask) -> Floats: ...


def inverse(config: ClassWeightsConfig, frequencies: ClassFrequencies, *, present: Mask) -> Floats:
    """1 / f_c: every class weighs the same in the sum over the data (balanced cross entropy)."""
    return 1 / _shares(frequencies, present)


def sqrt_inverse(config: ClassWeightsConfig, frequencies: ClassFrequencies, *, present: Mask) -> Floats:
    """1 / √f_c: a class 100 times rarer weighs 10 times as much."""
    return 1 / np.sqrt(_shares(frequencies, present))


def median_frequency(config: ClassWeightsConfig, frequencies: ClassFrequencies, *, present: Mask) -> Floats:
    """median(f') / f'_c, f'_c = n_c / pixels of the images that hold c (Eigen & Fergus 2015)."""
    within = _floats(frequencies.pixels)[present] / _floats(frequencies.image_pixels)[present]
    return np.asarray(np.median(within) / within)


def enet(config: ClassWeightsConfig, frequencies: ClassFrequencies, *, present: Mask) -> Floats:
    """1 / ln(1.02 + f_c): bounded by 50 (Paszke 2016, ENet)."""
    return np.asarray(1 / np.log(1.02 + _shares(frequencies, present)))


def effective_number(config: ClassWeightsConfig, frequencies: ClassFrequencies, *, present: Mask) -> Floats:
    """(1 − β) / (1 − β^n) (Cui 2019), with n the images that hold the class, or its pixels (`count: pixels`).

    β = 1 − 1/median(n) when `auto`: with a fixed one such as 0.9999, pixel counts saturate and all weights are equal.
    """
    counts = _floats(frequencies.images if config.count == "images" else frequencies.pixels)[present]
    complement = 1 / float(np.median(counts)) if config.beta == "auto" else 1 - config.beta
    if complement == 1:
        return np.ones_like(counts)
    return np.asarray(complement / -np.expm1(counts * math.log1p(-complement)))


SCHEMES: dict[str, Scheme] = {
    "inverse": inverse,
    "sqrt_inverse": sqrt_inverse,
    "median_frequency": median_frequency,
    "enet": enet,
    "effective_number": effective_number,
}  # beside "none" and "manual", which need no frequencies


def class_weights(
    config: ClassWeightsConfig,
    *,
    num_classes: int,
    frequencies: ClassFrequencies | None = None,
    class_names: Sequence[str] | None = None,
    activation: Literal["softmax", "sigmoid"] = "softmax",
) -> Tensor | None:
    """Return the class weights, float64 `[C]`, or None for scheme `none`.

    w = scheme(frequencies); then w^power; then the highest are cut to max_ratio times the lowest (so that the
    promise "no class weighs more than max_ratio times another" holds for the result, and the common classes keep
    their proportions); then scaled so that Σ f_c w_c = 1, f_c being the share of the pixels: over the data, the mean
    weight of a pixel is 1 and the learning rate keeps its meaning. With `activation: sigmoid` every pixel counts once
    in each channel, so the weights, which are those of the channels, are scaled to a mean of 1 instead. Classes
    without a training pixel get weight 0, and a UserWarning that names them. `manual` weights are taken as they stand.

    Raises:
        ConfigError: no frequencies where the scheme needs them, no pixel at all, or `manual` weights whose number or
            names do not fit.
    """
    if config.scheme == "none":
        return None
    if config.scheme == "manual":
        assert config.weights is not None
        manual = in_class_order(
            config.weights,
            num_classes=num_classes,
            class_names=class_names,
            key="loss.class_weights.weights",
            what="weight",
        )
        return torch.tensor(manual, dtype=torch.float64)
    if frequencies is None:
        raise ConfigError(
            f"loss.class_weights.scheme: {config.scheme} needs the class frequencies of the training data, found none: "
            "pass frequencies=scan_frequencies(data) to build_loss, or use scheme: manual with weights."
        )
    pixels = _floats(frequencies.pixels)
    present = pixels > 0
    _report_absent(present, class_names)
    weights = np.zeros(num_classes)
    weights[present] = _tempered(SCHEMES[config.scheme](config, frequencies, present=present), config)
    if activation == "sigmoid":
        return torch.from_numpy(weights / weights[present].mean())
    return torch.from_numpy(weights / np.sum(weights * pixels / pixels.sum()))


def _tempered(weights: Floats, config: ClassWeightsConfig) -> Floats:
    """Apply power, then cut what is above max_ratio times the lowest."""
    weights = weights**config.power
    return weights if config.max_ratio is None else np.minimum(weights, config.max_ratio * weights.min())


def _report_absent(present: Mask, class_names: Sequence[str] | None) -> None:
    if not present.any():
        raise ConfigError(
            "the training data has not one labelled pixel, so no class weights can be derived: check "
            "data.label_map and data.ignore_index with tools/scan.py."
        )
    absent = [str(c) if class_names is None else class_names[c] for c in np.flatnonzero(~present).tolist()]
    if absent:
        warnings.warn(
            f"no training pixel of {', '.join(absent)}: class weight 0, so the model learns only not to predict "
            f"{'it' if len(absent) == 1 else 'them'}. If the masks do hold {'it' if len(absent) == 1 else 'them'}, "
            "check data.label_map.",
            UserWarning,
            stacklevel=3,
        )


def _shares(frequencies: ClassFrequencies, present: Mask) -> Floats:
    """f_c of the classes that are present: of all labelled pixels, or of those of the channel with multi-label."""
    pixels = _floats(frequencies.pixels)
    valid = getattr(frequencies, "valid", None)
    return np.asarray(pixels[present] / (pixels.sum() if valid is None else _floats(valid)[present]))


def _floats(values: object) -> Floats:
    """Convert counts (array, tensor or list) to float64: exact up to 2^53 pixels."""
    return np.asarray(values, dtype=np.float64)
