"""Priors and margins: what the class frequencies add to the logits on their way into the pixel terms."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from segtrain.config.loss import LossConfig
from segtrain.errors import ConfigError

if TYPE_CHECKING:
    from segtrain.data import ClassFrequencies

FEWEST_PIXELS = 0.5  # a class without a pixel is taken to have half of one: log π stays finite


def log_prior(frequencies: ClassFrequencies | None, *, class_names: Sequence[str] | None = None) -> Tensor:
    """Return log π_c, float64 `[C]`, π_c being the share of class c among the labelled pixels.

    Cross entropy on z + log π is the balanced softmax (Ren 2020, eq. 4, which adds log n_c: the constant cancels), on
    z + τ log π logit adjustment (Menon 2021, eq. 10). A class without a pixel counts as half a pixel, with a
    UserWarning: nothing pushes its logit down in training, so that it may be predicted where it should not.

    Raises:
        ConfigError: no frequencies, or no labelled pixel.
    """
    pixels = _pixels(frequencies, key="loss.prior")
    absent = [str(c) if class_names is None else class_names[c] for c in (pixels == 0).nonzero().flatten().tolist()]
    if absent:
        warnings.warn(
            f"no training pixel of {', '.join(absent)}: loss.prior takes it for half a pixel, so training hardly "
            "pushes it down and it may be predicted: leave such classes out, or use class_weights instead of prior.",
            UserWarning,
            stacklevel=3,
        )
    pixels = pixels.clamp(min=FEWEST_PIXELS)
    return (pixels / pixels.sum()).log()


def label_margins(frequencies: ClassFrequencies | None, *, max_margin: float) -> Tensor:
    """Return LDAM's margins (Cao 2019, eq. 10): Δ_c ∝ n_c^(−1/4), float64 `[C]`, in logits.

    The rarest class that has pixels gets `max_margin`. A class without any gets 0: it never is a label.

    Raises:
        ConfigError: no frequencies, or no labelled pixel.
    """
    pixels = _pixels(frequencies, key="loss.margin")
    present = pixels > 0
    rarest = pixels[present].min()
    return torch.where(present, max_margin * (pixels.clamp(min=1.0) / rarest) ** -0.25, 0.0)


def shift_of(config: LossConfig, log_prior: Tensor | None) -> Tensor | None:
    """Return τ log π, what the pixel terms add to the logits, float64 `[C]`; None without a prior.

    Raises:
        ConfigError: the section has a prior, and no `log_prior` is given.
    """
    if config.prior is None:
        return None
    if log_prior is None:
        raise ConfigError("loss.prior is set, but no log_prior is given: build_loss makes it from the frequencies.")
    return config.prior.tau * log_prior.double()


def margin_of(config: LossConfig, margin: Tensor | None) -> Tensor | None:
    """Return what the pixel terms take from the label's logit, float64 `[C]`; None without a margin.

    Raises:
        ConfigError: the section has a margin, and none is given.
    """
    if config.margin is None:
        return None
    if margin is None:
        raise ConfigError("loss.margin is set, but no margin is given: build_loss makes it from the frequencies.")
    return margin.double()


def _pixels(frequencies: ClassFrequencies | None, *, key: str) -> Tensor:
    if frequencies is None:
        raise ConfigError(
            f"{key} needs the class frequencies of the training data, found none: pass "
            "frequencies=scan_frequencies(data) to build_loss."
        )
    pixels = torch.as_tensor(frequencies.pixels, dtype=torch.float64)
    if not pixels.any():
        raise ConfigError(
            f"{key} comes from the class frequencies, but the training data has not one labelled pixel: check "
            "data.label_map and data.ignore_index with tools/scan.py."
        )
    return pixels
