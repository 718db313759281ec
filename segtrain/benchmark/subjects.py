"""The losses that are measured against each other: torch's, ours, the plain form, smp's and MONAI's."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from segtrain.benchmark.cases import DTYPES, Case, TargetKind, class_weights
from segtrain.benchmark.plain import plain_loss
from segtrain.losses import build_loss

if TYPE_CHECKING:
    from segtrain.data import ClassFrequencies

LossFunction = Callable[[Tensor, Tensor], Tensor]
Group = Literal["torch", "segtrain", "plain", "others"]

BASELINE = "torch_ce"
HEADLINE = "ce_focal_dice_ohem"
GAMMA = 2.0
THRESHOLD = 0.7
CROSS_ENTROPY: dict[str, Any] = {"name": "cross_entropy"}
FOCAL = {"name": "focal", "gamma": GAMMA}
DICE = {"name": "dice"}
LOVASZ: dict[str, Any] = {"name": "lovasz"}


@dataclass(frozen=True)
class Subject:
    """A loss to measure.

    Attributes:
        label: its name in the table.
        make: builds the function (logits, target) -> scalar for a case.
        target: the form of the target that it takes; other forms than "stored" are made beforehand, uncounted.
        needs: a module that must be installed.
        compiled: torch.compile runs at the first call.
    """

    label: str
    group: Group
    make: Callable[[Case], LossFunction]
    target: TargetKind = "stored"
    needs: str | None = None
    compiled: bool = False

    def missing(self, device: str) -> str | None:
        """Say why it cannot be measured here, or None."""
        if self.needs is not None and find_spec(self.needs) is None:
            return f"{self.needs} is not installed"
        if self.compiled:
            return _missing_compiler(device)
        return None


def _ours(terms: list[dict[str, Any]], case: Case, *, weighted: bool = True, **settings: Any) -> LossFunction:
    section: dict[str, Any] = {"terms": terms, **settings}
    if weighted:
        section["class_weights"] = {"scheme": "manual", "weights": class_weights(case).tolist()}
    frequencies = _frequencies(case) if "prior" in section else None
    loss = build_loss(section, num_classes=case.classes, ignore_index=case.ignore_index, frequencies=frequencies)
    return loss.to(case.device)


def _frequencies(case: Case) -> ClassFrequencies:
    from segtrain.data import ClassFrequencies

    counts = np.arange(1, case.classes + 1, dtype=np.int64) * 1000
    images = np.full(case.classes, 10, np.int64)
    return ClassFrequencies(pixels=counts, images=images, image_pixels=counts * 10, ignored=0, num_images=10)


def _torch_ce(case: Case) -> LossFunction:
    weight = class_weights(case).to(DTYPES[case.dtype])
    return partial(functional.cross_entropy, weight=weight, ignore_index=case.ignore_index)


def _torch_ce_converting(case: Case) -> LossFunction:
    loss = _torch_ce(case)
    return lambda logits, target: loss(logits, target.long())


def _plain(case: Case) -> LossFunction:
    return partial(
        plain_loss,
        class_weights=class_weights(case),
        ignore_index=case.ignore_index,
        gamma=GAMMA,
        threshold=THRESHOLD,
    )


def _plain_compiled(case: Case) -> LossFunction:
    torch.compiler.reset()  # each case is a first one: shapes stay static
    compiled: LossFunction = torch.compile(_plain(case), dynamic=False, fullgraph=True)
    return compiled


def _smp(names: tuple[str, ...], case: Case) -> LossFunction:
    from segmentation_models_pytorch import losses

    known = {"dice": losses.DiceLoss, "focal": losses.FocalLoss, "lovasz": losses.LovaszLoss}
    settings = {"mode": "multiclass", "ignore_index": case.ignore_index}
    parts = [_torch_ce(case) if name == "ce" else known[name](**settings) for name in names]
    return lambda logits, target: torch.stack([part(logits, target) for part in parts]).sum()


def _monai(name: str, case: Case) -> LossFunction:
    from monai import losses  # type: ignore[import-not-found, unused-ignore]

    loss: LossFunction = getattr(losses, name)(softmax=True, to_onehot_y=True, batch=True)
    return loss


def _missing_compiler(device: str) -> str | None:
    if device.startswith("cuda"):
        return None if find_spec("triton") else "torch.compile needs triton, which is not installed"
    names = [os.environ.get("CXX", ""), "g++", "clang++", "c++"]
    if any(shutil.which(name) for name in names if name):
        return None
    return "torch.compile needs a C++ compiler on the CPU: none found (CXX, g++, clang++)"


def _row(label: str, terms: list[dict[str, Any]], **settings: Any) -> Subject:
    return Subject(label, "segtrain", partial(_ours, terms, **settings))


OHEM = {"threshold": THRESHOLD, "min_kept": 0.05}
SUBJECTS = {
    BASELINE: Subject("F.cross_entropy", "torch", _torch_ce, target="int64"),
    "torch_ce_converting": Subject("F.cross_entropy + .long()", "torch", _torch_ce_converting),
    "ce": _row("CE", [CROSS_ENTROPY]),
    "ce_smoothed": _row("CE, label smoothing", [CROSS_ENTROPY | {"label_smoothing": 0.1}]),
    "balanced_softmax": _row("balanced softmax", [CROSS_ENTROPY], weighted=False, prior={"tau": 1.0}),
    "focal": _row("focal", [FOCAL]),
    "dice": _row("dice", [DICE], weighted=False),
    "jaccard": _row("jaccard", [{"name": "jaccard"}], weighted=False),
    "tversky": _row("tversky", [{"name": "tversky"}], weighted=False),
    "lovasz": _row("lovasz", [LOVASZ], weighted=False),
    "lovasz_bins": _row("lovasz, 1024 bins", [LOVASZ | {"bins": 1024}], weighted=False),
    "ce_dice": _row("CE + dice", [CROSS_ENTROPY, DICE]),
    "ce_focal_dice": _row("CE + focal + dice", [CROSS_ENTROPY, FOCAL, DICE]),
    HEADLINE: _row("CE + focal + dice, OHEM", [CROSS_ENTROPY, FOCAL, DICE], ohem=OHEM),
    "ce_focal_dice_top_k": _row("CE + focal + dice, top-k", [CROSS_ENTROPY, FOCAL, DICE], ohem={"top_k": 0.25}),
    "balanced_softmax_dice": _row("balanced softmax + dice", [CROSS_ENTROPY, DICE], weighted=False, prior={"tau": 1.0}),
    "plain": Subject("plain autograd, OHEM", "plain", _plain),
    "plain_compiled": Subject("torch.compile of it", "plain", _plain_compiled, compiled=True),
    "smp_ce_dice": Subject("smp CE + Dice", "others", partial(_smp, ("ce", "dice")), target="int64"),
    "smp_ce_dice_focal": Subject(
        "smp CE + Dice + Focal", "others", partial(_smp, ("ce", "dice", "focal")), target="int64"
    ),
    "smp_lovasz": Subject("smp LovaszLoss", "others", partial(_smp, ("lovasz",)), target="int64"),
    "monai_dice_ce": Subject(
        "MONAI DiceCELoss", "others", partial(_monai, "DiceCELoss"), target="filled", needs="monai"
    ),
    "monai_dice_focal": Subject(
        "MONAI DiceFocalLoss", "others", partial(_monai, "DiceFocalLoss"), target="filled", needs="monai"
    ),
}
