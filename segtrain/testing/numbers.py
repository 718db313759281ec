"""One batch, many numbers: what the libraries' losses of one name say of the same predictions."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from segtrain.losses import build_loss
from segtrain.testing.libraries import IGNORE_INDEX, NUM_CLASSES
from segtrain.testing.probe import Loss, Probe

LIBRARIES = ("torch", "smp", "MONAI", "segtrain")
TEXT = """\
## One batch, many numbers

The losses of one name on the same batch of two images, each library with its defaults (Tversky with 0.3 for false
positives and 0.7 for false negatives). First every class occurs and every pixel is labelled; then one class is absent
and the right half of each image is ignored.
"""


def number_tables() -> str:
    """Return two Markdown tables of loss values, with a heading."""
    logits, labels = Probe(nn.CrossEntropyLoss(), NUM_CLASSES).batch(size=(16, 16))
    hard = labels.masked_fill(labels == NUM_CLASSES - 1, 0)
    hard[..., 8:] = IGNORE_INDEX
    return "\n".join([TEXT, _table("all labelled", logits, labels), _table("half ignored", logits, hard)])


def _table(head: str, logits: Tensor, labels: Tensor) -> str:
    lines = [f"| {head} | " + " | ".join(LIBRARIES) + " |", "|---|" + "---:|" * len(LIBRARIES)]
    ignoring = bool((labels == IGNORE_INDEX).any())
    for name, row in _losses(ignoring).items():
        cells = [_number(row[library], logits, labels) if library in row else "" for library in LIBRARIES]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _number(make: Callable[[], Loss | None], logits: Tensor, labels: Tensor) -> str:
    loss = make()
    if loss is None:
        return "no ignore_index"
    with torch.no_grad():
        return f"{float(loss(logits, labels)):.4f}"


def _losses(ignoring: bool) -> dict[str, dict[str, Callable[[], Loss | None]]]:
    smp = importlib.import_module("segmentation_models_pytorch.losses")
    monai = importlib.import_module("monai.losses")

    def theirs(name: str, **options: Any) -> Callable[[], Loss | None]:
        mode = {} if name == "SoftCrossEntropy" else {"mode": "multiclass"}
        return lambda: getattr(smp, f"{name}Loss")(**mode, ignore_index=IGNORE_INDEX, **options)

    def medical(
        name: str, *, activation: str = "softmax", ignores: bool = True, **options: Any
    ) -> Callable[[], Loss | None]:
        def make() -> Loss | None:
            if ignoring and not ignores:
                return None
            given = {"ignore_index": IGNORE_INDEX} if ignores else {}
            loss = getattr(monai, f"{name}Loss")(to_onehot_y=True, **{activation: True}, **given, **options)
            return lambda logits, target: loss(logits, target[:, None])

        return make

    def ours(**term: Any) -> Callable[[], Loss | None]:
        return lambda: build_loss({"terms": [term]}, num_classes=NUM_CLASSES, ignore_index=IGNORE_INDEX)

    return {
        "cross entropy": {
            "torch": lambda: nn.CrossEntropyLoss(ignore_index=IGNORE_INDEX),
            "smp": theirs("SoftCrossEntropy", smooth_factor=0.0),
            "segtrain": ours(name="cross_entropy"),
        },
        "focal, γ = 0": {
            "smp": theirs("Focal", gamma=0.0),
            "MONAI": medical("Focal", activation="use_softmax", gamma=0.0),
            "segtrain": ours(name="focal", gamma=0.0),
        },
        "focal, γ = 2": {
            "smp": theirs("Focal"),
            "MONAI": medical("Focal", activation="use_softmax"),
            "segtrain": ours(name="focal"),
        },
        "dice": {"smp": theirs("Dice"), "MONAI": medical("Dice"), "segtrain": ours(name="dice")},
        "Jaccard": {
            "smp": theirs("Jaccard"),
            "MONAI": medical("Dice", jaccard=True),
            "segtrain": ours(name="jaccard"),
        },
        "Tversky": {
            "smp": theirs("Tversky", alpha=0.3, beta=0.7),
            "MONAI": medical("Tversky", alpha=0.3, beta=0.7),
            "segtrain": ours(name="tversky"),
        },
        "generalised dice": {
            "MONAI": medical("GeneralizedDice", ignores=False),
            "segtrain": ours(name="generalized_dice"),
        },
        "Lovász": {"smp": theirs("Lovasz"), "segtrain": ours(name="lovasz")},
    }
