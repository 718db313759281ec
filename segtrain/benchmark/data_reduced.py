"""Measures data.decode: reduced against exact: time by image and by item, and how far pixels are off."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import cv2
import numpy as np

from segtrain.benchmark.environment import describe_environment
from segtrain.benchmark.timing import Timing, paired_ratio, time_interleaved
from segtrain.config.data import DataConfig
from segtrain.data.dataset import EvalDataset
from segtrain.data.formats import Sample
from segtrain.data.frequencies import check_split
from segtrain.data.images import AnyArray, decode_image, read_checked
from segtrain.data.samples import Samples
from segtrain.data.transforms import resize_image
from segtrain.errors import ConfigError

DIVISORS = (2, 3, 4)  # of the size of the images: input_size
IMAGE, ITEM = "image, decoded and resized", "item of the evaluation, with its mask"
MAX_SECONDS = 600.0
Size = tuple[int, int]


def benchmark_reduced(data: DataConfig, *, images: int, rounds: int) -> dict[str, Any]:
    """Measure at a half, a third and a quarter of the size of the first image; everything in JSON types.

    Raises:
        ConfigError: images that are not JPEG, which are always decoded in full.
    """
    environment = describe_environment("cpu")
    scan = check_split(data, "train")
    samples = scan.samples.select(np.unique(np.linspace(0, len(scan.samples) - 1, images).astype(np.int64)))
    _, header = read_checked(samples[0].image, max_pixels=data.max_pixels)
    if header.kind != "JPEG" or data.bands is not None:
        raise ConfigError(f"{samples[0].image}: only JPEG images without data.bands are decoded smaller")
    sizes = [(max(1, header.height // divisor), max(1, header.width // divisor)) for divisor in DIVISORS]
    threads = cv2.getNumThreads()
    cv2.setNumThreads(0)  # as in the workers of the loader
    try:
        rows = [_measure(data, samples, size, rounds=rounds) for size in sizes]
    finally:
        cv2.setNumThreads(threads)
    return {
        "benchmark": "reduced",
        "environment": environment | {"opencv": cv2.__version__},
        "settings": {"images": len(samples), "rounds": rounds, "first_image": [header.height, header.width]},
        "rows": rows,
    }


def _measure(data: DataConfig, samples: Samples[Sample], size: Size, *, rounds: int) -> dict[str, Any]:
    kept = {"input_size": size, "cache": "none"}
    exact, reduced = (data.model_copy(update=kept | {"decode": way}) for way in ("exact", "reduced"))
    paths = [sample.image for sample in samples]
    calls: dict[str, Callable[[], object]] = {
        f"{ITEM}, exact": partial(_items, EvalDataset(samples, exact)),
        f"{ITEM}, reduced": partial(_items, EvalDataset(samples, reduced)),
        f"{IMAGE}, exact": partial(_images, data, paths, size, at_least=None),
        f"{IMAGE}, reduced": partial(_images, data, paths, size, at_least=size),
    }
    timings = time_interleaved(calls, baseline=f"{ITEM}, exact", rounds=rounds, max_seconds=MAX_SECONDS)
    pairs = zip(_images(data, paths, size, at_least=None), _images(data, paths, size, at_least=size), strict=True)
    off = [float(np.abs(one.astype(np.float64) - other).mean()) / np.iinfo(one.dtype).max for one, other in pairs]
    return {
        "input_size": list(size),
        "image_by_cpu_time": _ratio(timings, IMAGE),
        "item_by_cpu_time": _ratio(timings, ITEM),
        "levels_of_255": 255 * float(np.mean(off)),
    }


def _items(dataset: EvalDataset) -> None:
    for index in range(len(dataset)):
        dataset[index]


def _images(data: DataConfig, paths: Sequence[Any], size: Size, *, at_least: Size | None) -> list[AnyArray]:
    channels, found = len(data.normalize.mean), []
    for path in paths:
        content, header = read_checked(path, max_pixels=data.max_pixels)
        image = decode_image(content, header, path=path, in_channels=channels, at_least=at_least)
        found.append(resize_image(image, size))
    return found


def _ratio(timings: dict[str, Timing], name: str) -> float | None:
    """CPU seconds of the reduced way over those of the exact one: the median over the rounds."""
    mine, theirs = timings[f"{name}, reduced"], timings[f"{name}, exact"]
    spread = paired_ratio(mine.rounds, mine.cpu_seconds, theirs.rounds, theirs.cpu_seconds)
    return None if spread is None else spread.median
