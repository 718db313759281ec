"""The class sums in plain autograd, to be read and to test by: any device, any derivative, and no thought of speed."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from segtrain.kernels.mining import HardExamples
from segtrain.kernels.request import PREDICTIONS, Inputs, Request

EXCLUDED = -1e30  # e to it is 0, as e to −∞ is


def plain_sums(inputs: Inputs, request: Request) -> dict[str, Tensor]:
    """Return the fields of ClassSums by name, float64 `[N, C]`; see `segtrain.losses.class_sums` for their meaning."""
    with torch.autocast(inputs.logits.device.type, enabled=False):
        sums = _sigmoid_sums(inputs, request) if request.sigmoid else _softmax_sums(inputs, request)
    counts = ("pixels", "kept", "negatives", "kept_negatives", *PREDICTIONS)
    if request.predictions:
        sums |= _predictions(inputs, request)
    return {name: value for name, value in sums.items() if name in counts or name.split("_neg")[0] in request.wanted}


def _softmax_sums(inputs: Inputs, request: Request) -> dict[str, Tensor]:
    logits, target = _logits(inputs), inputs.target.long().flatten(1)
    num_classes = logits.shape[1]
    valid = (target != request.ignore_index).unsqueeze(1)
    is_label = (target.unsqueeze(1) == torch.arange(num_classes, device=logits.device).view(1, -1, 1)) & valid
    scores = _scores(logits, is_label, valid, inputs, request)
    if num_classes == 1:  # the only class is certain: no loss and a zero gradient, still connected to the logits
        loss = focal = 0 * scores
    else:
        # d = log(q / p_y), in which q = 1 − p_y is a sum over the other classes: 1 − p_y itself would round to 0
        # an excluded class (a logit of −∞) may be the only other one, and −∞ alone has no derivative
        others = scores.clamp(min=EXCLUDED).masked_fill(is_label, -torch.inf).logsumexp(1, keepdim=True)
        log_odds = torch.where(valid, others - torch.where(is_label, scores, 0.0).sum(1, keepdim=True), 0.0)
        gamma = _gamma(logits, request)
        loss, focal = _pixel_losses(log_odds, gamma if gamma.numel() == 1 else (is_label * gamma).sum(1, keepdim=True))
    keep = None if inputs.keep is None else inputs.keep.flatten(1)
    if request.rule is not None:
        buckets = target.masked_fill(target == request.ignore_index, num_classes)
        keep = _mine(request.rule, loss.squeeze(1), buckets, num_classes)
    weight = _weight(inputs, valid)
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


def _sigmoid_sums(inputs: Inputs, request: Request) -> dict[str, Tensor]:
    logits, target = _logits(inputs), inputs.target.long().flatten(2)
    valid = target != request.ignore_index
    positive = (target == 1) & valid
    negative = ~positive & valid
    scores = _scores(logits, positive, valid, inputs, request)
    loss, focal = _pixel_losses(torch.where(positive, -scores, scores), _gamma(logits, request))
    keep = None if inputs.keep is None else inputs.keep.flatten(2)
    if request.rule is not None:
        num_classes = logits.shape[1]
        classes = torch.arange(num_classes, device=logits.device).view(1, -1, 1)
        buckets = (2 * classes + positive).masked_fill(~valid, 2 * num_classes)
        keep = _mine(request.rule, loss, buckets, 2 * num_classes)
    weight = _weight(inputs, valid)
    kept = weight if keep is None else weight * keep
    probability = scores.sigmoid()
    return {
        "pixels": _sum(positive * weight),
        "negatives": _sum(negative * weight),
        "kept": _sum(positive * kept),
        "kept_negatives": _sum(negative * kept),
        "probability": _sum(probability * weight),
        "squared_probability": _sum(probability.square() * weight),
        "intersection": _sum(positive * probability * weight),
        "cross_entropy": _sum(positive * loss * kept),
        "cross_entropy_negatives": _sum(negative * loss * kept),
        "focal": _sum(positive * focal * kept),
        "focal_negatives": _sum(negative * focal * kept),
    }


def _predictions(inputs: Inputs, request: Request) -> dict[str, Tensor]:
    found = inputs.logits.detach().argmax(1).flatten(1)
    target = inputs.target.long().flatten(1)
    of_class = found.unsqueeze(1) == torch.arange(inputs.logits.shape[1], device=found.device).view(1, -1, 1)
    of_class &= (target != request.ignore_index).unsqueeze(1)
    return {"predicted": _sum(of_class), "correct": _sum(of_class & (found == target).unsqueeze(1))}


def _logits(inputs: Inputs) -> Tensor:
    return inputs.logits.to(torch.promote_types(inputs.logits.dtype, torch.float32)).flatten(2)


def _gamma(logits: Tensor, request: Request) -> Tensor:
    gamma = torch.tensor(request.gamma, dtype=logits.dtype).to(logits.device, non_blocking=True)  # no wait for CUDA
    return gamma.view(1, -1, 1)


def _weight(inputs: Inputs, valid: Tensor) -> Tensor:
    """Return what each pixel counts, float64, 0 where ignored: `[N, 1, P]`, or `[N, C, P]` with sigmoid."""
    if inputs.pixel_weight is None:
        return valid.double()
    return torch.where(valid, inputs.pixel_weight.flatten(1).unsqueeze(1).double(), 0.0)


def _mine(rule: HardExamples, loss: Tensor, buckets: Tensor, num_buckets: int) -> Tensor:
    return rule(loss.detach().masked_fill(buckets == num_buckets, 0.0), buckets, num_buckets=num_buckets)


def _scores(logits: Tensor, at_margin: Tensor, valid: Tensor, inputs: Inputs, request: Request) -> Tensor:
    """Return scale · (z + shift − margin at the label); 0 where ignored, so that NaN there ends here."""
    scores = logits
    if inputs.shift is not None:
        scores = scores + inputs.shift.to(logits.dtype).view(1, -1, 1)
    if inputs.margin is not None:
        scores = scores - at_margin * inputs.margin.to(logits.dtype).view(1, -1, 1)
    return torch.where(valid, scores * request.scale, 0.0)


def _pixel_losses(log_odds: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor]:
    """Return ℓ = −log p_y = log(1 + e^d) and q^γ ℓ, in a form whose derivative is finite for every γ ≥ 0."""
    loss = softplus(log_odds, threshold=40.0)
    return loss, torch.exp(gamma * logsigmoid(log_odds)) * loss


def _sum(values: Tensor) -> Tensor:
    return values.sum(-1, dtype=torch.float64)
