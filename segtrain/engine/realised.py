"""The class frequencies that training will see: a dry epoch of the loader's targets, counted before training."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from segtrain.config import Config, config_to_dict
from segtrain.config.data import DataConfig
from segtrain.config.loss import LossConfig
from segtrain.console import progress
from segtrain.data import ClassFrequencies
from segtrain.data.dataset import Item, TrainDataset
from segtrain.data.frequencies import frequencies_of
from segtrain.data.loader import Loader
from segtrain.data.sampling import TrainBatchSampler
from segtrain.distributed import gather_objects, rank, sum_over_ranks, world_size
from segtrain.engine.exposure import count_targets
from segtrain.errors import SegtrainError

FILE = "realised_frequencies.json"


def wants_realised(section: LossConfig) -> bool:
    """Whether any part of the loss goes by the frequencies that training sees."""
    return "realised" in _parts(section).values()


def corrects_twice(section: LossConfig, data: DataConfig) -> str | None:
    """Say which parts of the loss go by the natural frequencies beside what already changes them; None for none."""
    steps = data.train_transforms
    causes = {
        "data.sampling": data.sampling.name != "uniform" or data.sampling.negatives is not None,
        "crop.center_on": any(step.name == "crop" and step.center_on is not None for step in steps),
        "copy_paste": any(step.name == "copy_paste" for step in steps),
    }
    found = [cause for cause, holds in causes.items() if holds]
    natural = [f"loss.{key}" for key, which in _parts(section).items() if which == "natural"]
    if not found or not natural:
        return None
    return (
        f"{' and '.join(natural)} from the natural frequencies, beside {', '.join(found)}, which shows rare classes "
        "more often, may correct twice: frequencies: realised there goes by what training sees"
    )


def _parts(section: LossConfig) -> dict[str, str]:
    """The parts of a loss that go by frequencies, and by which."""
    found: dict[str, str] = {}
    if section.class_weights.scheme not in ("none", "manual"):
        found["class_weights"] = section.class_weights.frequencies
    for key in ("prior", "margin"):
        part = getattr(section, key)
        if part is not None:
            found[key] = part.frequencies
    return found


def realised_frequencies(
    config: Config, train: TrainDataset, sampler: TrainBatchSampler, *, folder: Path
) -> ClassFrequencies:
    """Count the targets of the first epoch, after sampling, crops and paste, as training will see them.

    Images are not read where the data set can do without. A run that goes on takes the counts from its folder, as long
    as data, seed and batches are the same.

    Args:
        config: of the run.
        train: the training set.
        sampler: the order of training.
        folder: of the run; see `save_realised`.
    """
    known = _load(folder / FILE, _key(config, train))
    # the folder may be seen by some ranks alone, and counting takes all of them
    if all(gather_objects(known is not None)) and known is not None:
        return known
    sampler.set_position(0)
    loader: Loader[NDArray[np.int64]] = Loader(
        _Targets(train), sampler, collate=_stack, workers=config.data.workers, pin_memory=False
    )
    rows: list[NDArray[np.int64]] = []
    try:
        console = None if rank() == 0 else Console(quiet=True)
        with progress("count an epoch of training targets", len(sampler), console=console) as advance:
            for batch in loader:
                rows.append(batch)
                advance(1)
    finally:
        loader.close()
    return _of_all_ranks(frequencies_of(np.concatenate(rows), config.data)[0])


def save_realised(frequencies: ClassFrequencies, config: Config, train: TrainDataset, *, folder: Path) -> None:
    """Keep the counts in the folder of the run, for when it goes on; see `realised_frequencies` for the arguments.

    Raises:
        SegtrainError: the file cannot be written.
    """
    content = {"key": _key(config, train), "frequencies": frequencies.to_dict()}
    try:
        (folder / FILE).write_text(json.dumps(content) + "\n", encoding="utf-8")
    except OSError as error:
        raise SegtrainError(f"cannot write {folder / FILE}: {error.strerror or error}") from error


class _Targets:
    """The targets of the training items, counted: int64 [C + 1]."""

    def __init__(self, train: TrainDataset) -> None:
        self.name = train.name
        self._train = train

    def __getitem__(self, key: tuple[int, int]) -> Item:
        return {"counts": count_targets([self._train.target(key)], self._train.data)[0]}

    def __len__(self) -> int:
        return len(self._train)


def _stack(items: list[Item]) -> NDArray[np.int64]:
    return np.array([item["counts"] for item in items], np.int64)


def _of_all_ranks(own: ClassFrequencies) -> ClassFrequencies:
    by_class = [own.pixels, own.images, own.image_pixels, *([] if own.valid is None else [own.valid])]
    summed = sum_over_ranks(np.concatenate([*by_class, np.array([own.ignored, own.num_images], np.int64)]))
    pixels, images, image_pixels, *valid = summed[:-2].reshape(len(by_class), -1)
    ignored, num_images = summed[-2:].tolist()
    return ClassFrequencies(pixels, images, image_pixels, ignored, num_images, valid=valid[0] if valid else None)


def _key(config: Config, train: TrainDataset) -> str:
    """What the counts depend on, as a hash."""
    plain = config_to_dict(config)
    data = {key: value for key, value in plain["data"].items() if key not in ("workers", "cache")}
    counts = np.zeros(len(train)) if train.counts is None else np.ascontiguousarray(train.counts)
    settings = json.dumps(
        [data, plain["seed"], plain["train"]["batch_size"] * world_size()], sort_keys=True, default=str
    )
    return hashlib.sha256(settings.encode() + counts.tobytes()).hexdigest()


def _load(path: Path, key: str) -> ClassFrequencies | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return ClassFrequencies.from_dict(content["frequencies"]) if content["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError):  # no such file, or a damaged one: it is counted again
        return None
