"""The sigmoid class sums on a CPU, forward and backward: runs of pixels of one class shared out to threads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segtrain.kernels import numba_sigmoid
from segtrain.kernels.labels import check_labels, to_buckets
from segtrain.kernels.mined import Mined, mined_sums
from segtrain.kernels.pages import empty_like
from segtrain.kernels.request import Inputs, Request
from segtrain.kernels.rows import Array, Run, few_rows, flat, kind_of, memory, runs, share_out

COLUMNS = ("pixels", "kept", "p", "q", "squares", "cross_entropy", "focal")  # of the kernel's sums


@dataclass(frozen=True, eq=False)
class Pixels:
    """The inputs as the kernels take them: a class of an image is a row, N · C of them.

    Attributes:
        logits: `[N, C, rows, columns]`.
        labels: int16 `[N · C, P]` of 0, 1 and 2 where ignored.
        weight: `[N, P]`, or `[1, 0]`; keep: bool `[N · C, P]`, or `[1, 0]`.
        settings: (shift, margin, scale, gamma) of each class.
    """

    logits: Tensor
    labels: Array
    weight: Array
    keep: Array
    settings: list[tuple[Any, ...]]
    kind: np.dtype[Any]

    @classmethod
    def prepare(cls, inputs: Inputs, request: Request, *, logits: Tensor) -> Pixels:
        images, num_classes = logits.shape[:2]
        rows = (images * num_classes, inputs.target[0, 0].numel() if inputs.target.numel() else 0)
        kind = kind_of(logits.dtype)
        labels = to_buckets(inputs.target, num_classes=2, ignore_index=request.ignore_index)
        numbers = [
            torch.zeros(num_classes) if values is None else values.detach() for values in (inputs.shift, inputs.margin)
        ]
        gamma = request.gamma * num_classes if len(request.gamma) == 1 else request.gamma
        vectors = (*(values.tolist() for values in numbers), [request.scale] * num_classes, gamma)
        return cls(
            logits=logits,
            labels=labels.to(torch.int16).reshape(rows).contiguous().numpy(),
            weight=flat(inputs.pixel_weight, kind),
            keep=flat(None if inputs.keep is None else inputs.keep.reshape(rows), np.dtype(np.bool_)),
            settings=[tuple(map(kind.type, row)) for row in zip(*vectors, strict=True)],
            kind=kind,
        )

    @property
    def num_classes(self) -> int:
        """C."""
        return self.logits.shape[1]

    def runs(self) -> list[Run]:
        """Cut the pixels into runs; `image` of a run is a row here."""
        return list(runs(*self.labels.shape, channels=1))

    def work(self) -> Array:
        """Return memory for a block."""
        return np.empty(numba_sigmoid.WORK, self.kind)

    def arguments(self, run: Run, stored: Array) -> tuple[Any, ...]:
        """Return the arguments that both kernels begin with."""
        row, start, stop = run
        image, of_class = divmod(row, self.num_classes)
        weight = self.weight[image] if self.weight.size else self.weight[0]
        keep = self.keep[row] if self.keep.size else self.keep[0]
        columns = self.logits.shape[3]
        origin = place(self.logits, row)
        return stored, *origin, columns, start, stop, self.labels[row], weight, keep, *self.settings[of_class]


def place(values: Tensor, row: int) -> tuple[int, tuple[int, ...]]:
    """Return where a class of an image of `[N, C, rows, columns]` begins, and the strides of its rows and columns."""
    image, of_class = divmod(row, values.shape[1])
    return image * values.stride(0) + of_class * values.stride(1), values.stride()[2:]


def forward(inputs: Inputs, request: Request) -> tuple[Tensor, Tensor, Tensor]:
    """Return the wanted sums `[K, N, C]`, the counts, and the mined mask, as `softmax_cpu.forward` does.

    There are as many pixel sums again, over the negatives; the counts are pixels, kept, and both of negatives.

    Raises:
        DataError: a label out of range.
    """
    check_labels(inputs.target, num_classes=2, ignore_index=request.ignore_index)
    pixels = Pixels.prepare(inputs, request, logits=few_rows(inputs.logits))
    mask, mined = torch.empty(0, dtype=torch.bool), None
    if request.rule is not None:
        mined = Mined(request.rule, pixels.labels.shape, kind=pixels.kind)
    sums = _read(pixels, request.wanted, mined)
    if mined is not None:
        labels = torch.from_numpy(pixels.labels)
        are_weighted = pixels.weight.size > 0
        numbers = mined.counts(sums, labels, ignored=numba_sigmoid.IGNORED, are_weighted=are_weighted)
        buckets = _numbered(labels, pixels.num_classes)
        mask = mined.finish(*numbers, buckets, num_buckets=2 * pixels.num_classes)
        if not mined.was_right:
            gamma = np.array([[settings[3]] * 3 for settings in pixels.settings] * len(inputs.logits)).reshape(-1, 3)
            rows = pixels.num_classes
            sums |= mined_sums(mined, pixels.labels, gamma, pixels.weight, wanted=request.wanted, weight_rows=rows)
        mask = mask.view(inputs.target.shape)
    shape = inputs.logits.shape[:2]
    negatives, positives = ({name: values[:, label].view(shape) for name, values in sums.items()} for label in (0, 1))
    counts = torch.stack([of[name] for name in ("pixels", "kept") for of in (positives, negatives)])
    wanted: list[Tensor] = []
    for name in request.wanted:
        match name:
            case "probability":
                wanted.append(positives["p"] + negatives["q"])
            case "squared_probability":
                wanted.append(positives["squares"] + negatives["squares"])
            case "intersection":
                wanted.append(positives["p"])
            case _:
                wanted += [positives[name], negatives[name]]
    return torch.stack(wanted) if wanted else counts.new_zeros(0, *shape), counts, mask


def _read(pixels: Pixels, wanted: tuple[str, ...], mined: Mined | None) -> dict[str, Tensor]:
    """Return the kernel's sums by name, float64 `[N · C, 2]` by label."""
    jobs = pixels.runs()
    found = np.zeros((len(jobs), 2, len(COLUMNS)))
    masses = "probability" in wanted or "intersection" in wanted
    flags = (masses, "squared_probability" in wanted, "focal" in wanted)
    stored = memory(pixels.logits)
    nothing = (pixels.kind.type(np.inf), np.empty(0, pixels.kind), np.empty(0, np.bool_))

    def work(number: int) -> None:
        run = jobs[number]
        mining = nothing if mined is None else mined.arguments(run.image)
        numba_sigmoid.forward(*pixels.arguments(run, stored), flags, *mining, found[number], pixels.work())

    share_out(work, range(len(jobs)))
    sums = np.zeros((len(pixels.labels), 2, len(COLUMNS)))
    for run, part in zip(jobs, found, strict=True):
        sums[run.image] += part
    return {name: torch.from_numpy(sums[:, :, column]) for column, name in enumerate(COLUMNS)}


