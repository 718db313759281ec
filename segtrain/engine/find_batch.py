"""The largest batch that fits on a GPU: whole training steps of more and more images until the memory is full."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from segtrain.config import Config
from segtrain.distributed import launched_size
from segtrain.engine.advance import windows
from segtrain.engine.device import select_device
from segtrain.engine.run import Run
from segtrain.engine.setup import prepare
from segtrain.engine.step import make_step
from segtrain.errors import ConfigError, SegtrainError

MOST = 1024
STEPS = 2  # the first makes the optimizer's moments
MARGIN = 0.9  # of the images that just fit: fragments, other sizes of crops, other programs on the device


@dataclass(frozen=True)
class Trial:
    """A batch that was tried: images, and the bytes at the peak, None where they did not fit."""

    images: int
    num_bytes: int | None


@dataclass(frozen=True)
class BatchSearch:
    """All trials in their order, and the largest batch that fit, 0 where not even one image did."""

    trials: tuple[Trial, ...]
    largest: int

    def bytes_per_image(self) -> float | None:
        """Return by how much the peak rises with each image, from the smallest to the largest batch that fit."""
        fit = sorted((trial.images, trial.num_bytes) for trial in self.trials if trial.num_bytes is not None)
        if len(fit) < 2:
            return None
        return (fit[-1][1] - fit[0][1]) / (fit[-1][0] - fit[0][0])


def search(try_batch: Callable[[int], int], *, most: int, start: int = 2) -> BatchSearch:
    """Double the batch until it does not fit, then halve the gap between what fits and what does not.

    Args:
        try_batch: makes steps with so many images, and returns the bytes at the peak; raises torch.OutOfMemoryError.
        most: the largest batch to try.
        start: the first batch: 2, as BatchNorm may have too few values in one image.
    """
    trials: list[Trial] = []

    def fits(images: int) -> bool:
        trials.append(_tried(try_batch, images))
        return trials[-1].num_bytes is not None

    low, high = 0, most + 1  # low fits (0 does without trying), high does not
    images = min(start, most)
    while high - low > 1:
        if fits(images):
            low = images
        else:
            high = images
        images = min(2 * low, most) if high > most else (low + high) // 2
    return BatchSearch(tuple(trials), low)


def split_batch(images: int, *, most: int) -> tuple[int, int]:
    """Share the images of a step out: the largest batch up to `most` that divides them, and how often (accumulate)."""
    batch = next(size for size in range(min(images, most), 0, -1) if images % size == 0)
    return batch, images // batch


def find_batch(config: Config, *, most: int = MOST, tell: Callable[[str], None] = lambda text: None) -> BatchSearch:
    """Search for the largest `train.batch_size` that the GPU of `config.device` holds.

    Each trial makes two steps of training's own (forward, loss, backward, optimizer, with precision, average and
    telemetry as configured) on images of the training data, at the size that their transforms give, repeated to the
    batch; the memory is freed between trials. No run folder is made, and no checkpoint touched.

    Args:
        tell: called with a line after each trial.

    Raises:
        ConfigError: the device is a CPU, or what `train` would refuse. DataError, CheckpointError: as `train` would.
    """
    if launched_size() > 1:
        raise ConfigError("find-batch fills one GPU: start it without torchrun; train.batch_size is of each rank")
    if select_device(config.device).type != "cuda":
        raise ConfigError(
            "find-batch fills the memory of a GPU, and the device is a CPU here: there a batch that is too large for "
            "the RAM makes the whole machine swap. Choose train.batch_size by hand, or run this with device=cuda on a "
            "machine with a GPU"
        )
    with tempfile.TemporaryDirectory(prefix="segtrain-find-batch-") as folder:
        run = prepare(
            _scratch(config, output=folder),
            model=None,
            loss=None,
            train_data=None,
            val_data=None,
            console=Console(quiet=True),
        )
        with run.tracker, closing(run.loader):
            steps = BatchSteps(run)

            def try_batch(images: int) -> int:
                try:
                    num_bytes = steps(images)
                except torch.OutOfMemoryError:
                    tell(f"{images} images: do not fit")
                    raise
                tell(f"{images} images: {num_bytes / 2**30:.2f} GiB")
                return num_bytes

            return search(try_batch, most=most)


class BatchSteps:
    """Makes steps of a run with any number of images, copies of those of its first batch."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._batch = next(windows(run))[0]

    def __call__(self, images: int) -> int:
        """Make steps with so many images; return the bytes at the peak, 0 on a CPU.

        Raises:
            torch.OutOfMemoryError: they do not fit; what the attempt held is free again once the error is let go.
        """
        run = self.run
        self._free()
        batch = {key: _repeated(value, images) for key, value in self._batch.items()}
        for _ in range(STEPS):
            make_step(run, [batch])
        if run.device.type != "cuda":
            return 0
        torch.cuda.synchronize(run.device)
        return torch.cuda.max_memory_reserved(run.device)

    def _free(self) -> None:
        self.run.optimizer.zero_grad(set_to_none=True)
        gc.collect()
        if self.run.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.run.device)


def advice(found: BatchSearch, config: Config, *, total_bytes: int) -> list[str]:
    """Return what was found and the settings that keep the images of a step, in lines.

    Raises:
        SegtrainError: not even one image fits.
    """
    if found.largest == 0:
        raise SegtrainError(
            f"not even one image fits into {total_bytes / 2**30:.1f} GiB: use smaller crops or a smaller "
            "data.input_size, train.precision=bf16, or a smaller model"
        )
    train = config.train
    images = train.batch_size * train.accumulate
    comfortable = max(int(MARGIN * found.largest), 1)
    batch, accumulate = split_batch(images, most=comfortable)
    slope = found.bytes_per_image()
    each = "" if slope is None else f", {slope / 2**20:.0f} MiB for each image more"
    return [
        f"largest batch that fits: {found.largest} images in {total_bytes / 2**30:.1f} GiB{each}",
        f"a tenth left free: up to {comfortable} images",
        f"for steps of {images} images as now: train.batch_size={batch} train.accumulate={accumulate}",
        "with another number of images in a step try another optimizer.lr too: segtrain find-lr",
    ]


def _tried(try_batch: Callable[[int], int], images: int) -> Trial:
    try:
        return Trial(images, try_batch(images))
    except torch.OutOfMemoryError:
        return Trial(images, None)


def _scratch(config: Config, *, output: str) -> Config:
    """The same settings in a folder of their own, without the steps or saves of a run."""
    changes: dict[str, Any] = {"epochs": None, "steps": 10**9, "resume": "none", "profile": False, "accumulate": 1}
    changes["exact_accumulation"] = False
    return config.model_copy(update={"output": output, "train": config.train.model_copy(update=changes)})


def _repeated(values: Tensor, images: int) -> Tensor:
    """Repeat along the first axis to a length."""
    return values[torch.arange(images) % len(values)]
