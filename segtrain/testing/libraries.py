"""The losses of torch, segmentation-models-pytorch, MONAI and segtrain, each with how it is called here."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from segtrain.errors import ConfigError
from segtrain.losses import build_loss
from segtrain.testing.probe import Loss

NUM_CLASSES = 4
IGNORE_INDEX = 255
PACKAGES = {"torch": "torch", "smp": "segmentation-models-pytorch", "MONAI": "monai"}
Weights = Sequence[float] | None


@dataclass(frozen=True)
class Subject:
    """A loss of a library: `make(weights, num_classes)` builds it, and `call` is how in words of code."""

    library: str
    name: str
    call: str
    make: Callable[[Weights, int], Loss]
    ignore_index: int | None = IGNORE_INDEX
    takes_weights: bool = False

    def loss(self) -> Loss:
        """Return the unweighted loss for four classes."""
        return self.make(None, NUM_CLASSES)

    def for_classes(self, num_classes: int) -> Loss:
        """Return the unweighted loss for this number of classes."""
        return self.make(None, num_classes)

    def weighted(self, weights: Sequence[float]) -> Loss:
        """Return the loss for four classes with these weights."""
        return self.make(weights, NUM_CLASSES)


def versions() -> dict[str, str]:
    """Return the installed version of each library, without the name of a build.

    Raises:
        ConfigError: MONAI is not installed.
    """
    try:
        return {library: version(package).partition("+")[0] for library, package in PACKAGES.items()}
    except ImportError as error:
        raise ConfigError(
            f"the comparison of losses needs {error.name}, which is not installed: pip install {error.name}, or "
            "segtrain with its test extra."
        ) from error


def subjects() -> tuple[Subject, ...]:
    """Return all losses that the page compares, library by library."""
    return (*_torch(), *_smp(), *_monai(), *_ours())


def _torch() -> tuple[Subject, ...]:
    def cross_entropy(weights: Weights, _: int) -> Loss:
        return nn.CrossEntropyLoss(weight=_tensor(weights), ignore_index=IGNORE_INDEX)

    call = "CrossEntropyLoss(ignore_index=255)(logits, target)"
    return (Subject("torch", "CrossEntropy", call, cross_entropy, takes_weights=True),)


def _smp() -> tuple[Subject, ...]:
    losses = importlib.import_module("segmentation_models_pytorch.losses")

    def subject(
        name: str, *, takes_weights: bool = False, arguments: str = 'mode="multiclass", ', **options: Any
    ) -> Subject:
        def make(weights: Weights, _: int) -> Loss:
            given = {} if weights is None else {"class_weights": list(weights)}
            loss: Loss = getattr(losses, f"{name}Loss")(**options, **given, ignore_index=IGNORE_INDEX)
            return loss

        call = f"{name}Loss({arguments}ignore_index=255)(logits, target)"
        return Subject("smp", name, call, make, takes_weights=takes_weights)

    weighted = [
        subject(name, takes_weights=True, mode="multiclass") for name in ("Focal", "Dice", "Jaccard", "Tversky")
    ]
    soft = subject("SoftCrossEntropy", arguments="smooth_factor=0.0, ", smooth_factor=0.0)
    return (soft, *weighted, subject("Lovasz", mode="multiclass"))


def _monai() -> tuple[Subject, ...]:
    losses = importlib.import_module("monai.losses")

    def subject(name: str, *, ignores: bool, takes_weights: bool = False, activation: str = "softmax") -> Subject:
        def make(weights: Weights, _: int) -> Loss:
            options: dict[str, Any] = {"to_onehot_y": True, activation: True}
            if ignores:
                options["ignore_index"] = IGNORE_INDEX
            if weights is not None:
                options["weight"] = _tensor(weights)
            loss = getattr(losses, f"{name}Loss")(**options)
            return lambda logits, target: loss(logits, target[:, None])

        ignoring = ", ignore_index=255" if ignores else ""
        call = f"{name}Loss(to_onehot_y=True, {activation}=True{ignoring})(logits, target[:, None])"
        ignore_index = IGNORE_INDEX if ignores else None
        return Subject("MONAI", name, call, make, ignore_index=ignore_index, takes_weights=takes_weights)

    return (
        subject("Focal", ignores=True, takes_weights=True, activation="use_softmax"),
        subject("Dice", ignores=True, takes_weights=True),
        subject("Tversky", ignores=True),
        subject("GeneralizedDice", ignores=False),
        subject("DiceCE", ignores=False, takes_weights=True),
        subject("DiceFocal", ignores=False, takes_weights=True),
    )


def _ours() -> tuple[Subject, ...]:
    def subject(*terms: dict[str, Any], name: str | None = None) -> Subject:
        on_pixels = any(term["name"] in ("cross_entropy", "focal") for term in terms)
        on_regions = all(term["name"] in ("dice", "jaccard", "tversky") for term in terms)

        def make(weights: Weights, num_classes: int) -> Loss:
            section: dict[str, Any] = {"terms": list(terms)}
            if weights is not None:
                section["class_weights"] = {"scheme": "manual", "weights": list(weights)}
                if not on_pixels:
                    section["terms"] = [{**term, "class_weights": True} for term in terms]
            return build_loss(section, num_classes=num_classes, ignore_index=IGNORE_INDEX)

        listed = ", ".join("{" + ", ".join(f'"{k}": {_code(v)}' for k, v in term.items()) + "}" for term in terms)
        call = f'build_loss({{"terms": [{listed}]}}, num_classes=4)(logits, target)'
        label = name or " + ".join(term["name"] for term in terms)
        return Subject("segtrain", label, call, make, takes_weights=on_pixels or on_regions)

    return (
        subject({"name": "cross_entropy"}),
        subject({"name": "focal"}),
        subject({"name": "dice"}),
        subject({"name": "dice", "per": "image"}, name="dice per image"),
        subject({"name": "jaccard"}),
        subject({"name": "tversky"}),
        subject({"name": "generalized_dice"}),
        subject({"name": "lovasz"}),
        subject({"name": "cross_entropy"}, {"name": "dice"}),
    )


def _code(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)


def _tensor(weights: Weights) -> Tensor | None:
    return None if weights is None else torch.tensor(weights)
