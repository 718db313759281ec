"""Measures how fast data are read: loader, scan and cache against the bare decode of the same files."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from segtrain.benchmark.environment import describe_environment
from segtrain.benchmark.timing import Timing, paired_ratio, time_interleaved
from segtrain.config.data import DataConfig
from segtrain.data.dataset import TrainDataset
from segtrain.data.formats import Sample
from segtrain.data.frequencies import check_split
from segtrain.data.images import DECODE_RGB
from segtrain.data.loader import Loader, build_train_loader
from segtrain.data.pair_cache import with_cache
from segtrain.data.samples import Samples
from segtrain.data.sampling import TrainBatchSampler
from segtrain.data.sources import FilePairs
from segtrain.data.transforms import TrainTransform
from segtrain.errors import ConfigError
from segtrain.files import write_whole

DECODE, TRANSFORMS, AGAIN = "bare decode", "bare decode + transforms", "the same again"
LOADER, SCAN, WARM = "loader", "scan, first", "scan, from its cache"
AIMS = {LOADER: (TRANSFORMS, 0.95), SCAN: (DECODE, 1 / 1.25), WARM: (SCAN, 50.0)}  # speed as a multiple of the other
FILE_LAYOUTS = ("folders", "lists", "table")
PARTS = ("loader", "cache", "scan")
MAX_SECONDS = 600.0
Files = list[tuple[str, str]]
# As the loader decodes: to RGB at once where OpenCV can; and the orientation in a file is not applied.
COLORS = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION if DECODE_RGB is None else DECODE_RGB


@dataclass(frozen=True)
class DataSettings:
    """What is measured: `images` samples of the training split, in batches, `rounds` times; `parts`: which subjects."""

    data: DataConfig
    images: int
    batch: int
    rounds: int
    workers: int
    parts: tuple[str, ...] = PARTS


def benchmark_data(settings: DataSettings, *, tell: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """Measure, and return everything in JSON types.

    All subjects read the same files, which the system holds in memory after the warm-up, in one thread; each round
    times each once, in random order, and ratios are of one round.

    Raises:
        ConfigError: a layout whose masks are not image files, which nothing could decode barely.
    """
    environment = describe_environment("cpu")
    if settings.data.layout not in FILE_LAYOUTS:
        layouts = ", ".join(FILE_LAYOUTS)
        raise ConfigError(
            f"data.layout: {settings.data.layout}: `benchmark data` measures {layouts}, whose masks are files"
        )
    scan = check_split(settings.data, "train")
    chosen = np.unique(np.linspace(0, len(scan.samples) - 1, settings.images).astype(np.int64))
    samples = scan.samples.select(chosen)
    tell(f"{len(samples)} samples, {settings.rounds} rounds")
    threads = cv2.getNumThreads()
    cv2.setNumThreads(0)  # as in the workers of the loader
    try:
        with ExitStack() as stack:
            calls = _subjects(settings, samples, stack, tell)
            timings = time_interleaved(calls, baseline=DECODE, rounds=settings.rounds, max_seconds=MAX_SECONDS)
    finally:
        cv2.setNumThreads(threads)
    rows = [_row(name, timings, num_images=len(samples)) for name in calls]
    return {
        "benchmark": "data",
        "environment": environment | {"opencv": cv2.__version__},
        "settings": {"images": len(samples), "batch": settings.batch, "rounds": settings.rounds},
        "transforms": [step.name for step in settings.data.train_transforms],
        "rows": rows,
    }


def _subjects(
    settings: DataSettings, samples: Samples[Sample], stack: ExitStack, tell: Callable[[str], None]
) -> dict[str, Callable[[], object]]:
    data = stack.enter_context(_listed(settings.data, samples))
    pairs = FilePairs(samples, data, split="train")
    transform = TrainTransform(data)
    files = [(str(sample.image), str(sample.mask)) for sample in samples]
    calls: dict[str, Callable[[], object]] = {DECODE: partial(_decode, files)}
    if "loader" in settings.parts or "cache" in settings.parts:
        _check_plain(files)
        calls[TRANSFORMS] = partial(_decode_and_transform, files, transform, _keys(settings, len(samples)))
        calls[AGAIN] = calls[TRANSFORMS]  # how far from 1 a ratio is by chance
    if "loader" in settings.parts:
        dataset = TrainDataset(pairs, data)
        calls[LOADER] = _epochs(stack, settings, dataset, workers=0)
        if settings.workers:
            name = f"{LOADER}, {settings.workers} workers"
            calls[name] = _epochs(stack, settings, dataset, workers=settings.workers)
    for kind in ("disk", "ram") if "cache" in settings.parts else ():
        kept = data.model_copy(update={"cache": kind})
        cached = with_cache(FilePairs(samples, kept, split="train"), kept, tell=tell)
        calls[f"{LOADER}, cache: {kind}"] = _epochs(stack, settings, TrainDataset(cached, data), workers=0)
    if "scan" in settings.parts:
        scan = partial(check_split, data, "train", workers=1, show_progress=False)
        scan()  # so that there is a cache
        calls |= {SCAN: partial(scan, cache=False), WARM: scan}
    return calls


@contextmanager
def _listed(data: DataConfig, samples: Samples[Sample]) -> Iterator[DataConfig]:
    """The same rules for these samples alone, listed in a folder of their own, where caches go too."""
    with tempfile.TemporaryDirectory(prefix="segtrain-benchmark-") as folder:
        lines = [f"{sample.image.resolve()}\t{sample.mask.resolve()}" for sample in samples if sample.mask is not None]
        write_whole(Path(folder) / "train.txt", "\n".join(lines).encode())
        changes = {"root": folder, "layout": "lists", "splits": {"train": "train.txt"}, "cache": "none"}
        yield data.model_copy(update=changes)


def _decode(files: Files) -> None:
    for image, mask in files:
        cv2.imread(image, COLORS)
        cv2.imread(mask, cv2.IMREAD_UNCHANGED)


def _decode_and_transform(files: Files, transform: TrainTransform, keys: list[tuple[int, int]]) -> None:
    """What a loop does that looks at nothing, neither headers nor labels nor sizes, and drops each result at once."""
    imread: Any = cv2.imread  # never None: see _check_plain
    for index, seed in keys:
        image, mask = files[index]
        transform(imread(image, COLORS), imread(mask, cv2.IMREAD_UNCHANGED), seed=seed, index=index)


def _check_plain(files: Files) -> None:
    for image, mask in files:
        pixels, labels = cv2.imread(image, cv2.IMREAD_UNCHANGED), cv2.imread(mask, cv2.IMREAD_UNCHANGED)
        plain = pixels is not None and pixels.shape[2:] == (3,) and pixels.dtype == np.uint8
        if not plain or labels is None or labels.ndim != 2:
            raise ConfigError(
                f"{image}: `benchmark data` measures 8-bit colour images with masks of one channel that OpenCV reads"
            )


def _sampler(settings: DataSettings, num_samples: int) -> TrainBatchSampler:
    return TrainBatchSampler(num_samples, min(settings.batch, num_samples), seed=0)


def _keys(settings: DataSettings, num_samples: int) -> list[tuple[int, int]]:
    """What the loader reads, with the same draws: some images are enlarged to four times their pixels, some shrunk."""
    return [key for batch in _sampler(settings, num_samples) for key in batch]


def _epochs(stack: ExitStack, settings: DataSettings, dataset: TrainDataset, *, workers: int) -> Callable[[], object]:
    sampler = _sampler(settings, len(dataset))
    loader: Loader[dict[str, torch.Tensor]] = build_train_loader(dataset, sampler, workers=workers)
    stack.callback(loader.close)

    def run() -> None:
        for _ in loader:
            pass

    return run


def _row(name: str, timings: dict[str, Timing], *, num_images: int) -> dict[str, Any]:
    timing = timings[name]
    row: dict[str, Any] = {"name": name, "images_per_second": num_images / float(np.median(timing.seconds))}
    for key, other in (("to_decode", DECODE), ("to_transforms", TRANSFORMS)):
        row[key] = _speed(timings, name, other) if other in timings else None
    if name in AIMS:
        other, aim = AIMS[name]
        row["aim"] = {"against": other, "at_least": aim, "found": _speed(timings, name, other)}
        mine, theirs = timings[name], timings[other]
        cpu = paired_ratio(theirs.rounds, theirs.cpu_seconds, mine.rounds, mine.cpu_seconds)
        row["aim"]["found_by_cpu_time"] = None if cpu is None else cpu.median
    return row


def _speed(timings: dict[str, Timing], name: str, other: str) -> float:
    """How many times as fast as another subject: the median over the rounds."""
    mine, theirs = timings[name], timings[other]
    spread = paired_ratio(theirs.rounds, theirs.seconds, mine.rounds, mine.seconds)
    assert spread is not None
    return spread.median
