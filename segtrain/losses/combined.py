"""The combined loss module: terms made from shared class sums, weighted and added."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from segtrain.config.loss import LossConfig
from segtrain.config.loss_terms import CrossEntropyTerm, DiceTerm, FocalTerm, TermConfig
from segtrain.errors import ConfigError
from segtrain.losses.accumulation import Normalizer
from segtrain.losses.class_sums import ClassSums, check_labels, class_sums
from segtrain.losses.hard_examples import hard_examples
from segtrain.losses.pixel import pixel_mean
from segtrain.losses.region import dice, dice_sums
from segtrain.losses.table import describe


class SegmentationLoss(nn.Module):
    """A weighted sum of loss terms; `build_loss` makes it. All terms come from one softmax for each focal γ.

    Attributes:
        config: the validated section.
        class_weights: float64 buffer `[C]`, or None.
        labels: the keys of `terms`, in the order of the configuration.
        num_reads: how many softmaxes of the logits one call takes.
    """

    class_weights: Tensor | None

    def __init__(
        self,
        config: LossConfig,
        *,
        num_classes: int,
        ignore_index: int = 255,
        class_weights: Tensor | None = None,
        class_names: Sequence[str] | None = None,
        shares: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        _refuse_what_is_not_built(config)
        self.config = config
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.class_names = None if class_names is None else tuple(class_names)
        self.shares = shares
        self.labels = _distinct_labels(config.terms)
        self.mining = None if config.ohem is None else hard_examples(config.ohem)
        self.register_buffer("class_weights", class_weights)
        self._groups = _groups(config.terms)
        self.num_reads = len(self._groups)

    def forward(
        self,
        logits: Tensor,
        target: Tensor,
        *,
        pixel_weight: Tensor | None = None,
        teacher_logits: Tensor | None = None,
        normalizer: Normalizer | None = None,
    ) -> Tensor:
        """Return Σ weight × term: a scalar, float32 (float64 for float64 logits). Arguments as for `terms`."""
        if teacher_logits is not None:
            raise ConfigError("teacher_logits were given, but no term of this loss uses them: drop them.")
        return self.terms(logits, target, pixel_weight=pixel_weight, normalizer=normalizer)["total"]

    def terms(
        self,
        logits: Tensor,
        target: Tensor,
        *,
        pixel_weight: Tensor | None = None,
        normalizer: Normalizer | None = None,
    ) -> dict[str, Tensor]:
        """Return each term's value before its weight, by label, and their weighted sum as "total".

        Args:
            logits: float `[N, C, H, W]`, any strides.
            target: integer `[N, H, W]`.
            pixel_weight: float `[N, H, W]`, a constant factor of each pixel in every sum.
            normalizer: of the accumulation window that this batch belongs to: the values are then this batch's part,
                to be summed over the window (not averaged).

        Raises:
            ValueError: shapes or types that do not fit.
            DataError: labels out of range (on CUDA only with `check_labels: true`).
        """
        if logits.dim() == 4 and logits.shape[1] != self.num_classes:
            raise ValueError(f"logits have {logits.shape[1]} channels, expected num_classes = {self.num_classes}")
        if self.config.check_labels and target.is_cuda:  # on the CPU class_sums always looks
            check_labels(target, num_classes=self.num_classes, ignore_index=self.ignore_index)
        values: dict[int, Tensor] = {}
        for gamma, (wanted, members) in self._groups.items():
            sums = class_sums(
                logits,
                target,
                ignore_index=self.ignore_index,
                gamma=gamma,
                pixel_weight=pixel_weight,
                keep=self.mining,
                wanted=wanted,
            )
            values |= {index: self._term(self.config.terms[index], sums, normalizer) for index in members}
        dtype = torch.promote_types(logits.dtype, torch.float32)
        total = torch.stack([term.weight * values[index] for index, term in enumerate(self.config.terms)]).sum()
        named = {label: values[index].to(dtype) for index, label in enumerate(self.labels)}
        return named | {"total": total.to(dtype)}

    def _term(self, term: TermConfig, sums: ClassSums, normalizer: Normalizer | None) -> Tensor:
        weights = None if self.class_weights is None else self.class_weights.double()
        if isinstance(term, DiceTerm):
            weights = weights if term.class_weights else None
            window = None
            if normalizer is not None and term.per == "image":
                window = normalizer.region_weight(absent_classes=term.absent_classes, class_weights=weights)
            value = dice(
                sums,
                squared=term.squared,
                per=term.per,
                smooth=term.smooth,
                absent_classes=term.absent_classes,
                class_weights=weights,
                total_weight=window,
            )
            return value if normalizer is None or window is not None else value / normalizer.num_batches
        loss = sums.focal if isinstance(term, FocalTerm) else sums.cross_entropy
        assert loss is not None
        reduction = self.config.reduction
        if normalizer is None or self.mining is not None:
            value = pixel_mean(loss, sums.kept, class_weights=weights, reduction=reduction)
            return value if normalizer is None else value / normalizer.num_batches
        return pixel_mean(loss, normalizer.pixels, class_weights=weights, reduction=reduction)

    def normalizer(self, targets: Iterable[Tensor], *, pixel_weights: Iterable[Tensor] | None = None) -> Normalizer:
        """Count the targets (each integer `[N, H, W]`) of an accumulation window of micro-batches.

        `loss(..., normalizer=n)` for each micro-batch, its gradients summed, is then the gradient of the loss of the
        whole window in one batch; see `inexact_under_accumulation` for what is not.
        """
        return Normalizer.count(
            targets, num_classes=self.num_classes, ignore_index=self.ignore_index, pixel_weights=pixel_weights
        )

    @property
    def inexact_under_accumulation(self) -> str | None:
        """Say which terms differ from the whole window's under accumulation, or None when all are exact."""
        reasons = []
        if self.mining is not None:
            reasons.append("hard examples are ranked within each micro-batch")
        batch = [
            label
            for label, term in zip(self.labels, self.config.terms, strict=True)
            if isinstance(term, DiceTerm) and term.per == "batch"
        ]
        if batch:
            reasons.append(f"{', '.join(batch)}: overlaps are taken within each micro-batch (per: image is exact)")
        return "; ".join(reasons) or None

    def set_progress(self, step: int, epoch: float) -> None:
        """Hear where training stands, in optimizer steps and epochs done: what every training loss is told.

        The weights of these terms are constant, so nothing follows from it; a loss with scheduled weights overrides it.
        """

    def describe(self) -> str:
        """Return a plain text of the terms and the derived class weights, in lines of at most 80 columns."""
        weights = None if self.class_weights is None else self.class_weights.tolist()
        names = self.class_names or tuple(str(c) for c in range(self.num_classes))
        return describe(self.config, labels=self.labels, class_names=names, weights=weights, shares=self.shares)


