"""Presets: `like: torch | smp | monai` gives what the installed libraries give, gradients included."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import segmentation_models_pytorch.losses as smp
import torch
from torch import Tensor, nn

from segtrain.errors import ConfigError
from segtrain.losses import build_loss

MakeBatch = Callable[..., tuple[Tensor, Tensor]]
Loss = Callable[[Tensor, Tensor], Tensor]
WEIGHTS = [0.3, 1.0, 2.5, 4.0]


def like(library: str, term: dict[str, Any] | str, *, weights: bool = False, **options: Any) -> Loss:
    section: dict[str, Any] = {"like": library, "terms": [{"name": term} if isinstance(term, str) else term], **options}
    if weights:
        section["class_weights"] = {"scheme": "manual", "weights": WEIGHTS}
    return build_loss(section, num_classes=4)


def assert_equal(ours: Loss, theirs: Loss, logits: Tensor, target: Tensor, *, rtol: float = 1e-6) -> None:
    """Compare value and gradient."""
    ours_value, theirs_value = ours(logits, target), theirs(logits, target).double()  # some compute in float32
    torch.testing.assert_close(ours_value, theirs_value, rtol=rtol, atol=0)
    ours_grad, theirs_grad = (torch.autograd.grad(value, logits)[0] for value in (ours_value, theirs_value))
    torch.testing.assert_close(ours_grad, theirs_grad, rtol=10 * rtol, atol=1e-4 * rtol)


@pytest.fixture
def batch(make_batch: MakeBatch) -> tuple[Tensor, Tensor]:
    """Three images, class 3 absent, class 2 in the first image only; nothing ignored."""
    logits, target = make_batch(images=3, ignored=0)
    target[target == 3] = 0
    target[1:][target[1:] == 2] = 1
    return logits, target


@pytest.fixture
def labels(make_batch: MakeBatch) -> tuple[Tensor, Tensor]:
    """Multi-label: logits and 0 or 1 for each class; class 3 never there."""
    logits, _ = make_batch(images=3)
    target = (torch.rand(logits.shape, generator=torch.Generator().manual_seed(5)) < 0.3).long()
    target[:, 3] = 0
    return logits, target


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [False, True])
def test_torch_cross_entropy(make_batch: MakeBatch, smoothing: float, weights: bool) -> None:
    logits, target = make_batch()
    weight = torch.tensor(WEIGHTS, dtype=torch.float64) if weights else None
    theirs = nn.CrossEntropyLoss(weight, ignore_index=255, label_smoothing=smoothing)
    ours = like("torch", {"name": "cross_entropy", "label_smoothing": smoothing}, weights=weights)
    assert_equal(ours, theirs, logits, target, rtol=1e-12)


@pytest.mark.parametrize("weights", [False, True])
def test_torch_binary_cross_entropy(labels: tuple[Tensor, Tensor], weights: bool) -> None:
    logits, target = labels
    weight = torch.tensor(WEIGHTS, dtype=torch.float64).view(4, 1, 1) if weights else None
    theirs = nn.BCEWithLogitsLoss(weight)
    ours = like("torch", "cross_entropy", weights=weights, activation="sigmoid")
    assert_equal(ours, lambda z, t: theirs(z, t.double()), logits, target, rtol=1e-12)


@pytest.mark.parametrize("ignored", [0.0, 0.4])
def test_smp_cross_entropy_counts_ignored_pixels(make_batch: MakeBatch, ignored: float) -> None:
    logits, target = make_batch(ignored=ignored)
    theirs = smp.SoftCrossEntropyLoss(smooth_factor=0.1, ignore_index=255)
    ours = like("smp", {"name": "cross_entropy", "label_smoothing": 0.1})
    assert_equal(ours, lambda z, t: theirs(z, t).mean(), logits, target)


def test_smp_binary_cross_entropy_counts_ignored_pixels(labels: tuple[Tensor, Tensor]) -> None:
    logits, target = labels
    target[0, :, :3] = 255
    theirs = smp.SoftBCEWithLogitsLoss(ignore_index=255)
    ours = like("smp", "cross_entropy", activation="sigmoid")
    assert_equal(ours, lambda z, t: theirs(z, t.double()), logits, target)


@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize(
    ("term", "theirs"),
    [
        ({"name": "dice"}, smp.DiceLoss),
        ({"name": "tversky", "alpha": 0.2, "beta": 0.6}, lambda *a, **k: smp.TverskyLoss(*a, alpha=0.2, beta=0.6, **k)),
        ({"name": "tversky", "alpha": 0.5, "beta": 0.5}, smp.TverskyLoss),
    ],
)
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_smp_overlaps(
    batch: tuple[Tensor, Tensor],
    labels: tuple[Tensor, Tensor],
    term: dict[str, Any],
    theirs: Callable[..., Loss],
    weights: bool,
    activation: str,
) -> None:
    logits, target = batch if activation == "softmax" else labels
    target[0, ..., :2] = 255
    mode = "multiclass" if activation == "softmax" else "multilabel"
    loss = theirs(mode, ignore_index=255, class_weights=WEIGHTS if weights else None)
    ours = like("smp", term | {"class_weights": weights}, weights=weights, activation=activation)
    assert_equal(ours, loss, logits, target, rtol=1e-5)


@pytest.mark.parametrize("weights", [False, True])
def test_smp_focal_is_a_sigmoid_for_each_class(batch: tuple[Tensor, Tensor], weights: bool) -> None:
    logits, target = batch
    target[0, 0] = 255
    theirs = smp.FocalLoss("multiclass", gamma=1.5, ignore_index=255, class_weights=WEIGHTS if weights else None)
    ours = like("smp", {"name": "focal", "gamma": 1.5}, weights=weights)
    assert_equal(ours, theirs, logits, target, rtol=1e-5)


def test_smp_focal_of_multi_label_targets(labels: tuple[Tensor, Tensor]) -> None:
    assert_equal(like("smp", "focal", activation="sigmoid"), smp.FocalLoss("multilabel"), *labels, rtol=1e-5)


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("weights", [False, True])
def test_monai_dice(batch: tuple[Tensor, Tensor], squared: bool, weights: bool) -> None:
    monai = pytest.importorskip("monai.losses")
    theirs = monai.DiceLoss(softmax=True, to_onehot_y=True, squared_pred=squared, weight=WEIGHTS if weights else None)
    ours = like("monai", {"name": "dice", "squared": squared, "class_weights": weights}, weights=weights)
    assert_equal(ours, lambda z, t: theirs(z, t.unsqueeze(1)), *batch)


def test_monai_dice_with_an_image_that_is_all_ignored(make_batch: MakeBatch) -> None:
    monai = pytest.importorskip("monai.losses")
    logits, target = make_batch(images=3)
    target[1] = 255
    theirs = monai.DiceLoss(softmax=True, to_onehot_y=True, ignore_index=255)
    assert_equal(like("monai", "dice"), lambda z, t: theirs(z, t.unsqueeze(1)), logits, target)


@pytest.mark.parametrize("factors", [(0.5, 0.5), (0.2, 0.8)])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_monai_tversky(
    batch: tuple[Tensor, Tensor], labels: tuple[Tensor, Tensor], factors: tuple[float, float], activation: str
) -> None:
    monai = pytest.importorskip("monai.losses")
    alpha, beta = factors
    ours = like("monai", {"name": "tversky", "alpha": alpha, "beta": beta}, activation=activation)
    if activation == "sigmoid":
        assert_equal(ours, monai.TverskyLoss(sigmoid=True, alpha=alpha, beta=beta), *labels)
        return
    theirs = monai.TverskyLoss(softmax=True, to_onehot_y=True, alpha=alpha, beta=beta)
    assert_equal(ours, lambda z, t: theirs(z, t.unsqueeze(1)), *batch)


@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_monai_focal(
    batch: tuple[Tensor, Tensor], labels: tuple[Tensor, Tensor], weights: bool, activation: str
) -> None:
    monai = pytest.importorskip("monai.losses")
    options = {"gamma": 1.5, "weight": WEIGHTS if weights else None}
    ours = like("monai", {"name": "focal", "gamma": 1.5}, weights=weights, activation=activation)
    if activation == "sigmoid":
        assert_equal(ours, monai.FocalLoss(**options), *labels, rtol=1e-5)
        return
    theirs = monai.FocalLoss(use_softmax=True, to_onehot_y=True, **options)
    assert_equal(ours, lambda z, t: theirs(z, t.unsqueeze(1)), *batch, rtol=1e-5)


@pytest.mark.parametrize("weights", [False, True])
def test_monai_cross_entropy_and_dice_together(batch: tuple[Tensor, Tensor], weights: bool) -> None:
    monai = pytest.importorskip("monai.losses")
    weight = torch.tensor(WEIGHTS, dtype=torch.float64) if weights else None
    theirs = monai.DiceCELoss(softmax=True, to_onehot_y=True, weight=weight)
    section: dict[str, Any] = {"like": "monai", "terms": [{"name": "dice", "class_weights": weights}]}
    section["terms"].append({"name": "cross_entropy"})
    if weights:
        section["class_weights"] = {"scheme": "manual", "weights": WEIGHTS}
    assert_equal(build_loss(section, num_classes=4), lambda z, t: theirs(z, t.unsqueeze(1)), *batch)


@pytest.mark.parametrize("library", ["smp", "monai"])
def test_presets_are_exact_under_accumulation_where_the_terms_are(make_batch: MakeBatch, library: str) -> None:
    logits, target = make_batch(images=4)
    section = {"like": library, "terms": [{"name": "cross_entropy"}, {"name": "focal"}]}
    if library == "monai":
        section["terms"] += [{"name": "dice"}, {"name": "tversky"}]  # type: ignore[operator]
    loss = build_loss(section, num_classes=4)
    assert loss.inexact_under_accumulation is None
    normalizer = loss.normalizer(target.split(1))
    parts = [loss(z, t, normalizer=normalizer) for z, t in zip(logits.split(1), target.split(1), strict=True)]
    torch.testing.assert_close(torch.stack(parts).sum(), loss(logits, target), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"like": "torch", "terms": [{"name": "dice"}]}, "like: torch has cross_entropy, and no dice"),
        ({"like": "smp", "terms": [{"name": "focal_tversky"}]}, "no focal_tversky"),
        ({"like": "smp", "terms": [{"name": "dice", "smooth": 1.0}]}, "smooth of dice: decided by like: smp"),
        ({"like": "monai", "terms": [{"name": "dice", "per": "image"}]}, "per of dice: decided"),
        ({"like": "smp", "terms": [{"name": "dice", "squared": True}]}, "no squared form"),
        ({"like": "smp", "terms": [{"name": "focal", "gamma": [1.0, 2.0, 1.0, 1.0]}]}, "one for all classes"),
        ({"like": "smp", "terms": [{"name": "cross_entropy"}], "ohem": {"top_k": 0.5}}, "which have no ohem"),
        ({"like": "torch", "terms": [{"name": "cross_entropy"}], "prior": {}}, "which have no prior"),
    ],
)
def test_what_a_library_has_not_is_refused(section: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build_loss(section, num_classes=4)


@pytest.mark.parametrize(
    ("library", "term", "options", "words"),
    [
        ("smp", {"name": "cross_entropy"}, {}, "smp's cross entropy takes none"),
        ("monai", {"name": "tversky", "class_weights": True}, {}, "TverskyLoss takes none"),
        ("monai", {"name": "cross_entropy"}, {"activation": "sigmoid"}, "to the positives alone"),
        ("torch", {"name": "cross_entropy"}, {"reduction": "weighted"}, "reduction is decided by like: torch"),
    ],
)
def test_class_weights_that_a_library_has_not_are_refused(
    library: str, term: dict[str, Any], options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        like(library, term, weights=True, **options)
