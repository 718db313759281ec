"""The first bias of the output layer: the log of the class shares, so that training starts at the prior."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from segtrain.errors import ConfigError

if TYPE_CHECKING:
    from segtrain.data.frequencies import ClassFrequencies

SMALLEST_SHARE = 1e-6


def set_prior_bias(classifier: nn.Conv2d, frequencies: ClassFrequencies | None) -> None:
    """Start the bias at log π, π the share of the class: focal loss, Lin 2017, section 3.3, for many classes.

    Where classes do not exclude each other, at the paper's log π/(1 − π), π being the share of yes.

    Raises:
        ConfigError: frequencies are missing, empty or of other classes, or the layer has no bias.
    """
    if frequencies is None:
        raise ConfigError(
            "model.prior_bias needs the class frequencies: pass frequencies=scan_frequencies(config.data)"
        )
    pixels = torch.as_tensor(frequencies.pixels, dtype=torch.float64)
    if len(pixels) != classifier.out_channels:
        raise ConfigError(
            f"model.prior_bias: the frequencies have {len(pixels)} classes and the model {classifier.out_channels}"
        )
    if pixels.sum() == 0 or classifier.bias is None:
        raise ConfigError("model.prior_bias: no labelled pixel was counted, or the head has no bias: drop prior_bias")
    # Absent and all but absent classes get a low bias, but one that training can still raise.
    valid = getattr(frequencies, "valid", None)
    start = (pixels / pixels.sum()).clamp_min(SMALLEST_SHARE).log()
    if valid is not None:
        share = pixels / torch.as_tensor(valid, dtype=torch.float64).clamp_min(1)
        start = share.clamp(SMALLEST_SHARE, 1 - SMALLEST_SHARE).logit()
    with torch.no_grad():
        classifier.bias.copy_(start)
