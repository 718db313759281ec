"""The predicted class of each pixel: the argmax over the channels, adjusted to the prior where that is wished."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from segtrain.kernels import confusion_cpu
from segtrain.kernels.confusion_cpu import class_dtype

__all__ = ["class_dtype", "predict_classes", "prior_shift"]


@torch.no_grad()
def predict_classes(logits: Tensor, *, shift: Tensor | None = None) -> Tensor:
    """Return the class of the largest logit, [N, C, H, W] floats -> [N, H, W] uint8 (int16 above 256 classes).

    Exactly torch.argmax over dim 1, ties and NaN included (the first index wins, a NaN counts as the largest).

    shift: floats [C], added to the logits of every pixel first; see `prior_shift`. Raises ValueError for types or
    shapes that do not fit.
    """
    if logits.ndim != 4 or logits.shape[1] == 0:
        raise ValueError(f"logits must be [N, C, H, W] with C > 0, found {list(logits.shape)}")
    if not logits.is_floating_point():
        raise ValueError(f"logits must be floats, found {logits.dtype}")
    if shift is not None and list(shift.shape) != [logits.shape[1]]:
        raise ValueError(f"shift must be [C] = [{logits.shape[1]}], found {list(shift.shape)}")
    if logits.device.type == "cpu":
        return confusion_cpu.largest(logits, shift=shift)
    added = None if shift is None else shift.to(logits.device, torch.promote_types(logits.dtype, torch.float32))
    shifted = logits if added is None else logits + added.view(-1, 1, 1)
    return shifted.argmax(dim=1).to(class_dtype(logits.shape[1]))


def prior_shift(pixels: Sequence[int], tau: float) -> Tensor:
    """Return what post-hoc logit adjustment adds to the logits: −τ log π, float64 [C] (Menon 2021, eq. 9).

    argmax(z − τ log π) predicts for classes that are all equally common what plain training learnt under the
    frequencies π: with τ = 1 it minimises the balanced error where the model's probabilities are right.

    A class without a training pixel has no log π. The model has never seen it, and no reason to predict it follows from
    its being rare: it is not raised at all, and so stands behind every class that was seen.

    Args:
        pixels: of each class in the training data.
        tau: τ; 0 changes nothing.
    """
    counts = torch.as_tensor(pixels, dtype=torch.float64)
    shares = counts / counts.sum().clamp(min=1)
    return torch.where(counts > 0, -tau * shares.clamp(min=torch.finfo(torch.float64).tiny).log(), 0.0)