def _numbered(labels: Tensor, num_classes: int) -> Tensor:
    """Number the labels of all classes, 0 and 1 of the first, 2 and 3 of the second; ignored is one after the last."""
    first = 2 * torch.arange(num_classes, dtype=labels.dtype).repeat(len(labels) // num_classes).view(-1, 1)
    return (labels + first).masked_fill_(labels == numba_sigmoid.IGNORED, 2 * num_classes)


def backward(grads: Mapping[str, Tensor], inputs: Inputs, request: Request) -> Tensor:
    """Return the gradient of the logits, in their type and layout, given that of each sum: float64 `[N, C]`.

    Those of the negatives are named `..._negatives`. A sum whose gradient is not given costs nothing.
    """
    result = empty_like(inputs.logits)
    if not grads:
        return result.zero_()
    logits, rows = few_rows(inputs.logits), few_rows(result)
    if logits.shape != rows.shape:
        logits, rows = inputs.logits, result
    pixels = Pixels.prepare(inputs, request, logits=logits)
    slopes = _slopes(grads, request, pixels)
    has = ("squared_probability" in grads, "focal" in grads or "focal_negatives" in grads)
    stored, written = memory(logits), memory(rows)

    def work(run: Run) -> None:
        arguments = pixels.arguments(run, stored)
        numba_sigmoid.backward(*arguments, has, slopes[run.image], written, *place(rows, run.image), pixels.work())

    share_out(work, pixels.runs())
    return result


def _slopes(grads: Mapping[str, Tensor], request: Request, pixels: Pixels) -> Array:
    """Return the slopes as the kernel takes them, `[N · C, 2, 4]`: scale · z is what the sigmoid sees."""
    none = torch.zeros(pixels.logits.shape[:2], dtype=torch.float64)
    of = {name: grads.get(name, none) for name in ("probability", "intersection", "squared_probability")}
    by_label = [
        [of["probability"], *(grads.get(f"{name}_negatives", none) for name in ("cross_entropy", "focal"))],
        [-of["probability"] - of["intersection"], *(grads.get(name, none) for name in ("cross_entropy", "focal"))],
    ]
    squares = (of["squared_probability"], -of["squared_probability"])
    stacked = [torch.stack([*row, square], dim=2) for row, square in zip(by_label, squares, strict=True)]
    slopes = torch.stack(stacked, dim=2).flatten(0, 1) * request.scale
    with np.errstate(over="ignore"):
        array: Array = slopes.numpy().astype(pixels.kind)
    return array
