"""What training shows of each class between two log lines: how much of it was seen, its loss, and its IoU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from segtrain.distributed import mean_over_ranks
from segtrain.kernels.confusion import confusion_update
from segtrain.kernels.triton_available import triton_reason
from segtrain.kernels.upsample import CoarseLogits
from segtrain.losses import SegmentationLoss
from segtrain.losses.class_sums import PREDICTIONS, ClassSums


class Telemetry:
    """Adds up, on the device, what the reads of the loss found anyway; nothing waits for the device before `values`.

    Exposure and loss are of every batch. So is the IoU where the kernels on a GPU count the largest logits in the read
    of the loss. Elsewhere that is a read of its own, and the IoU is of the batches of the step that is logged alone, as
    it is with a loss that reads no softmax.
    """

    def __init__(self, class_names: Sequence[str], *, ignore_index: int, every: int, total_steps: int) -> None:
        self._names = tuple(class_names)
        self._ignore_index = ignore_index
        self._every = every
        self._total_steps = total_steps
        self._sums: dict[str, Tensor] = {}
        self._seen_batch = self._seen_loss = False
        self._batch: tuple[Any, Tensor, bool] | None = None

    def see(self, output: Any, target: Tensor, *, step: int) -> None:
        """Take in what the model made of a batch, and the target; `step` counts from 1. `hooks` comes next.

        output: logits `[N, C, h, w]`, coarse ones, or a list of which the first is the main head's. Multi-label targets
        `[N, C, H, W]` and single classes have no argmax, and so no IoU here.
        """
        self._seen_batch = self._seen_loss = False
        is_logged = step % self._every == 0 or step == self._total_steps
        has_largest = target.dim() == 3 and len(self._names) > 1
        self._batch = (output, target, is_logged) if has_largest else None

    def hooks(self, loss: object) -> dict[str, Any]:
        """Return the arguments by which the loss of the batch tells what it reads: none for one that is not ours."""
        batch, self._batch = self._batch, None
        counts = isinstance(loss, SegmentationLoss) and loss.counts_predictions
        also: tuple[str, ...] = ()
        if batch is not None and counts and (batch[2] or _is_free(batch[1].device)):
            also = PREDICTIONS
        elif batch is not None and not counts and batch[2]:
            self._look(batch[0], batch[1])
        return {"observe": self.observe, "also": also} if isinstance(loss, SegmentationLoss) else {}

    def observe(self, sums: ClassSums) -> None:
        """Take in the sums of a batch's main head; `SegmentationLoss.terms` calls it for each of its reads."""
        loss, kept = sums.cross_entropy, sums.kept
        if loss is None:
            loss = sums.focal
        if not self._seen_batch:
            valid = sums.pixels.sum(1, keepdim=True) if sums.negatives is None else sums.pixels + sums.negatives
            self._add("pixels", sums.pixels)
            self._add("valid", valid.expand_as(sums.pixels))
            self._seen_batch = True
        if loss is not None and not self._seen_loss:
            self._add("loss", loss)
            self._add("kept", kept)
            self._seen_loss = True
        if sums.predicted is not None and sums.correct is not None:
            self._add("correct", sums.correct)
            self._add("either", sums.predicted + sums.pixels - sums.correct)

    def _look(self, output: Any, target: Tensor) -> None:
        """Count the largest logits in a read of their own."""
        logits = output[0] if isinstance(output, list | tuple) else output
        size = None if isinstance(logits, CoarseLogits) else (target.shape[1], target.shape[2])
        counts = confusion_update(
            logits, target, num_classes=len(self._names), ignore_index=self._ignore_index, size=size
        )
        matrix = counts.matrix.sum(0)
        self._add("correct", matrix.diagonal().unsqueeze(0))
        self._add("either", (matrix.sum(0) + matrix.sum(1) - matrix.diagonal()).unsqueeze(0))

    def values(self) -> dict[str, float]:
        """Return the numbers by name since the last call, and begin anew; waits for the device, once.

        They are of all ranks, each of which must ask.

        `exposure/<class>`: the share of the class among the valid pixels. `class_loss/<class>`: the mean cross entropy
        of its pixels (focal loss where there is no cross entropy), of those that mining kept, as it is trained, with
        prior and margin. `iou/<class>` and `miou`: of the raw logits, of all batches since on a GPU with kernels, else
        of the step just made. NaN where the class was not there.
        """
        # shares of a mean are those of the sum
        found = mean_over_ranks(torch.stack(list(self._sums.values()))) if self._sums else torch.empty(0)
        found = found.cpu()
        sums = dict(zip(self._sums, found, strict=True))
        self._clear()
        values: dict[str, float] = {}
        for name, part, whole in (
            ("exposure", "pixels", "valid"),
            ("class_loss", "loss", "kept"),
            ("iou", "correct", "either"),
        ):
            if part not in sums:
                continue
            ratio = torch.where(sums[whole] > 0, sums[part] / sums[whole], torch.nan)
            values |= {f"{name}/{label}": value for label, value in zip(self._names, ratio.tolist(), strict=True)}
            if name == "iou":
                values["miou"] = float(ratio.nanmean())
        return values

    def to_dict(self) -> dict[str, Tensor]:
        """Return what was added up since the last call of `values`, on the CPU, for a checkpoint."""
        return {name: row.cpu() for name, row in self._sums.items()}

    def load(self, sums: Mapping[str, Tensor], device: torch.device) -> None:
        """Go on from what `to_dict` returned."""
        self._sums = {name: row.to(device) for name, row in sums.items()}

    def _add(self, name: str, rows: Tensor) -> None:
        """Add `[N, C]`."""
        row = rows.detach().double().sum(0)
        self._sums[name] = self._sums[name] + row if name in self._sums else row

    def _clear(self) -> None:
        self._sums = {}
        self._seen_batch = self._seen_loss = False


def _is_free(device: torch.device) -> bool:
    """Whether the read of the loss counts the largest logits on its way."""
    return triton_reason(device) is None
