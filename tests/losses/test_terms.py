"""The family of terms: the schema's names, gradcheck of every one, and the identities between them."""

from __future__ import annotations

import typing
from collections.abc import Callable
from typing import Any

import pytest
import segmentation_models_pytorch.losses as smp
import torch
from torch import Tensor
from torch.nn import functional as F

from segtrain.config.loss_terms import TermConfig
from segtrain.errors import ConfigError
from segtrain.losses import SegmentationLoss, build_loss, class_sums
from segtrain.losses.region import overlap_loss
from segtrain.losses.terms import TERMS

MakeBatch = Callable[..., tuple[Tensor, Tensor]]
WEIGHTS = [0.3, 1.0, 2.5, 4.0]
NAMES = ["a", "b", "c", "d"]


def one(name: str, *, weights: bool = False, classes: int = 4, **options: Any) -> SegmentationLoss:
    shared = {key: options.pop(key) for key in ("reduction", "activation", "ohem") if key in options}
    section: dict[str, Any] = {"terms": [{"name": name, **options}], **shared}
    if weights:
        section["class_weights"] = {"scheme": "manual", "weights": WEIGHTS}
    return build_loss(section, num_classes=classes, class_names=NAMES if classes == 4 else None)


def gradient(loss: Callable[[Tensor, Tensor], Tensor], logits: Tensor, target: Tensor) -> Tensor:
    leaf = logits.detach().requires_grad_()
    return torch.autograd.grad(loss(leaf, target), leaf)[0]


