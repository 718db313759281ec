"""The softmax class sums on a CPU, forward and backward: runs of pixels shared out to threads, hard pixels mined.

Nothing of the size of the logits is held but the gradient. Sums are made for each run and added up in their order, so
that their bits do not depend on the number of threads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segtrain.kernels import numba_pixels, numba_softmax, numba_softmax_backward
from segtrain.kernels.labels import check_labels, to_buckets
from segtrain.kernels.mined import Mined, mined_sums
from segtrain.kernels.pages import empty_like
from segtrain.kernels.request import Inputs, Request
from segtrain.kernels.rows import Array, Run, few_rows, flat, kind_of, memory, runs, share_out

MASS = ("probability", "intersection")
COLUMNS = ("pixels", "kept", "intersection", "cross_entropy", "focal", "squared_probability")  # of the table by label
BY_CLASS = ("probability", "squared_probability", "log_mass")


@dataclass(frozen=True, eq=False)
class Pixels:
    """The inputs as the kernels take them.

    Attributes:
        logits: `[N, C, rows, columns]`.
        labels: int16 `[N, P]`, C where ignored.
        weight: what each pixel counts, `[N, P]`; keep: bool, whether in the pixel terms; `[1, 0]` for none.
        gamma: `[C + 1]`, with a number for ignored pixels.
        settings: the arguments of both kernels from the shift to γ.
        kind: the type that is calculated in.
    """

    logits: Tensor
    labels: Array
    weight: Array
    keep: Array
    gamma: Array
    settings: tuple[Any, ...]
    kind: np.dtype[Any]

    @classmethod
    def prepare(cls, inputs: Inputs, request: Request, *, logits: Tensor) -> Pixels:
        num_classes = logits.shape[1]
        kind = kind_of(logits.dtype)
        labels = to_buckets(inputs.target, num_classes=num_classes, ignore_index=request.ignore_index)

        def vector(values: Tensor | None, *, factor: float = 1.0) -> Array:
            padded = np.zeros(num_classes + 1, kind)
            if values is not None:
                with np.errstate(over="ignore"):
                    padded[:num_classes] = values.detach().double().numpy() * factor
            return padded

        gamma = np.zeros(num_classes + 1, kind)
        gamma[:num_classes] = request.gamma
        return cls(
            logits=logits,
            labels=labels.to(torch.int16).flatten(1).contiguous().numpy(),
            weight=flat(inputs.pixel_weight, kind),
            keep=flat(inputs.keep, np.dtype(np.bool_)),
            gamma=gamma,
            settings=(
                vector(inputs.shift)[:num_classes],
                vector(inputs.margin, factor=request.scale),
                kind.type(request.scale),
                gamma,
                set(request.gamma) == {2.0},
            ),
            kind=kind,
        )

    @property
    def num_classes(self) -> int:
        """C."""
        return self.logits.shape[1]

    def runs(self) -> list[Run]:
        """Cut the pixels into runs."""
        images, pixels = self.labels.shape
        return list(runs(images, pixels, channels=self.num_classes))

    def work(self) -> Array:
        """Return memory for a block."""
        return np.empty(numba_pixels.SCORES + (self.num_classes + 1) * numba_pixels.ROW, self.kind)

    def arguments(self, run: Run, stored: Array) -> tuple[Any, ...]:
        """Return the arguments that both kernels begin with."""
        image, start, stop = run
        origin, strides = place(self.logits, image)
        factors = (row[image] if row.size else row[0] for row in (self.weight, self.keep))
        return stored, origin, strides, self.logits.shape[3], start, stop, self.labels[image], *factors, *self.settings


def place(values: Tensor, image: int) -> tuple[int, tuple[int, ...]]:
    """Return where an image of `[N, C, rows, columns]` begins, and the strides of its channels, rows and columns."""
    return image * values.stride(0), values.stride()[1:]


def forward(inputs: Inputs, request: Request) -> tuple[Tensor, Tensor, Tensor]:
    """Return the wanted sums `[K, N, C]`, the counts (pixels, kept) `[2, N, C]`, both float64, and the mined mask.

    The mask is bool in the shape of the target where `request.mining` says so, else empty.

    Raises:
        DataError: a label out of range.
    """
    check_labels(inputs.target, num_classes=inputs.logits.shape[1], ignore_index=request.ignore_index)
    pixels = Pixels.prepare(inputs, request, logits=few_rows(inputs.logits))
    if request.rule is None:
        sums = _read(pixels, request.wanted, None)
        mask = torch.empty(0, dtype=torch.bool)
    else:
        mined = Mined(request.rule, pixels.labels.shape, kind=pixels.kind)
        sums = _read(pixels, request.wanted, mined)
        labels = torch.from_numpy(pixels.labels)
        numbers = mined.counts(sums, labels, ignored=pixels.num_classes, are_weighted=pixels.weight.size > 0)
        mask = mined.finish(*numbers, labels, num_buckets=pixels.num_classes)
        if not mined.was_right:
            sums |= _mined_sums(pixels, request, mined)
        mask = mask.view(inputs.target.shape)
    counts = torch.stack((sums["pixels"], sums["kept"]))
    wanted = [sums[name] for name in request.wanted]
    return torch.stack(wanted) if wanted else counts.new_zeros(0, *counts.shape[1:]), counts, mask


def _read(pixels: Pixels, wanted: tuple[str, ...], mined: Mined | None) -> dict[str, Tensor]:
    """Return all sums `[N, C]` of one read of the logits by name; those that are not wanted may be anything."""
    jobs = pixels.runs()
    images, num_classes = len(pixels.labels), pixels.num_classes
    by_class = np.zeros((len(jobs), len(BY_CLASS), num_classes))
    table = np.zeros((len(jobs), num_classes + 1, numba_softmax.WAYS, numba_softmax.COLUMNS))
    flags = tuple(name in wanted for name in ("probability", "squared_probability", "focal", "log_mass"))
    stored = memory(pixels.logits)
    nothing = (pixels.kind.type(np.inf), np.empty(0, pixels.kind), np.empty(0, np.bool_))
    raw_size = num_classes * numba_pixels.ROW if "log_mass" in wanted else 0

    def work(number: int) -> None:
        run = jobs[number]
        mining = nothing if mined is None else mined.arguments(run.image)
        numba_softmax.forward(
            *pixels.arguments(run, stored),
            flags,
            *mining,
            by_class[number],
            table[number].reshape(-1, numba_softmax.COLUMNS),
            pixels.work(),
            np.empty(raw_size, pixels.kind),
        )

    share_out(work, range(len(jobs)))
    of_images = np.zeros((len(BY_CLASS) + len(COLUMNS), images, num_classes))
    for number, run in enumerate(jobs):
        of_images[: len(BY_CLASS), run.image] += by_class[number]
        of_images[len(BY_CLASS) :, run.image] += table[number, :num_classes].sum(1).T
    found = torch.from_numpy(of_images)
    sums = dict(zip(COLUMNS, found[len(BY_CLASS) :], strict=True))
    sums["probability"] = found[0] + sums["intersection"]
    sums["squared_probability"] = found[1] + sums["squared_probability"]
    return sums | {"log_mass": found[2]}


def _mined_sums(pixels: Pixels, request: Request, mined: Mined) -> dict[str, Tensor]:
    """Return the sums over the pixels that mining keeps, from the loss of each: q = 1 − e^{−ℓ}."""
    sums = mined_sums(mined, pixels.labels, pixels.gamma[None], pixels.weight, wanted=request.wanted)
    if "log_mass" in request.wanted:
        kept = replace(pixels, keep=mined.mask.numpy())
        sums["log_mass"] = _read(kept, ("log_mass",), None)["log_mass"]
    return sums


def backward(grads: Mapping[str, Tensor], inputs: Inputs, request: Request) -> Tensor:
    """Return the gradient of the logits, in their type and layout, given that of each sum: float64 `[N, C]`.

    A sum whose gradient is not given costs nothing.
    """
    result = empty_like(inputs.logits)
    if not grads:
        return result.zero_()
    logits, rows = few_rows(inputs.logits), few_rows(result)
    if logits.shape != rows.shape:
        logits, rows = inputs.logits, result
    pixels = Pixels.prepare(inputs, request, logits=logits)
    slopes = _slopes(grads, request, pixels)
    has = tuple(name in grads for name in ("squared_probability", "focal", "log_mass"))
    stored, written = memory(logits), memory(rows)

    def work(run: Run) -> None:
        numba_softmax_backward.backward(
            *pixels.arguments(run, stored), has, slopes[run.image], written, *place(rows, run.image), pixels.work()
        )

    share_out(work, pixels.runs())
    return result


def _slopes(grads: Mapping[str, Tensor], request: Request, pixels: Pixels) -> Array:
    """Return the gradients as the kernel takes them, `[N, 6, C + 1]`: scale · z is what the softmax sees."""
    slopes = np.zeros((len(pixels.labels), 6, pixels.num_classes + 1))
    for row, name in enumerate(("probability", "squared_probability", "", "cross_entropy", "focal", "log_mass")):
        if name in grads:
            slopes[:, row, :-1] = grads[name].numpy()
    for name in MASS:
        if name in grads:
            slopes[:, numba_softmax_backward.OF_OWN, :-1] += grads[name].numpy()
    with np.errstate(over="ignore"):
        return (slopes * request.scale).astype(pixels.kind)
