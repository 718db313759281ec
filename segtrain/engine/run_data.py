"""The data of a run: both splits checked and counted before step 1, from files or as given in code."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from segtrain.config import Config
from segtrain.console import say
from segtrain.data import ClassFrequencies
from segtrain.data.dataset import EvalDataset, TrainDataset
from segtrain.data.frequencies import ScanResult, check_split, frequencies_of
from segtrain.data.given import GivenPairs, MapDataset, check_given
from segtrain.data.pair_cache import with_cache
from segtrain.data.sources import FilePairs, Pairs
from segtrain.engine.exposure import count_targets
from segtrain.engine.fitness import check_distances
from segtrain.engine.monitor import check_val_classes
from segtrain.engine.validation_images import ValidationImages, choose_samples
from segtrain.errors import ConfigError
from segtrain.metrics import tail_classes


@dataclass(frozen=True)
class RunData:
    """Both data sets, the int64 counts of each sample's pixels by class, and the frequencies of training."""

    train: TrainDataset
    val: EvalDataset
    frequencies: ClassFrequencies
    train_counts: NDArray[np.int64]
    val_counts: NDArray[np.int64]

    @classmethod
    def check(cls, config: Config, train: MapDataset | None, val: MapDataset | None, *, console: Console) -> RunData:
        """Check the configured splits whole, and what was given in code likewise; count the classes of both."""
        if isinstance(train, TrainDataset):
            rows = count_targets((train.read(index)[1] for index in range(len(train))), config.data)
            frequencies, counts = frequencies_of(rows, config.data)
        else:
            pairs, scan = _check(config, "train", train, console)
            counts, frequencies = scan.counts, scan.frequencies
            train = TrainDataset(pairs, config.data, counts=counts)
        if isinstance(val, EvalDataset):
            return cls(train, val, frequencies, counts, np.zeros((len(val), len(config.data.classes)), np.int64))
        pairs, scan = _check(config, "val", val, console)
        for message in check_val_classes(config, scan.frequencies.pixels.tolist()):
            say(console, f"warning: {message}", style="yellow")
        return cls(train, EvalDataset(pairs, config.data), frequencies, counts, scan.counts)

    def with_maps(self, config: Config, classes: tuple[int, ...] | None, *, given: bool) -> RunData:
        """Have the training data make the distance maps that the loss reads; data that was given must fit them."""
        if given:
            check_distances(self.train, classes)
        if given or classes is None:
            return self
        train = TrainDataset(self.train.pairs, config.data, distance_classes=classes, counts=self.train_counts)
        return replace(self, train=train)

    def validation_images(self, config: Config) -> ValidationImages:
        """Choose the samples that TensorBoard shows."""
        rare = tail_classes(self.frequencies.pixels, config.evaluate.tail_fraction)
        names = [sample.name for sample in self.val.samples]
        indices = choose_samples(self.val_counts, rare, num_samples=config.train.validation_samples)
        return ValidationImages(config, names, indices=indices, rare=rare)


def _check(config: Config, split: str, given: MapDataset | None, console: Console) -> tuple[Pairs, ScanResult]:
    """Check and count a split of the configuration, or the data set of pairs that stands in for it."""
    pairs: Pairs
    if given is None:
        scan = check_split(config.data, split)
        files = FilePairs(scan.samples, config.data, split=split)
        pairs = with_cache(files, config.data, tell=partial(say, console))
    elif config.data.cache != "none":
        raise ConfigError(
            f"data.cache: {config.data.cache} keeps what files hold, and {split}_data was given: use none"
        )
    else:
        own = GivenPairs(given, config.data, split=split)
        scan = check_given(own, config.data, workers=config.data.workers)
        pairs = own.select(scan.good)
    if scan.problems:
        text = f"warning: {len(scan.problems)} bad samples of {split} are left out"
        say(console, text, style="yellow")
    return pairs, scan
