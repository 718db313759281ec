"""What training sees of each class: expected from the sampling, counted in the targets, beside what there is."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from segtrain.config.data import DataConfig
from segtrain.config.dump import inline
from segtrain.config.sampling import SamplingConfig
from segtrain.data import ClassFrequencies
from segtrain.data.frequencies import count_target
from segtrain.data.labels import count_labels
from segtrain.data.masks import histogram
from segtrain.data.sampling import TrainBatchSampler
from segtrain.data.schemes import AtMost, Exactly, Scheme
from segtrain.distributed import rank, sum_over_ranks

Counts = NDArray[np.int64]

WIDTH = 80
MOST_ROWS = 24  # of a table: the classes from the rarest on


def count_targets(targets: Iterable[Any], data: DataConfig) -> Counts:
    """Pixels of each class and ignored pixels of each target [H, W]: int64 [N, C + 1], as a scan counts them.

    Of multi-label targets [C, H, W] int64 [N, 3 C]: see `segtrain.data.frequencies.frequencies_of`.

    Raises:
        DataError: a label that is neither a class nor ignore_index.
    """
    num_classes = len(data.classes)
    if data.multi_label:
        each = [
            count_labels(np.asarray(target), num_classes=num_classes, ignore_index=data.ignore_index)
            for target in targets
        ]
        return np.array(each, np.int64).reshape(-1, 3 * num_classes)
    rows = [_count(np.asarray(target), num_classes, data.ignore_index) for target in targets]
    return np.array(rows, np.int64).reshape(-1, num_classes + 1)


def _count(target: NDArray[Any], num_classes: int, ignore_index: int) -> Counts:
    if target.dtype == np.uint8 and target.ndim == 2:
        counts = histogram(target)
        row: Counts = np.append(counts[:num_classes], counts[ignore_index])
        if row.sum() == target.size:
            return row
    return count_target(target, num_classes, ignore_index)  # slower, and says which label has no meaning


class Exposure:
    """Counts the classes in the targets that training sees, epoch by epoch, on every rank.

    Both counts are int64 in one line: the columns of `count_targets`, images that hold each class, all images.

    Attributes:
        epoch: of the epoch that is running. past: of all epochs before it, of all ranks.
        num_batches: batches read in the epoch that is running.
    """

    def __init__(self, data: DataConfig, natural: ClassFrequencies, sampler: TrainBatchSampler) -> None:
        self.data = data
        self.natural = natural
        self.batches_per_epoch = sampler.batches_per_epoch
        self.samples_per_epoch = sampler.batches_per_epoch * sampler.batch_size * sampler.world_size
        columns = count_targets([], data).shape[1]
        self.epoch = np.zeros(columns + len(data.classes) + 1, np.int64)
        self.past = self.epoch.copy()
        self.num_batches = 0
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="exposure")

    def count(self, targets: Sequence[torch.Tensor]) -> Future[list[Counts]]:
        """Begin to count batches of targets [N, H, W] on the CPU, in a thread of its own, as a step needs the device.

        OpenCV counts without Python's lock, and milliseconds after each step would let the device wait.
        """
        return self._pool.submit(lambda: [count_targets(batch.numpy(), self.data) for batch in targets])

    def add(self, rows: Counts) -> dict[str, float] | None:
        """Take in the counts of a batch; where it ends an epoch, return the numbers of that epoch.

        These are `realised/<class>` and `natural/<class>`, shares of the valid pixels, and `images/<class>`, images
        of the epoch that hold the class.
        """
        held = rows[:, : len(self.data.classes)] > 0
        self.epoch += np.concatenate([rows.sum(axis=0), held.sum(axis=0), [len(rows)]])
        self.num_batches += 1
        if self.num_batches < self.batches_per_epoch:
            return None
        counts = sum_over_ranks(self.epoch)
        self.past += counts
        self.epoch = np.zeros_like(counts)  # counts may be the very array
        self.num_batches = 0
        return self._values(counts)

    def _split(self, counts: Counts) -> tuple[NDArray[np.float64], Counts]:
        """Share of each class in the pixels where it is labelled, float64 [C], and images that hold it, int64 [C]."""
        num_classes = len(self.data.classes)
        pixels = counts[:num_classes]
        valid = pixels + counts[num_classes : 2 * num_classes] if self.data.multi_label else pixels.sum()
        return pixels / np.maximum(1, valid), counts[-1 - num_classes : -1]

    def _values(self, counts: Counts) -> dict[str, float]:
        realised, images = self._split(counts)
        columns = {"realised": realised, "natural": self.natural.share, "images": images}
        return {
            f"{column}/{name}": float(value)
            for column, values in columns.items()
            for name, value in zip(self.data.class_names, values, strict=True)
        }

    def table(self) -> str:
        """What was seen until now beside what there is, in lines of at most 80 columns; empty before the first."""
        counts = self.past + sum_over_ranks(self.epoch)
        if not counts[-1]:
            return ""
        realised, images = self._split(counts)
        epochs = int(counts[-1]) / self.samples_per_epoch
        causes = _causes(self.data)
        after = f", after {' and '.join(', '.join(causes).rsplit(', ', 1))}" if causes else ""
        head = f"seen in {epochs:.1f} epochs{after}: share of the labelled pixels"
        columns = _Columns("seen", realised, images / epochs)
        return "\n".join([head, *_rows(self.data.class_names, self.natural, columns)])

    def to_dict(self) -> dict[str, Any]:
        """Return plain values of all ranks for a checkpoint; every rank must ask."""
        return {"epoch": sum_over_ranks(self.epoch).tolist(), "past": self.past.tolist()}

    def load(self, values: Mapping[str, Any] | None, *, batch: int) -> None:
        """Go on from what `to_dict` returned, at `batch` of an epoch; from an older checkpoint, count from here on."""
        self.num_batches = batch
        if values is not None:
            # what all ranks saw goes on with the first: only sums over the ranks are ever shown
            self.epoch[:], self.past[:] = values["epoch"] if rank() == 0 else 0, values["past"]


def _causes(data: DataConfig) -> list[str]:
    """What is configured that changes how often classes are seen."""
    section, names = data.sampling, {step.name for step in data.train_transforms}
    causes = {
        "sampling": section.name != "uniform" or section.negatives is not None,
        "crops": "crop" in names,
        "paste": "copy_paste" in names,
    }
    return [cause for cause, holds in causes.items() if holds]


def left_out_note(sampler: TrainBatchSampler) -> str | None:
    """Say how many images of each epoch do not fill a batch, and so sit it out; None where all are read."""
    together = sampler.batch_size * sampler.world_size
    used = sampler.batches_per_epoch * together
    if used == sampler.epoch_samples:
        return None
    return (
        f"an epoch reads {used} of {sampler.epoch_samples} images, in whole batches of {together}: those left out "
        "change from epoch to epoch"
    )


def expected_table(
    scheme: Scheme, counts: Counts, natural: ClassFrequencies, *, data: DataConfig, epoch_samples: int
) -> str:
    """Say what the sampling alone, before crops and paste, makes of the class frequencies; empty where nothing.

    Args:
        scheme: made of data.sampling.
        counts: int64 [N, C + 1], pixels of each class in each training image.
        natural: the frequencies of these images.
        data: the data section.
        epoch_samples: images in an epoch.
    """
    section = data.sampling
    if section.name == "uniform" and section.negatives is None:
        return ""
    shares = scheme.shares
    pixels = shares @ counts[:, :-1]
    images = epoch_samples * (shares @ (counts[:, :-1] > 0))
    if data.multi_label:  # as if all images had as many pixels
        share = natural.share * pixels / np.maximum(counts[:, :-1].mean(axis=0), 1e-12)
    else:
        share = pixels / max(float(pixels.sum()), 1e-12)
    columns = _Columns("expected", share, images)
    settings = ", ".join(
        f"{key}: {inline(value)}"
        for key, value in section.model_dump(exclude={"name", "epoch_samples"}, exclude_none=True).items()
    )
    head = f"sampling: {section.name}" + (f" ({settings})" if settings else "")
    note = f"an epoch of {epoch_samples} images from {len(counts)}; expected from the sampling alone:"
    return "\n".join([*textwrap.wrap(head, WIDTH), note, *_rows(data.class_names, natural, columns)])


def realised_table(realised: ClassFrequencies, natural: ClassFrequencies, data: DataConfig) -> str:
    """Say what the first epoch holds, counted in its targets, beside what the training images hold."""
    head = "realised frequencies: share of the labelled pixels in the targets of an epoch"
    columns = _Columns("realised", realised.share, realised.images.astype(np.float64))
    return "\n".join([head, *_rows(data.class_names, natural, columns)])


def sampling_warnings(section: SamplingConfig, scheme: Scheme) -> list[str]:
    """Say what of a way of sampling has no effect on these images, or leaves some of them out."""
    found = []
    if section.negatives is not None and not isinstance(scheme, AtMost | Exactly):
        found.append(
            "data.sampling.negatives changes nothing, as every training image holds one of its classes: drop it, or "
            "name rarer classes in data.sampling.negatives.classes"
        )
    if section.name == "repeat_factor" and np.ptp(scheme.shares) == 0:
        found.append(
            f"data.sampling: repeat_factor with threshold {section.threshold:g} repeats no image, as every class is in "
            "a larger share of the images: raise threshold"
        )
    never = int((scheme.shares == 0).sum())
    if never and (section.negatives is None or section.negatives.exactly != 0):
        found.append(
            f"data.sampling: {section.name} never draws {never} of the {len(scheme.shares)} training images, which "
            "hold no class: give them a share by data.sampling.negatives: {exactly: 0.2}, or say exactly: 0.0"
        )
    return found


@dataclass(frozen=True, eq=False)
class _Columns:
    """A share of the pixels under a name, and images of an epoch that hold the class: float64 [C] each."""

    name: str
    share: NDArray[np.float64]
    images: NDArray[np.float64]


def _rows(names: Sequence[str], natural: ClassFrequencies, columns: _Columns) -> list[str]:
    """One line for each class, from the rarest on; at most MOST_ROWS of them."""
    order = np.argsort(natural.pixels, kind="stable")
    shown = [_short(name) for name in names]
    width = max(len("class"), *(len(shown[c]) for c in order[:MOST_ROWS]))
    lines = [f"  {'class':<{width}}  natural %  {columns.name + ' %':>10}       ×  images/epoch"]
    for c in order[:MOST_ROWS].tolist():
        before, after = natural.share[c], columns.share[c]
        ratio = f"{after / before:.2f}" if before else "–"
        lines.append(
            f"  {shown[c]:<{width}}  {100 * before:>9.3f}  {100 * after:>10.3f}  {ratio:>6}  {columns.images[c]:>12.0f}"
        )
    if len(names) > MOST_ROWS:
        lines.append(f"  and {len(names) - MOST_ROWS} more frequent classes")
    return lines


def _short(name: str) -> str:
    room = WIDTH - 48
    return name if len(name) <= room else name[: room - 1] + "…"
