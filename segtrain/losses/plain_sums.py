"""The class sums in plain autograd, to be read and to test by: any device, any derivative, and no thought of speed."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from segtrain.kernels.mining import HardExamples


def plain_sums(
    logits: Tensor,
    target: Tensor,
    *,
    ignore_index: int,
    activation: str,
    gamma: tuple[float, ...],
    shift: Tensor | None,
    margin: Tensor | None,
    scale: float,
    pixel_weight: Tensor | None,
    keep: Tensor | HardExamples | None,
    wanted: tuple[str, ...],
) -> dict[str, Tensor]:
    """Return the fields of ClassSums by name, float64 `[N, C]`; see `segtrain.losses.class_sums` for the arguments."""
    with torch.autocast(logits.device.type, enabled=False):
        scores = logits.to(torch.promote_types(logits.dtype, torch.float32)).flatten(2)
        target = target.long().flatten(1 if activation == "softmax" else 2)  # uint8 == -1 would compare with 255
        mask = keep.flatten(target.dim() - 1) if isinstance(keep, Tensor) else keep
        weight = None if pixel_weight is None else pixel_weight.detach().flatten(1).unsqueeze(1).double()
        make = _softmax_sums if activation == "softmax" else _sigmoid_sums
        vectors = [None if vector is None else vector.detach().view(1, -1, 1) for vector in (shift, margin)]
        exponent = torch.tensor(gamma, dtype=scores.dtype, device=scores.device).view(1, -1, 1)
        sums = make(scores, target, ignore_index, exponent, *vectors, scale, weight, mask)
    counts = ("pixels", "kept", "negatives", "kept_negatives")
    return {name: value for name, value in sums.items() if name in counts or name.split("_neg")[0] in wanted}


def _softmax_sums(
    logits: Tensor,
    target: Tensor,
    ignore_index: int,
    gamma: Tensor,
    shift: Tensor | None,
    margin: Tensor | None,
    scale: float,
    pixel_weight: Tensor | None,
    keep: Tensor | HardExamples | None,
) -> dict[str, Tensor]:
    """Sum softmax mode: logits `[N, C, P]`, target `[N, P]`, vectors `[1, C, 1]`."""
    num_classes = logits.shape[1]
    valid = (target != ignore_index).unsqueeze(1)
    is_label = (target.unsqueeze(1) == torch.arange(num_classes, device=logits.device).view(1, -1, 1)) & valid
    scores = _scores(logits, is_label, valid, shift, margin, scale)
    if num_classes == 1:  # the only class is certain: no loss and a zero gradient, still connected to the logits
        loss = focal = 0 * scores
    else:
        # d = log(q / p_y), in which q = 1 − p_y is a sum over the other classes: 1 − p_y itself would round to 0
        others = scores.masked_fill(is_label, -torch.inf).logsumexp(1, keepdim=True)
        log_odds = torch.where(valid, others - torch.where(is_label, scores, 0.0).sum(1, keepdim=True), 0.0)
        loss, focal = _pixel_losses(log_odds, gamma if gamma.numel() == 1 else (is_label * gamma).sum(1, keepdim=True))
    if isinstance(keep, HardExamples):
        buckets = target.masked_fill(target == ignore_index, num_classes)
        keep = keep(loss.detach().squeeze(1), buckets, num_buckets=num_classes)
    weight = valid.double() if pixel_weight is None else torch.where(valid, pixel_weight, 0.0)
    kept = weight if keep is None else weight * keep.unsqueeze(1)
    probability = scores.softmax(1)
    return {
        "pixels": _sum(is_label * weight),
        "kept": _sum(is_label * kept),
        "probability": _sum(probability * weight),
        "squared_probability": _sum(probability.square() * weight),
        "intersection": _sum(is_label * probability * weight),
        "cross_entropy": _sum(is_label * loss * kept),
        "focal": _sum(is_label * focal * kept),
        "log_mass": _sum(-scores.log_softmax(1) * kept),
    }


def _sigmoid_sums(
    logits: Tensor,
    target: Tensor,
    ignore_index: int,
    gamma: Tensor,
    shift: Tensor | None,
    margin: Tensor | None,
    scale: float,
    pixel_weight: Tensor | None,
    keep: Tensor | HardExamples | None,
) -> dict[str, Tensor]:
    """Sum sigmoid mode: logits and target `[N, C, P]`, vectors `[1, C, 1]`."""
    valid, positive = target != ignore_index, target == 1
    scores = _scores(logits, positive, valid, shift, margin, scale)
    loss, focal = _pixel_losses(torch.where(positive, -scores, scores), gamma)
    if isinstance(keep, HardExamples):
        num_classes = logits.shape[1]
        classes = torch.arange(num_classes, device=logits.device).view(1, -1, 1)
        buckets = (2 * classes + positive).masked_fill(~valid, 2 * num_classes)
        keep = keep(loss.detach(), buckets, num_buckets=2 * num_classes)
    weight = valid.double() if pixel_weight is None else torch.where(valid, pixel_weight, 0.0)
    kept = weight if keep is None else weight * keep
    probability = scores.sigmoid()
    return {
        "pixels": _sum(positive * weight),
        "negatives": _sum(~positive * weight),
        "kept": _sum(positive * kept),
        "kept_negatives": _sum(~positive * kept),
        "probability": _sum(probability * weight),
        "squared_probability": _sum(probability.square() * weight),
        "intersection": _sum(positive * probability * weight),
        "cross_entropy": _sum(positive * loss * kept),
        "cross_entropy_negatives": _sum(~positive * loss * kept),
        "focal": _sum(positive * focal * kept),
        "focal_negatives": _sum(~positive * focal * kept),
    }


def _scores(
    logits: Tensor, at_margin: Tensor, valid: Tensor, shift: Tensor | None, margin: Tensor | None, scale: float
) -> Tensor:
    """Return scale · (z + shift − margin at the label); 0 where ignored, so that NaN there ends here."""
    scores = logits if shift is None else logits + shift.to(logits.dtype)
    if margin is not None:
        scores = scores - at_margin * margin.to(logits.dtype)
    return torch.where(valid, scores * scale, 0.0)


def _pixel_losses(log_odds: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor]:
    """Return ℓ = −log p_y = log(1 + e^d) and q^γ ℓ, in a form whose derivative is finite for every γ ≥ 0."""
    loss = softplus(log_odds, threshold=40.0)
    return loss, torch.exp(gamma * logsigmoid(log_odds)) * loss


def _sum(values: Tensor) -> Tensor:
    return values.sum(-1, dtype=torch.float64)
