"""Our losses against those of torch, smp and MONAI, where these compute the same formula."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import segmentation_models_pytorch.losses as smp
import torch
import torch.nn.functional as F
from torch import Tensor

from segtrain.losses import build_loss

NUM_CLASSES = 5
CLOSE = {"rtol": 1e-6, "atol": 1e-8}
FLOAT32 = {"rtol": 1e-4, "atol": 1e-7}
SHARES = torch.tensor([0.6, 0.2, 0.1, 0.07, 0.03])  # rare classes, and each in the batch
Loss = Callable[[Tensor, Tensor], Tensor]


@pytest.fixture(scope="module")
def monai() -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its imports
        return importlib.import_module("monai.losses")


def batch(seed: int, *, ignored: float = 0.0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Logits and a target in which every class occurs in every image."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(3, NUM_CLASSES, 14, 15, generator=generator, dtype=torch.float64)
    target = torch.multinomial(SHARES, 3 * 14 * 15, replacement=True, generator=generator).view(3, 14, 15)
    target[:, 0, :NUM_CLASSES] = torch.arange(NUM_CLASSES)
    drop = torch.rand(target.shape, generator=generator) < ignored
    drop[:, 0] = False
    return logits.to(dtype), target.masked_fill(drop, 255)


def agree(ours: Loss, theirs: Loss, logits: Tensor, target: Tensor, *, factor: float = 1.0, **bounds: Any) -> None:
    """Compare values and gradients: ours = factor × theirs."""
    found = []
    for loss, times in ((ours, 1.0), (theirs, factor)):
        leaf = logits.detach().requires_grad_()
        value = times * loss(leaf, target)
        found.append((value.detach().double(), torch.autograd.grad(value, leaf)[0].double()))
    torch.testing.assert_close(found[0][0], found[1][0], **bounds)
    torch.testing.assert_close(found[0][1], found[1][1], **bounds)


def ours(section: dict[str, Any] | None = None, **term: Any) -> Loss:
    return build_loss({"terms": [term], **(section or {})}, num_classes=NUM_CLASSES)


def channelled(loss: Loss) -> Loss:
    """MONAI's target is `[N, 1, H, W]`."""
    return lambda logits, target: loss(logits, target[:, None])


@pytest.mark.parametrize("ignored", [0.0, 0.3])
@pytest.mark.parametrize("seed", range(2))
def test_cross_entropy_is_that_of_torch(seed: int, ignored: float) -> None:
    def theirs(logits: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(logits, target, ignore_index=255)

    agree(ours(name="cross_entropy"), theirs, *batch(seed, ignored=ignored), **CLOSE)


@pytest.mark.parametrize("ignored", [0.0, 0.3])
def test_weighted_cross_entropy_is_that_of_torch(ignored: float) -> None:
    weights = [0.5, 1.0, 2.0, 0.0, 7.0]
    section = {"class_weights": {"scheme": "manual", "weights": weights}, "reduction": "weighted"}

    def theirs(logits: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(logits, target, torch.tensor(weights, dtype=logits.dtype), ignore_index=255)

    agree(ours(section, name="cross_entropy"), theirs, *batch(3, ignored=ignored), **CLOSE)


@pytest.mark.parametrize("ignored", [0.0, 0.3])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_is_monais_times_the_number_of_classes(monai: ModuleType, gamma: float, ignored: float) -> None:
    """MONAI averages over the classes too; ignored pixels count there for one class each, so the factor is then 1."""
    theirs = monai.FocalLoss(to_onehot_y=True, use_softmax=True, gamma=gamma, ignore_index=255 if ignored else None)
    logits, target = batch(4, ignored=ignored, dtype=torch.float32)
    factor = 1 if ignored else NUM_CLASSES
    agree(ours(name="focal", gamma=gamma), channelled(theirs), logits, target, factor=factor, **FLOAT32)


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("per", ["batch", "image"])
def test_dice_is_that_of_monai(monai: ModuleType, per: str, squared: bool) -> None:
    theirs = monai.DiceLoss(
        to_onehot_y=True, softmax=True, batch=per == "batch", squared_pred=squared, smooth_nr=0, smooth_dr=0
    )
    agree(ours(name="dice", per=per, squared=squared), channelled(theirs), *batch(5), **CLOSE)


@pytest.mark.parametrize("ignored", [0.0, 0.3])
def test_dice_of_smp_and_monai_and_ours_are_one(monai: ModuleType, ignored: float) -> None:
    logits, target = batch(6, ignored=ignored)
    options = {"ignore_index": 255, "smooth_nr": 0, "smooth_dr": 0}
    agree(ours(name="dice"), smp.DiceLoss("multiclass", ignore_index=255), logits, target, **CLOSE)
    theirs = monai.DiceLoss(to_onehot_y=True, softmax=True, batch=True, **options)
    agree(ours(name="dice"), channelled(theirs), logits, target, **CLOSE)


@pytest.mark.parametrize("ignored", [0.0, 0.3])
def test_jaccard_is_that_of_smp_and_monai(monai: ModuleType, ignored: float) -> None:
    logits, target = batch(7, ignored=ignored)
    agree(ours(name="jaccard"), smp.JaccardLoss("multiclass", ignore_index=255), logits, target, **CLOSE)
    options = {"ignore_index": 255, "smooth_nr": 0, "smooth_dr": 0, "batch": True, "jaccard": True}
    theirs = monai.DiceLoss(to_onehot_y=True, softmax=True, **options)
    agree(ours(name="jaccard"), channelled(theirs), logits, target, **CLOSE)


@pytest.mark.parametrize("per", ["batch", "image"])
@pytest.mark.parametrize(("alpha", "beta"), [(0.3, 0.7), (1.0, 0.2)])
def test_tversky_is_that_of_monai(monai: ModuleType, alpha: float, beta: float, per: str) -> None:
    options = {"alpha": alpha, "beta": beta, "batch": per == "batch", "smooth_nr": 0, "smooth_dr": 0}
    theirs = monai.TverskyLoss(to_onehot_y=True, softmax=True, **options)
    agree(ours(name="tversky", alpha=alpha, beta=beta, per=per), channelled(theirs), *batch(8), **CLOSE)


@pytest.mark.parametrize("per", ["batch", "image"])
def test_generalized_dice_is_that_of_monai(monai: ModuleType, per: str) -> None:
    theirs = monai.GeneralizedDiceLoss(to_onehot_y=True, softmax=True, batch=per == "batch", smooth_nr=0, smooth_dr=0)
    # MONAI's weights 1 / T² are float32 whatever the logits are
    agree(ours(name="generalized_dice", per=per), channelled(theirs), *batch(9), **FLOAT32)