def assert_same(first: SegmentationLoss, second: Callable[[Tensor, Tensor], Tensor], *batch: Tensor) -> None:
    torch.testing.assert_close(first(*batch), second(*batch), rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(gradient(first, *batch), gradient(second, *batch), rtol=1e-8, atol=1e-14)


def test_schema_and_makers_know_the_same_terms() -> None:
    union = typing.get_args(typing.get_args(TermConfig)[0])
    names = [typing.get_args(section.model_fields["name"].annotation)[0] for section in union]
    assert names == list(TERMS)


REGION = [
    {"name": "dice"},
    {"name": "dice", "squared": True},
    {"name": "jaccard"},
    {"name": "tversky"},
    {"name": "focal_tversky"},
    {"name": "focal_tversky", "gamma": [1.0, 4 / 3, 2.0, 0.5]},
]
VARIANTS = [
    *[
        term | {"per": per, "class_weights": weights}
        for term in REGION
        for per, weights in (("batch", False), ("image", True))
    ],
    {"name": "dice", "absent_classes": "count", "smooth": 1.0},
    {"name": "generalized_dice"},
    {"name": "generalized_dice", "per": "image", "smooth": 1.0},
]
PIXEL = [{"name": "focal", "gamma": gamma} for gamma in (0.0, 0.5, 1.0, 2.0, 3.0, [0.0, 0.5, 2.0, 3.0])]


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("term", VARIANTS, ids=str)
def test_region_terms_pass_gradcheck(make_batch: MakeBatch, term: dict[str, Any], activation: str) -> None:
    logits, target = make_batch(size=(2, 2))
    target[target == 2] = 1
    loss = one(weights=term.get("class_weights", False), activation=activation, **term)
    assert torch.autograd.gradcheck(lambda z: loss(z, target), logits)


SOFTMAX = [{"name": "cross_entropy"}, {"name": "cross_entropy", "label_smoothing": 0.1}]
SIGMOID = [{"name": "cross_entropy"}, *({"name": "balanced_cross_entropy", "per": per} for per in ("batch", "image"))]


@pytest.mark.parametrize("reduction", ["valid", "weighted"])
@pytest.mark.parametrize(
    ("activation", "term"),
    [*(("softmax", term) for term in PIXEL + SOFTMAX), *(("sigmoid", term) for term in PIXEL + SIGMOID)],
    ids=str,
)
def test_pixel_terms_pass_gradcheck(
    make_batch: MakeBatch, term: dict[str, Any], activation: str, reduction: str
) -> None:
    logits, target = make_batch(size=(2, 2))
    loss = one(weights=True, activation=activation, reduction=reduction, **term)
    assert torch.autograd.gradcheck(lambda z: loss(z, target), logits)


@pytest.mark.parametrize("smoothing", [0.05, 0.5, 1.0])
@pytest.mark.parametrize("weights", [False, True])
def test_label_smoothing_is_that_of_torch_also_with_weights(
    make_batch: MakeBatch, smoothing: float, weights: bool
) -> None:
    weight = torch.tensor(WEIGHTS, dtype=torch.float64) if weights else None
    reduction = {"reduction": "weighted"} if weights else {}
    ours = one("cross_entropy", label_smoothing=smoothing, weights=weights, **reduction)
    batch = make_batch()
    assert_same(ours, lambda z, t: F.cross_entropy(z, t, weight, ignore_index=255, label_smoothing=smoothing), *batch)


def test_label_smoothing_divides_by_the_valid_pixels_with_valid(make_batch: MakeBatch) -> None:
    logits, target = make_batch()
    weight = torch.tensor(WEIGHTS, dtype=torch.float64)
    total = F.cross_entropy(logits, target, weight, ignore_index=255, label_smoothing=0.1, reduction="sum")
    loss = one("cross_entropy", label_smoothing=0.1, weights=True)
    torch.testing.assert_close(loss(logits, target), total / (target != 255).sum(), rtol=1e-12, atol=0)


def test_gamma_by_class_is_the_focal_loss_of_each_class(make_batch: MakeBatch) -> None:
    logits, target = make_batch()
    gammas = torch.tensor([0.0, 0.5, 2.0, 3.0], dtype=torch.float64)
    each = F.cross_entropy(logits, target, ignore_index=255, reduction="none")
    exponent = gammas[target.clamp(max=3)]
    expected = ((1 - (-each).exp()) ** exponent * each).sum() / (target != 255).sum()
    as_list = one("focal", gamma=gammas.tolist())
    torch.testing.assert_close(as_list(logits, target), expected, rtol=1e-12, atol=0)
    by_name = one("focal", gamma=dict(zip(reversed(NAMES), gammas.flip(0).tolist(), strict=True)))
    assert torch.equal(by_name(logits, target), as_list(logits, target))


@pytest.mark.parametrize(
    ("gamma", "words"),
    [
        ([1.0, 2.0], "gamma of focal holds 2 values, expected one for each of the 4"),
        ({"a": 1.0, "b": 1.0, "c": 1.0, "dd": 2.0}, "unknown class 'dd'.*did you mean 'd'.*no value for 'd'"),
    ],
)
def test_a_gamma_by_class_must_fit_the_classes(gamma: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        one("focal", gamma=gamma)


@pytest.mark.parametrize("options", [{}, {"per": "image"}, {"absent_classes": "count"}, {"class_weights": True}])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_tversky_contains_dice_and_jaccard(make_batch: MakeBatch, options: dict[str, Any], activation: str) -> None:
    batch = make_batch()
    shared = options | {"activation": activation, "weights": "class_weights" in options}
    assert_same(one("tversky", alpha=0.5, beta=0.5, **shared), one("dice", **shared), *batch)
    assert_same(one("tversky", alpha=1.0, beta=1.0, **shared), one("jaccard", **shared), *batch)
    assert_same(one("focal_tversky", gamma=1.0, **shared), one("tversky", **shared), *batch)


def test_tversky_is_that_of_smp_when_every_class_is_there(make_batch: MakeBatch) -> None:
    logits, target = make_batch()
    theirs = smp.TverskyLoss("multiclass", alpha=0.3, beta=0.7, ignore_index=255)(logits, target)
    torch.testing.assert_close(one("tversky")(logits, target), theirs, rtol=1e-6, atol=0)


def test_alpha_counts_false_positives_and_beta_false_negatives() -> None:
    target = torch.tensor([[[0, 0, 1, 1]]])
    over = F.one_hot(torch.tensor([[[0, 1, 1, 1]]]), 2).permute(0, 3, 1, 2) * 50.0  # class 1 predicted too often
    loss = one("tversky", classes=2, alpha=1.0, beta=0.0)(over, target).item()
    assert loss == pytest.approx((0 + 1 / 3) / 2)  # class 0 has no false positive, class 1 one beside two hits


def test_micro_dice_is_the_mean_error(make_batch: MakeBatch) -> None:
    logits, target = make_batch()
    sums = class_sums(logits, target, wanted=("intersection", "probability"))
    assert sums.intersection is not None
    assert sums.probability is not None
    loss = overlap_loss(
        sums.intersection.sum(), sums.probability.sum(), sums.pixels.sum(), alpha=0.5, beta=0.5, smooth=0.0
    )
    p = logits.softmax(1).gather(1, target.clamp(max=3).unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(loss, 1 - p[target != 255].mean(), rtol=1e-12, atol=0)


def test_focal_tversky_is_the_mean_of_powers(make_batch: MakeBatch) -> None:
    logits, target = make_batch()
    each = []
    for c in range(4):  # one class at a time, by weights
        weights = [float(c == k) for k in range(4)]
        section = {"terms": [{"name": "tversky", "class_weights": True}]}
        section["class_weights"] = {"scheme": "manual", "weights": weights}  # type: ignore[assignment]
        each.append(build_loss(section, num_classes=4)(logits, target))
    gammas = [4 / 3, 1.0, 2.0, 0.5]
    expected = torch.stack([loss ** (1 / gamma) for loss, gamma in zip(each, gammas, strict=True)]).mean()
    torch.testing.assert_close(one("focal_tversky", gamma=gammas)(logits, target), expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_focal_tversky_has_finite_gradients_at_a_perfect_prediction(make_batch: MakeBatch, dtype: torch.dtype) -> None:
    _, target = make_batch()
    truth = torch.stack([target == c for c in range(4)], dim=1)
    logits = (truth * 60.0).to(dtype).requires_grad_()
    loss = one("focal_tversky")(logits, target)
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert torch.autograd.grad(loss, logits)[0].isfinite().all()


def test_generalized_dice_is_that_of_monai(make_batch: MakeBatch) -> None:
    monai = pytest.importorskip("monai.losses")
    logits, target = make_batch(images=3, ignored=0)
    for per in ("batch", "image"):
        theirs = monai.GeneralizedDiceLoss(
            softmax=True, to_onehot_y=True, batch=per == "batch", smooth_nr=0.0, smooth_dr=0.0
        )
        expected = theirs(logits, target.unsqueeze(1))
        torch.testing.assert_close(one("generalized_dice", per=per)(logits, target), expected, rtol=1e-6, atol=0)


def test_an_absent_class_does_not_rule_the_generalized_dice(make_batch: MakeBatch) -> None:
    _, target = make_batch(ignored=0)
    target[target == 3] = 0
    near = torch.stack([target == c for c in range(4)], dim=1) * 12.0
    assert one("generalized_dice")(near, target).item() < 1e-3


@pytest.mark.parametrize("term", [*VARIANTS, {"name": "focal", "gamma": 0.5}, {"name": "cross_entropy"}], ids=str)
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_all_ignored_is_zero_and_ignored_pixels_get_no_gradient(
    make_batch: MakeBatch, term: dict[str, Any], activation: str
) -> None:
    loss = one(weights=term.get("class_weights", False), activation=activation, **term)
    logits, target = make_batch(ignored=1.1)
    assert loss(logits, target).item() == 0
    assert not gradient(loss, logits, target).any()
    logits, target = make_batch()
    grad = gradient(loss, logits, target)
    assert not grad[(target == 255).unsqueeze(1).expand_as(grad)].any()
    assert grad.any()
    if activation == "softmax":
        torch.testing.assert_close(grad.sum(1), torch.zeros_like(grad[:, 0]), rtol=0, atol=1e-14)


def test_the_asymmetric_unified_focal_loss_falls_out(make_batch: MakeBatch) -> None:
    """Yeung 2022, eqs. 24 to 26, for one rare class: λ L_maF + (1 − λ) L_maFT, written with three settings."""
    logits, target = make_batch(images=3, classes=2, ignored=0)
    delta, gamma, lam = 0.6, 0.3, 0.5
    section = {
        "terms": [
            {"name": "focal", "gamma": [gamma, 0.0], "weight": lam},
            {
                "name": "focal_tversky",
                "alpha": 1 - delta,
                "beta": delta,
                "gamma": [1.0, 1 / (1 - gamma)],
                "per": "image",
                "weight": 1 - lam,
            },
        ],
        "class_weights": {"scheme": "manual", "weights": [1 - delta, delta]},
    }
    p = logits.detach().softmax(1)
    truth = F.one_hot(target, 2).permute(0, 3, 1, 2).double()
    each = -truth * p.log()
    focal = ((1 - delta) * (1 - p[:, 0]) ** gamma * each[:, 0] + delta * each[:, 1]).mean()
    hits, misses, alarms = ((x).sum((2, 3)) for x in (truth * p, truth * (1 - p), (1 - truth) * p))
    index = hits / (hits + delta * misses + (1 - delta) * alarms)
    tversky = torch.stack([1 - index[:, 0], (1 - index[:, 1]) ** (1 - gamma)]).mean()
    loss = build_loss(section, num_classes=2)(logits, target)
    torch.testing.assert_close(loss, lam * focal + (1 - lam) * tversky, rtol=1e-10, atol=0)
