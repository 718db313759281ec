"""The combined loss module: terms made from shared class sums (or passes of their own), weighted and added."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from segtrain.config.loss import LossConfig
from segtrain.losses.accumulation import Normalizer
from segtrain.losses.class_sums import ClassSums, check_labels
from segtrain.losses.groups import group_terms, read_group
from segtrain.losses.hard_examples import hard_examples
from segtrain.losses.heads import Head, as_read, fit_head, split_heads
from segtrain.losses.own_terms import BoundaryOwnTerm, check_given
from segtrain.losses.priors import margin_of, shift_of
from segtrain.losses.schedules import weight_at
from segtrain.losses.table import Columns, describe, distinct_labels, reasons
from segtrain.losses.term import ClassWeights, LossInputs, OwnPassTerm, SumsTerm, part_of_window
from segtrain.losses.terms import Setting, make_term

Reduce = Callable[[Tensor], Tensor]
Observe = Callable[[ClassSums], None]


class SegmentationLoss(nn.Module):
    """A weighted sum of loss terms; `build_loss` makes it.

    Every term is additive statistics, then a value. `statistics` gives those of a batch (one flat float64 tensor,
    small: a few numbers for each class), `value` makes the loss of them. They may be added over whatever the loss is to
    cover before `value` is taken, and the two hooks of `terms` and `forward` do that:

    - `reduce` sums the statistics over ranks, once for all terms. With an all-reduce whose backward is an all-reduce,
      every rank gets the loss of the whole batch, and DDP's mean of the gradients is its exact gradient.
    - `rest` is what the other micro-batches of an accumulation window add up to (detached): every micro-batch then
      gives the loss of the whole window and its own part of the gradient, exact for all terms.
    - `normalizer` is the cheaper way where a term is a sum over pixels or images divided by a count: see `normalizer`.

    Attributes:
        config: the validated section.
        class_weights: float64 buffer `[C]`, or None.
        shift: float64 buffer `[C]`, added to the logits that the pixel terms read (prior), or None.
        margin: float64 buffer `[C]`, taken from the label's logit in the pixel terms, or None.
        labels: the keys of `terms`, in the order of the configuration.
        num_reads: how often one head's logits are read forward: once for each group of terms that can share class
            sums, and once for each term with a pass of its own.
        counts_predictions: whether a read of softmax is there that can count the largest logits, see `also` of `terms`.
        needs_teacher: whether `teacher_logits` must be given.
        distance_classes: the classes whose maps `distances` hold, in order; None without a boundary term.
    """

    class_weights: Tensor | None
    shift: Tensor | None
    margin: Tensor | None

    def __init__(
        self,
        config: LossConfig,
        *,
        num_classes: int,
        ignore_index: int = 255,
        class_weights: Tensor | None = None,
        log_prior: Tensor | None = None,
        margin: Tensor | None = None,
        class_names: Sequence[str] | None = None,
        shares: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.class_names = None if class_names is None else tuple(class_names)
        self.shares = shares
        self.epoch = 0.0
        self.labels = distinct_labels(config.terms)
        self.mining = None if config.ohem is None else hard_examples(config.ohem)
        self.register_buffer("class_weights", class_weights)
        self.register_buffer("shift", shift_of(config, log_prior))
        self.register_buffer("margin", margin_of(config, margin))
        setting = Setting(config, num_classes, self.class_names)
        self._terms = tuple(make_term(term, setting) for term in config.terms)
        own = {index: term for index, term in enumerate(self._terms) if hasattr(term, "own_statistics")}
        self._own = cast(Mapping[int, OwnPassTerm], own)
        sums = {index: term for index, term in enumerate(self._terms) if index not in own}
        self._sums = cast(Mapping[int, SumsTerm], sums)
        self._groups = group_terms(self._sums, shifts=config.prior is not None or config.margin is not None)
        self._counting = next((group for group in self._groups if group.activation == "softmax"), None)
        self.counts_predictions = self._counting is not None
        self.num_reads = len(self._groups) + len(own)
        self.needs_teacher = any(term.name == "distillation" for term in config.terms)
        boundaries = [term for term in self._terms if isinstance(term, BoundaryOwnTerm)]
        self.distance_classes = boundaries[0].classes if boundaries else None

    def forward(
        self,
        logits: Head | Sequence[Head],
        target: Tensor,
        *,
        pixel_weight: Tensor | None = None,
        teacher_logits: Tensor | None = None,
        distances: Tensor | None = None,
        normalizer: Normalizer | None = None,
        reduce: Reduce | None = None,
        rest: Tensor | None = None,
    ) -> Tensor:
        """Return Σ weight × term: a scalar, float32 (float64 for float64 logits). Arguments as for `terms`."""
        return self.terms(
            logits,
            target,
            pixel_weight=pixel_weight,
            teacher_logits=teacher_logits,
            distances=distances,
            normalizer=normalizer,
            reduce=reduce,
            rest=rest,
        )["total"]

    def terms(
        self,
        logits: Head | Sequence[Head],
        target: Tensor,
        *,
        pixel_weight: Tensor | None = None,
        teacher_logits: Tensor | None = None,
        distances: Tensor | None = None,
        normalizer: Normalizer | None = None,
        reduce: Reduce | None = None,
        rest: Tensor | None = None,
        observe: Observe | None = None,
        also: Sequence[str] = (),
    ) -> dict[str, Tensor]:
        """Return each term's value before its weight, by label, and their weighted sum as "total".

        With several heads the labels are those of the main one, `auxiliary_1` ... the totals of the others, and the
        total is Σ head weight × total of the head.

        Args:
            logits: float `[N, C, H, W]`, any strides; with `auxiliary` a list of `[N, C, h_i, w_i]`. With
                `fused_upsample` of any size: they stand for their bilinear upsampling to the target's, or as
                `CoarseLogits` say.
            target: integer `[N, H, W]`. With `activation: sigmoid` `[N, C, H, W]` (or `[N, H, W]` for C = 1) of 0, 1
                and `ignore_index`; labels `[N, H, W]` are then taken as one class that is there and C − 1 that are not.
            pixel_weight: float `[N, H, W]`, a constant factor of each pixel in every sum that counts pixels; not with
                lovasz and cl_dice, which sort pixels or draw lines through them.
            teacher_logits: float `[N, C, H, W]` of the distillation term's teacher.
            distances: float `[N, K, H, W]` of the boundary term's classes; made from the target where not given.
            normalizer: of the accumulation window that this batch belongs to: the values are then this batch's part,
                to be summed over the window (not averaged). Under `reduce` it must be `reduced`, too.
            reduce: sums a tensor over ranks; every rank must call it equally often.
            rest: Σ of `statistics` over the other micro-batches of this rank's window, detached, without `reduce`.
                The values are those of the whole window (not to be summed), the gradient is this batch's part.
            observe: is given the class sums of each read of the main head, for telemetry.
            also: names of further sums for `observe`, PREDICTIONS, which the first read of a softmax tells.

        Raises:
            ValueError: shapes or types that do not fit, or both `normalizer` and `rest`.
            ConfigError: heads, teacher, distances or pixel weights that the configuration does not go with.
            DataError: labels out of range (on CUDA only with `check_labels: true`).
        """
        if normalizer is not None and rest is not None:
            raise ValueError("give normalizer (one pass) or rest (two passes), not both")
        statistics = self.statistics(
            logits,
            target,
            pixel_weight=pixel_weight,
            teacher_logits=teacher_logits,
            distances=distances,
            observe=observe,
            also=also,
        )
        statistics = statistics if rest is None else statistics + rest
        statistics = statistics if reduce is None else reduce(statistics)
        first = logits if isinstance(logits, Head) else logits[0]
        dtype = torch.promote_types(first.dtype, torch.float32)
        return {name: value.to(dtype) for name, value in self.value(statistics, normalizer=normalizer).items()}

    def statistics(
        self,
        logits: Head | Sequence[Head],
        target: Tensor,
        *,
        pixel_weight: Tensor | None = None,
        teacher_logits: Tensor | None = None,
        distances: Tensor | None = None,
        observe: Observe | None = None,
        also: Sequence[str] = (),
    ) -> Tensor:
        """Return what the terms are made of, float64 `[K]`: it may be added over micro-batches and ranks.

        Arguments as for `terms`. K depends on the configuration and the number of heads only.
        """
        check_given(self.config.terms, pixel_weight=pixel_weight, teacher_logits=teacher_logits, distances=distances)
        if self.config.check_labels and target.is_cuda:  # on the CPU class_sums always looks
            self._check_labels(target)
        parts: list[Tensor] = []
        for given in split_heads(logits, self.config.auxiliary):
            head = as_read(given, target, fused_upsample=self.config.fused_upsample)
            if len(head.shape) == 4 and head.shape[1] != self.num_classes:
                raise ValueError(f"logits have {head.shape[1]} channels, expected num_classes = {self.num_classes}")
            resized, labels, weight = fit_head(
                head,
                target,
                pixel_weight,
                config=self.config,
                is_main=not parts,
                num_classes=self.num_classes,
                ignore_index=self.ignore_index,
            )
            inputs = LossInputs(resized, labels, self.ignore_index, weight, teacher_logits, distances)
            parts += self._head_statistics(inputs, *((None, ()) if parts else (observe, also)))
        return torch.cat([part.flatten() for part in parts])

    def value(self, statistics: Tensor, *, normalizer: Normalizer | None = None) -> dict[str, Tensor]:
        """Return the float64 terms and their total that `statistics`, added over what they should cover, stand for."""
        sizes = [math.prod(term.shape) for term in self._terms]
        heads = statistics.view(-1, sum(sizes)).unbind()
        weights = self._weights_in_force()
        named: dict[str, Tensor] = {}
        totals = []
        for number, head in enumerate(heads):
            counted = normalizer if number == 0 or not self._resizes_target else None
            values = [
                part_of_window(
                    term, part.view(term.shape), weights, counted, 1 if normalizer is None else normalizer.num_batches
                )
                for term, part in zip(self._terms, torch.split(head, sizes), strict=True)
            ]
            scales = [weight_at(term.weight, self.epoch) for term in self.config.terms]
            totals.append(torch.stack([scale * value for scale, value in zip(scales, values, strict=True)]).sum())
            named |= dict(zip(self.labels, values, strict=True)) if number == 0 else {f"auxiliary_{number}": totals[-1]}
        if self.config.auxiliary is not None:
            pairs = zip(self.config.auxiliary.weights, totals, strict=False)  # a lone main head in evaluation
            totals = [weight * total for weight, total in pairs]
        return named | {"total": torch.stack(totals).sum()}

    def normalizer(self, targets: Iterable[Tensor], *, pixel_weights: Iterable[Tensor] | None = None) -> Normalizer:
        """Count the targets (each as for `terms`) of an accumulation window of micro-batches.

        `loss(..., normalizer=n)` for each micro-batch, its gradients summed, is then the gradient of the loss of the
        whole window in one batch; see `inexact_under_accumulation` for what is not.
        """
        return Normalizer.count(
            targets, num_classes=self.num_classes, ignore_index=self.ignore_index, pixel_weights=pixel_weights
        )

    @property
    def inexact_under_accumulation(self) -> str | None:
        """Say which terms differ from the whole window's under accumulation, or None when all are exact."""
        texts = reasons(self.labels, [term.inexact for term in self._terms])
        if self._resizes_target:
            texts.append("auxiliary heads: counted within each micro-batch (resize: logits is exact)")
        return "; ".join(texts) or None

    @property
    def inexact_with_rest(self) -> str | None:
        """Say which terms differ from the whole window's even with `rest` (or across ranks), or None."""
        return "; ".join(reasons(self.labels, [term.apart for term in self._terms])) or None

    def set_progress(self, step: int, epoch: float) -> None:
        """Hear where training stands, in optimizer steps and epochs done (fractions count); at first both are 0.

        Weight schedules and deferred class weights are functions of the epoch alone: a resumed run, told where it
        stands, goes on exactly.
        """
        self.epoch = float(epoch)

    def describe(self) -> str:
        """Return a plain text of the terms, the weights, priors and margins, in lines of at most 80 columns."""
        columns = Columns(
            names=self.class_names or tuple(str(c) for c in range(self.num_classes)),
            shares=self.shares,
            weights=None if self.class_weights is None else self.class_weights.tolist(),
            shift=None if self.shift is None else self.shift.tolist(),
            margin=None if self.margin is None else self.margin.tolist(),
        )
        return describe(self.config, labels=self.labels, columns=columns, num_reads=self.num_reads)

    @property
    def _resizes_target(self) -> bool:
        return self.config.auxiliary is not None and self.config.auxiliary.resize == "target"

    def _weights_in_force(self) -> ClassWeights:
        if self.class_weights is None or self.epoch < self.config.class_weights.start_epoch:
            return ClassWeights(None)
        return ClassWeights(self.class_weights.double())

    def _head_statistics(self, inputs: LossInputs, observe: Observe | None, also: Sequence[str]) -> list[Tensor]:
        parts: dict[int, Tensor] = {}
        scale = 1.0 if self.config.margin is None else self.config.margin.scale
        read = partial(read_group, inputs=inputs, shift=self.shift, margin=self.margin, scale=scale, mining=self.mining)
        for group in self._groups:
            sums = read(group, also=also if group is self._counting else ())
            parts |= {index: self._sums[index].statistics(sums, inputs) for index in group.members}
            if observe is not None:
                observe(sums)
        parts |= {index: term.own_statistics(inputs) for index, term in self._own.items()}
        return [parts[index] for index in range(len(self._terms))]

    def _check_labels(self, target: Tensor) -> None:
        labels = 2 if target.dim() == 4 or self.num_classes == 1 else self.num_classes
        check_labels(target, num_classes=labels, ignore_index=self.ignore_index)
