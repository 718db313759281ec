"""CE + focal + dice as a careful user writes it in plain autograd: what torch.compile is given."""

from __future__ import annotations

import torch
from torch import Tensor


def plain_loss(
    logits: Tensor, target: Tensor, *, class_weights: Tensor, ignore_index: int, gamma: float, threshold: float
) -> Tensor:
    """Return weighted CE + weighted focal over the hard pixels, + dice over all: the sum of three terms.

    The same value as ours with `ohem: {threshold: ...}` as long as more pixels are hard than `min_kept`: the other
    branch is left out, since it would break the graph of torch.compile. One log_softmax serves all terms.

    Args:
        logits: float `[N, C, H, W]`.
        target: integer `[N, H, W]`.
        class_weights: float `[C]`.
        gamma: of the focal term.
        threshold: pixels with p_y below it are hard.
    """
    num_classes = logits.shape[1]
    valid = target != ignore_index
    labels = torch.where(valid, target, 0).long()
    log_probability = torch.log_softmax(logits.float(), 1)
    loss = -log_probability.gather(1, labels.unsqueeze(1)).squeeze(1)
    label_probability = torch.exp(-loss)
    hard = (label_probability.detach() < threshold) & valid
    weight = class_weights[labels] * hard
    pixel_terms = (weight * loss * (1 + (1 - label_probability) ** gamma)).sum() / hard.sum().clamp(min=1)

    flat, counted = labels.flatten(), valid.flatten().float()
    zeros = torch.zeros(num_classes, device=logits.device)
    intersection = zeros.index_add(0, flat, label_probability.flatten() * counted)
    pixels = zeros.index_add(0, flat, counted)
    probability = (log_probability.exp() * valid.unsqueeze(1)).sum((0, 2, 3))
    overlap = 2 * intersection / (probability + pixels).clamp(min=1e-12)
    present = pixels > 0
    dice = torch.where(present, 1 - overlap, 0.0).sum() / present.sum().clamp(min=1)
    return pixel_terms + dice
