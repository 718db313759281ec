"""The order of training is a function of seed, epoch and position, and can start anywhere."""

from __future__ import annotations

import pytest

from segtrain.data.sampling import TrainBatchSampler


def test_an_epoch_holds_each_sample_once_in_full_batches() -> None:
    sampler = TrainBatchSampler(23, 4, seed=0)
    batches = list(sampler)
    assert len(batches) == len(sampler) == sampler.batches_per_epoch == 5
    assert {len(batch) for batch in batches} == {4}
    indices = [index for batch in batches for index, _ in batch]
    assert len(set(indices)) == 20
    assert set(indices) <= set(range(23))


def test_a_set_smaller_than_a_batch_is_one_batch() -> None:
    (batch,) = TrainBatchSampler(3, 8, seed=0)
    assert sorted(index for index, _ in batch) == [0, 1, 2]


def test_epochs_and_seeds_differ_and_equal_ones_repeat() -> None:
    def keys(seed: int, epoch: int) -> list[list[tuple[int, int]]]:
        return list(TrainBatchSampler(40, 4, seed=seed, epoch=epoch))

    assert keys(0, 1) == keys(0, 1)
    orders = [keys(0, 0), keys(0, 1), keys(1, 0), keys(1, 1)]
    assert all(one != other for place, one in enumerate(orders) for other in orders[place + 1 :])


def test_no_two_draws_share_an_augmentation_seed() -> None:
    seeds = [
        seed for epoch in range(50) for batch in TrainBatchSampler(20, 4, seed=7, epoch=epoch) for _, seed in batch
    ]
    assert len(set(seeds)) == len(seeds) == 1000


def test_a_start_in_mid_epoch_gives_the_rest() -> None:
    whole = list(TrainBatchSampler(40, 4, seed=3, epoch=2))
    sampler = TrainBatchSampler(40, 4, seed=3, epoch=2, batch=6)
    assert list(sampler) == whole[6:]
    assert len(sampler) == 4
    assert list(sampler) == whole[6:]  # fetching ahead moves nothing
    sampler.set_position(2)
    assert list(sampler) == whole
    sampler.set_position(2, 10)
    assert list(sampler) == []


def test_moving_during_an_epoch_does_not_change_it() -> None:
    sampler = TrainBatchSampler(40, 4, seed=3)
    running = iter(sampler)
    first = next(running)
    sampler.set_position(5)
    assert [first, *running] == list(TrainBatchSampler(40, 4, seed=3))


@pytest.mark.parametrize("position", [(0, 11), (0, -1), (-1, 0)])
def test_positions_outside_an_epoch_are_refused(position: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="an epoch has 10 batches"):
        TrainBatchSampler(40, 4, seed=0).set_position(*position)
