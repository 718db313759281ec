"""Measures how fast data are read: loader, scan and cache against the bare decode of the same files."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from segtrain.benchmark.data_bare import check_plain, decode, decode_and_transform, make_batch
from segtrain.benchmark.environment import describe_environment
from segtrain.benchmark.timing import Timing, paired_ratio, time_interleaved
from segtrain.config.data import DataConfig
from segtrain.data.dataset import TrainDataset
from segtrain.data.formats import Sample
from segtrain.data.frequencies import check_split
from segtrain.data.loader import Loader, build_train_loader
from segtrain.data.pair_cache import with_cache
from segtrain.data.samples import Samples
from segtrain.data.sampling import TrainBatchSampler
from segtrain.data.sources import FilePairs, Pairs
from segtrain.data.transforms import TrainTransform
from segtrain.errors import ConfigError
from segtrain.files import write_whole

DECODE, TRANSFORMS = "bare decode", "bare decode + transforms"
AGAIN, STACKED = "the same again", "the same + torch.stack"
LOADER, SCAN, WARM = "loader", "scan, first", "scan, from its cache"
AIMS = {LOADER: (TRANSFORMS, 0.95), SCAN: (DECODE, 1 / 1.25), WARM: (SCAN, 50.0)}  # speed as a multiple of the other
FILE_LAYOUTS = ("folders", "lists", "table")
PARTS = ("loader", "cache", "scan")
MAX_SECONDS = 600.0


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

    All subjects read the same files, which the system holds in memory after the warm-up, in one thread and with the
    same draws: some images are enlarged to four times their pixels, some shrunk. In each round each reads one batch (or
    all images: the scan, and the loader with workers), in random order, and ratios are of one round.

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
    rows: dict[str, dict[str, Any]] = {}
    try:
        with ExitStack() as stack:
            for group in _groups(settings, samples, stack, tell):
                timings = time_interleaved(group.calls, baseline=DECODE, rounds=group.rounds, max_seconds=MAX_SECONDS)
                rows |= {name: _row(name, timings, num_images=group.images) for name in group.calls if name not in rows}
    finally:
        cv2.setNumThreads(threads)
    return {
        "benchmark": "data",
        "environment": environment | {"opencv": cv2.__version__},
        "settings": {"images": len(samples), "batch": settings.batch, "rounds": settings.rounds},
        "transforms": [step.name for step in settings.data.train_transforms],
        "rows": list(rows.values()),
    }


@dataclass(frozen=True)
class _Group:
    """Subjects that take turns; each call is of this many images."""

    calls: dict[str, Callable[[], object]]
    images: int
    rounds: int


def _groups(
    settings: DataSettings, samples: Samples[Sample], stack: ExitStack, tell: Callable[[str], None]
) -> Iterator[_Group]:
    """First what can take turns batch by batch, as neighbours in time are most alike; then what takes all images."""
    data = stack.enter_context(_listed(settings.data, samples))
    files = [(str(sample.image), str(sample.mask)) for sample in samples]
    batches = list(_sampler(settings, len(samples)))
    transform = TrainTransform(data)
    if "loader" in settings.parts or "cache" in settings.parts:
        check_plain(files)
        calls = {
            DECODE: _in_turn([partial(decode, [files[index] for index, _ in batch]) for batch in batches]),
            TRANSFORMS: _in_turn([partial(decode_and_transform, files, transform, batch) for batch in batches]),
            AGAIN: _in_turn([partial(decode_and_transform, files, transform, batch) for batch in batches]),
            STACKED: _in_turn([partial(make_batch, files, transform, batch) for batch in batches]),
        }
        for name, pairs in _pairs(settings, samples, data, tell).items():
            loader = _loader(stack, settings, TrainDataset(pairs, data), workers=0)
            calls[name] = partial(next, _endless(loader))
        yield _Group(calls, images=len(batches[0]), rounds=settings.rounds * len(batches))
    whole: dict[str, Callable[[], object]] = {DECODE: partial(decode, files)}
    if "loader" in settings.parts and settings.workers:
        keys = [key for batch in batches for key in batch]
        whole[TRANSFORMS] = partial(decode_and_transform, files, transform, keys)
        dataset = TrainDataset(FilePairs(samples, data, split="train"), data)
        loader = _loader(stack, settings, dataset, workers=settings.workers)
        whole[f"{LOADER}, {settings.workers} workers"] = partial(_run, loader)
    if "scan" in settings.parts:
        scan = partial(check_split, data, "train", workers=1, show_progress=False)
        scan()  # so that there is a cache
        whole |= {SCAN: partial(scan, cache=False), WARM: scan}
    if len(whole) > 1:
        yield _Group(whole, images=len(samples), rounds=settings.rounds)


def _pairs(
    settings: DataSettings, samples: Samples[Sample], data: DataConfig, tell: Callable[[str], None]
) -> dict[str, Pairs]:
    """What the loader of this process reads, by the name of the subject."""
    found: dict[str, Pairs] = {LOADER: FilePairs(samples, data, split="train")} if "loader" in settings.parts else {}
    for kind in ("disk", "ram") if "cache" in settings.parts else ():
        kept = data.model_copy(update={"cache": kind})
        found[f"{LOADER}, cache: {kind}"] = with_cache(FilePairs(samples, kept, split="train"), kept, tell=tell)
    return found


def _in_turn(calls: list[Callable[[], object]]) -> Callable[[], object]:
    """One call of these after another, from the first again after the last."""
    turns = cycle(calls)
    return lambda: next(turns)()


def _endless(loader: Loader[dict[str, torch.Tensor]]) -> Iterator[dict[str, torch.Tensor]]:
    while True:
        yield from loader


def _run(loader: Loader[dict[str, torch.Tensor]]) -> None:
    for _ in loader:
        pass


@contextmanager
def _listed(data: DataConfig, samples: Samples[Sample]) -> Iterator[DataConfig]:
    """The same rules for these samples alone, listed in a folder of their own, where caches go too."""
    with tempfile.TemporaryDirectory(prefix="segtrain-benchmark-") as folder:
        lines = [f"{sample.image.resolve()}\t{sample.mask.resolve()}" for sample in samples if sample.mask is not None]
        write_whole(Path(folder) / "train.txt", "\n".join(lines).encode())
        changes = {"root": folder, "layout": "lists", "splits": {"train": "train.txt"}, "cache": "none"}
        yield data.model_copy(update=changes)


def _sampler(settings: DataSettings, num_samples: int) -> TrainBatchSampler:
    return TrainBatchSampler(num_samples, min(settings.batch, num_samples), seed=0)


def _loader(
    stack: ExitStack, settings: DataSettings, dataset: TrainDataset, *, workers: int
) -> Loader[dict[str, torch.Tensor]]:
    loader = build_train_loader(dataset, _sampler(settings, len(dataset)), workers=workers)
    stack.callback(loader.close)
    return loader


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
