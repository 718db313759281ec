"""Tensors as memory and strides: how the kernels for CPUs see them, and how pixels are shared out to threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[Any]
MOST_PIXELS, FEWEST_PIXELS, ELEMENTS = 2**16, 2**12, 2**21  # of a run, in which a thread works alone
STORED = {torch.float16: torch.int16, torch.bfloat16: torch.uint16}  # NumPy knows no bfloat16, Numba no float16


class Run(NamedTuple):
    """Pixels `start` to `stop` of an image, row by row."""

    image: int
    start: int
    stop: int


def few_rows(values: Tensor) -> Tensor:
    """View `[..., H, W]` as `[..., 1, H·W]` where the strides allow it (not a crop of a larger tensor).

    An expanded tensor stays as it is: what `empty_like` makes of it may have rows that do not join.
    """
    height, width = values.shape[-2:]
    if 0 in values.stride():
        return values
    if width == 1:
        return values.as_strided((*values.shape[:-2], 1, height), (*values.stride()[:-2], 0, values.stride(-2)))
    if height == 1 or values.stride(-2) == width * values.stride(-1):
        return values.as_strided((*values.shape[:-2], 1, height * width), (*values.stride()[:-2], 0, values.stride(-1)))
    return values


def memory(values: Tensor) -> Array:
    """Return the memory of a tensor as a row that starts at its first element; halves as integers (STORED)."""
    length = 1 + sum((size - 1) * stride for size, stride in zip(values.shape, values.stride(), strict=True))
    flat = values.detach().as_strided((length if values.numel() else 0,), (1,))
    array: Array = flat.view(STORED.get(values.dtype, values.dtype)).numpy()
    return array


def kind_of(dtype: torch.dtype) -> np.dtype[Any]:
    """Return the type that logits are computed in: float32 at least."""
    return np.dtype(np.float64 if dtype == torch.float64 else np.float32)


def flat(values: Tensor | None, kind: np.dtype[Any]) -> Array:
    """Return `[N, P]` of this type from `[N, ...]`; `[1, 0]` for None."""
    if values is None:
        return np.empty((1, 0), kind)
    dtype = torch.from_numpy(np.empty(0, kind)).dtype
    array: Array = values.detach().flatten(1).to(dtype).contiguous().numpy()
    return array


def runs(images: int, pixels: int, *, channels: int) -> Iterator[Run]:
    """Cut images of so many pixels into runs, the same for any number of threads."""
    length = max(min(MOST_PIXELS, ELEMENTS // max(channels, 1)), FEWEST_PIXELS)
    for image in range(images):
        for start in range(0, pixels, length):
            yield Run(image, start, min(start + length, pixels))


def share_out(work: Callable[[Any], None], jobs: Sequence[Any]) -> None:
    """Call `work` with each of the jobs, in as many threads as torch uses; it must leave Python's lock for that."""
    waiting = deque(jobs)

    def go_on() -> None:
        while True:
            try:
                job = waiting.popleft()
            except IndexError:
                return
            work(job)

    helpers = min(torch.get_num_threads(), len(jobs)) - 1
    if helpers < 1:
        return go_on()
    with ThreadPoolExecutor(helpers) as pool:
        results = [pool.submit(go_on) for _ in range(helpers)]
        try:
            go_on()
        except BaseException:  # Ctrl-C too: the others end with the job that they are at
            waiting.clear()
            raise
    for result in results:
        result.result()  # raises what it raised