def _refuse_what_is_not_built(config: LossConfig) -> None:
    """Raise for what the schema spells and this module does not compute yet: nothing is silently ignored."""
    found = [term.name for term in config.terms if not isinstance(term, CrossEntropyTerm | FocalTerm | DiceTerm)]
    found += [key for key in ("like", "prior", "margin", "auxiliary") if getattr(config, key) is not None]
    found += ["activation: sigmoid"] if config.activation == "sigmoid" else []
    found += ["class_weights.start_epoch"] if config.class_weights.start_epoch else []
    found += ["a weight schedule" for term in config.terms if not isinstance(term.weight, float)]
    found += ["label_smoothing" for term in config.terms if getattr(term, "label_smoothing", 0)]
    found += ["gamma by class" for term in config.terms if not isinstance(getattr(term, "gamma", 2.0), float)]
    if found:
        raise ConfigError(f"the loss section asks for {', '.join(found)}, which this version cannot compute yet.")


def _distinct_labels(terms: Sequence[TermConfig]) -> tuple[str, ...]:
    """Name the terms: their label, else their name, numbered from the second on."""
    taken = {term.label for term in terms if term.label is not None}
    labels = []
    for term in terms:
        label, number = term.label or term.name, 1
        while term.label is None and label in taken:
            number += 1
            label = f"{term.name}_{number}"
        taken.add(label)
        labels.append(label)
    return tuple(labels)


def _groups(terms: Sequence[TermConfig]) -> dict[float, tuple[tuple[str, ...], list[int]]]:
    """Group the terms that can share class sums: γ -> (wanted sums, indices of the terms)."""
    gammas = [term.gamma for term in terms if isinstance(term, FocalTerm)]
    shared = gammas[0] if gammas else 2.0  # what has no γ joins the first that has one
    members: dict[float, list[int]] = {}
    wanted: dict[float, set[str]] = {}
    for index, term in enumerate(terms):
        gamma = term.gamma if isinstance(term, FocalTerm) else shared
        members.setdefault(gamma, []).append(index)
        needs = dice_sums(term.squared) if isinstance(term, DiceTerm) else (term.name,)
        wanted.setdefault(gamma, set()).update(needs)
    return {gamma: (tuple(sorted(wanted[gamma])), members[gamma]) for gamma in members}
