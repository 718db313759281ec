"""The order of training: the sampler, what it should do to the classes, and what a dry epoch of it holds."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from segtrain.config import Config
from segtrain.console import say
from segtrain.data import ClassFrequencies
from segtrain.data.dataset import TrainDataset
from segtrain.data.sampling import TrainBatchSampler
from segtrain.data.schemes import build_scheme
from segtrain.distributed import rank, world_size
from segtrain.engine.exposure import expected_table, left_out_note, realised_table, sampling_warnings
from segtrain.engine.folder import run_folder
from segtrain.engine.realised import corrects_twice, realised_frequencies, wants_realised
from segtrain.errors import ConfigError


def build_sampler(
    config: Config, counts: NDArray[np.int64], natural: ClassFrequencies, console: Console
) -> TrainBatchSampler:
    """Make the order of training from int64 [N, C + 1] pixels of each class in each image; print what to expect."""
    data = config.data
    scheme = build_scheme(data.sampling, counts, class_names=data.class_names)
    sampler = TrainBatchSampler(
        len(counts),
        config.train.batch_size,
        seed=config.seed,
        scheme=scheme,
        epoch_samples=data.sampling.epoch_samples,
        rank=rank(),
        world_size=world_size(),
    )
    if world_size() > 1 and sampler.batch_size < config.train.batch_size:
        raise ConfigError(
            f"an epoch of {sampler.epoch_samples} training images does not fill one batch of {config.train.batch_size} "
            f"on each of {world_size()} ranks: lower train.batch_size (a step sees batch_size × ranks images), use "
            "fewer ranks, or raise data.sampling.epoch_samples"
        )
    text = expected_table(scheme, counts, natural, data=data, epoch_samples=sampler.epoch_samples)
    if text:
        say(console, text)
    note = left_out_note(sampler)
    if note is not None:
        say(console, f"note: {note}")
    for warning in sampling_warnings(data.sampling, scheme):
        say(console, f"warning: {warning}", style="yellow")
    return sampler


def count_realised(
    config: Config, train: TrainDataset, natural: ClassFrequencies, sampler: TrainBatchSampler, console: Console
) -> ClassFrequencies | None:
    """Count what training will see, where the loss goes by that, and print it; None elsewhere.

    Where weights and the like go by what there is although rare classes are shown more often, say so.
    """
    assert config.loss != "auto"
    note = corrects_twice(config.loss, config.data)
    if note is not None:
        say(console, f"note: {note}")
    if not wants_realised(config.loss):
        return None
    realised = realised_frequencies(config, train, sampler, folder=run_folder(config))
    say(console, realised_table(realised, natural, config.data))
    return realised
