"""Each way of sampling draws the images with the probabilities of its paper, exactly as often as it promises."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any, get_args

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import TypeAdapter

from segtrain.config.sampling import SamplingConfig
from segtrain.data.sampling import TrainBatchSampler
from segtrain.data.schemes import SCHEMES, Scheme, build_scheme, class_probability
from segtrain.errors import ConfigError, DataError

NAMES = ("road", "pole", "crack")
PARSE: TypeAdapter[Any] = TypeAdapter(SamplingConfig)


def table(num_images: int = 60) -> NDArray[np.int64]:
    """Pixels [N, 4]: road in all images, pole in every third, crack in every twelfth; 5 ignored pixels in each."""
    counts = np.zeros((num_images, 4), np.int64)
    counts[:, 0], counts[:, 3] = 10_000, 5
    counts[::3, 1] = 100
    counts[::12, 2] = 10
    return counts


def scheme(counts: NDArray[np.int64] | None = None, **section: Any) -> Scheme:
    counts = table() if counts is None else counts
    return build_scheme(PARSE.validate_python(section), counts, class_names=NAMES[: counts.shape[1] - 1])


def drawn(chosen: Scheme, count: int, seed: int = 0) -> NDArray[np.int64]:
    """How often each image is drawn."""
    order = chosen.draw(count, np.random.default_rng(seed))
    assert order.dtype == np.int64
    assert len(order) == count
    return np.bincount(order, minlength=len(chosen.shares))


def chi_square(observed: NDArray[np.int64], shares: NDArray[np.float64]) -> float:
    """χ² over its degrees of freedom: near 1 where the draws follow the shares."""
    expected = shares * observed.sum()
    assert not observed[expected == 0].any()
    drawable = expected > 0
    return float(((observed - expected)[drawable] ** 2 / expected[drawable]).sum() / (drawable.sum() - 1))


def test_the_schemes_are_those_of_the_schema() -> None:
    names = {get_args(section.model_fields["name"].annotation)[0] for section in get_args(get_args(SamplingConfig)[0])}
    assert set(SCHEMES) == names


def test_uniform_takes_each_image_once_in_each_round() -> None:
    assert (drawn(scheme(name="uniform"), 60) == 1).all()
    assert set(drawn(scheme(name="uniform"), 90)) == {1, 2}


@pytest.mark.parametrize(
    "section",
    [
        {"name": "rare_class", "temperature": 0.5, "min_pixels": 5},
        {"name": "rare_class", "weighting": "log", "min_pixels": 5},
        {"name": "class_uniform"},
        {"name": "class_uniform", "negatives": {"classes": ["pole"], "exactly": 0.25}},
        {"name": "class_uniform", "negatives": {"classes": ["pole"], "at_most": 0.1}},
    ],
    ids=str,
)
def test_draws_with_replacement_follow_their_expected_shares(section: dict[str, Any]) -> None:
    chosen = scheme(**section)
    assert chosen.shares.sum() == pytest.approx(1)
    assert 0.5 < chi_square(drawn(chosen, 60_000), chosen.shares) < 1.6


def test_rare_class_sampling_has_the_class_probabilities_of_its_paper() -> None:
    counts = table()
    share = counts[:, :3].sum(0) / counts[:, :3].sum()
    expected = np.exp((1 - share) / 0.01)
    np.testing.assert_allclose(
        class_probability(PARSE.validate_python({"name": "rare_class"}), counts), expected / expected.sum()
    )
    expected = share ** (-1 / 3.0)
    section = PARSE.validate_python({"name": "rare_class", "weighting": "log", "temperature": 3.0})
    np.testing.assert_allclose(class_probability(section, counts), expected / expected.sum())


def test_images_are_drawn_through_their_classes() -> None:
    chosen = scheme(name="rare_class", min_pixels=10)
    probability = class_probability(PARSE.validate_python({"name": "rare_class"}), table())
    np.testing.assert_allclose(chosen.shares[0], probability @ [1 / 60, 1 / 20, 1 / 5])
    np.testing.assert_allclose(chosen.shares[3], probability @ [1 / 60, 1 / 20, 0])
    np.testing.assert_allclose(chosen.shares[1], probability @ [1 / 60, 0, 0])


def test_log_weighting_tells_very_rare_classes_apart_where_linear_cannot() -> None:
    counts = np.array([[10**8, 10**4, 10**2, 0]])
    linear, log = (
        class_probability(PARSE.validate_python({"name": "rare_class", "weighting": weighting}), counts)
        for weighting in ("linear", "log")
    )
    assert linear[2] / linear[1] < 1.02
    assert log[2] / log[1] == pytest.approx(10)  # f^(-1/2)


def test_a_class_under_the_pixel_minimum_in_every_image_is_drawn_all_the_same() -> None:
    chosen = scheme(name="rare_class", min_pixels=50)  # pole has 100 in its images, crack 10
    holds_crack = table()[:, 2] > 0
    probability = class_probability(PARSE.validate_python({"name": "rare_class"}), table())
    assert drawn(chosen, 10_000)[holds_crack].sum() / 10_000 > 0.9 * probability[2]


def test_the_pixel_minimum_leaves_out_images_with_a_trace_of_the_class() -> None:
    counts = table()
    counts[1, 2] = 1
    trace = scheme(counts, name="rare_class", min_pixels=5).shares[1]
    assert trace == pytest.approx(scheme(counts, name="rare_class", min_pixels=5).shares[2])
    assert scheme(counts, name="rare_class", min_pixels=1).shares[1] > 3 * trace


def test_a_class_without_pixels_and_an_image_without_classes_are_never_drawn() -> None:
    counts = np.array([[50, 0, 9], [0, 0, 59], [50, 0, 9]])
    for section in ({"name": "rare_class"}, {"name": "class_uniform"}):
        np.testing.assert_allclose(scheme(counts, **section).shares, [0.5, 0, 0.5])


def test_class_uniform_draws_every_class_equally_often() -> None:
    shares = scheme(name="class_uniform").shares
    weights = (table()[:, :3] > 0) / (table()[:, :3] > 0).sum(0)
    np.testing.assert_allclose(shares, weights.sum(1) / 3)


def test_repeat_factors_are_those_of_lvis_and_their_fractions_are_drawn_anew() -> None:
    chosen = scheme(name="repeat_factor", threshold=0.5)
    factors = np.ones(60)
    factors[::3] = np.sqrt(0.5 / (20 / 60))
    factors[::12] = np.sqrt(0.5 / (5 / 60))
    np.testing.assert_allclose(chosen.shares, factors / factors.sum())
    rounds = [drawn(chosen, round(factors.sum()) - 5, seed) for seed in range(200)]
    assert len({tuple(times) for times in rounds}) > 150
    whole = np.mean([drawn(chosen, 2000, seed) for seed in range(20)], axis=0)
    np.testing.assert_allclose(whole / 2000, factors / factors.sum(), rtol=0.05)
    assert all(times.max() <= np.ceil(factors.max()) for times in rounds)


@pytest.mark.parametrize("name", sorted(SCHEMES))
@pytest.mark.parametrize("share", [0.0, 0.29, 0.5])
def test_a_quota_of_negatives_holds_in_each_epoch(name: str, share: float) -> None:
    negative = table()[:, 1] == 0
    for seed in range(20):
        exactly = drawn(scheme(name=name, negatives={"classes": ["pole"], "exactly": share}), 100, seed)
        assert exactly[negative].sum() == round(100 * share)
        at_most = drawn(scheme(name=name, negatives={"classes": ["pole"], "at_most": share}), 100, seed)
        assert at_most[negative].sum() <= round(100 * share)


def test_a_quota_that_is_kept_anyway_changes_nothing() -> None:
    free = scheme(name="uniform").draw(60, np.random.default_rng(3))
    capped = scheme(name="uniform", negatives={"classes": ["pole"], "at_most": 0.9})
    np.testing.assert_array_equal(capped.draw(60, np.random.default_rng(3)), free)


def test_rare_means_the_rarest_third_of_the_classes_with_pixels() -> None:
    by_word = scheme(name="uniform", negatives={"classes": "rare", "exactly": 0.5})
    np.testing.assert_allclose(
        by_word.shares, scheme(name="uniform", negatives={"classes": ["crack"], "exactly": 0.5}).shares
    )


def test_quotas_that_cannot_be_filled_are_refused() -> None:
    with pytest.raises(DataError, match="every training image holds one of road"):
        scheme(name="uniform", negatives={"classes": ["road"], "exactly": 0.5})
    counts = table()
    counts[:, 2] = 0
    with pytest.raises(DataError, match="no training image holds crack"):
        scheme(counts, name="uniform", negatives={"classes": ["crack"], "at_most": 0.5})
    with pytest.raises(DataError, match="not one pixel"):
        scheme(counts * 0, name="class_uniform")
    with pytest.raises(ValueError, match="either at_most or exactly"):
        scheme(name="uniform", negatives={"classes": ["road"]})


@pytest.mark.parametrize("name", sorted(SCHEMES))
def test_the_order_is_a_function_of_seed_and_epoch_and_can_start_anywhere(name: str) -> None:
    def sampler(**position: int) -> TrainBatchSampler:
        return TrainBatchSampler(60, 8, seed=4, scheme=scheme(name=name), epoch_samples=50, **position)

    whole = list(sampler(epoch=3))
    assert len(whole) == 6
    assert {len(batch) for batch in whole} == {8}
    assert list(sampler(epoch=3, batch=4)) == whole[4:]
    moved = sampler()
    list(moved)
    moved.set_position(3)
    assert list(moved) == whole
    assert list(sampler(epoch=4)) != whole


def test_an_image_drawn_often_gets_a_seed_for_each_draw() -> None:
    counts = np.zeros((30, 3), np.int64)
    counts[:, 0] = 100
    counts[7, 1] = 20
    sampler = TrainBatchSampler(30, 5, seed=0, scheme=scheme(counts, name="class_uniform"))
    keys = [key for epoch in range(5) for batch in _epoch(sampler, epoch) for key in batch]
    seeds = [seed for index, seed in keys if index == 7]
    assert len(seeds) > 50
    assert len(set(seeds)) == len(seeds)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("name", sorted(SCHEMES))
def test_ranks_share_the_one_order_without_overlap_in_full_batches(name: str, world_size: int) -> None:
    def keys(rank: int, world_size: int, batch_size: int) -> list[list[tuple[int, int]]]:
        return list(
            TrainBatchSampler(
                60, batch_size, seed=2, epoch=1, scheme=scheme(name=name), rank=rank, world_size=world_size
            )
        )

    alone = keys(0, 1, 12)
    together = [keys(rank, world_size, 12 // world_size) for rank in range(world_size)]
    assert {len(batches) for batches in together} == {5}
    for step, batch in enumerate(alone):
        shared = [key for batches in together for key in batches[step]]
        assert len(set(shared)) == 12
        assert set(shared) == set(batch)


def test_an_epoch_too_short_for_all_ranks_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot be shared by 4 ranks"):
        TrainBatchSampler(3, 8, seed=0, rank=1, world_size=4)
    assert [len(batch) for batch in TrainBatchSampler(7, 8, seed=0, rank=2, world_size=3)] == [2]


def test_an_uniform_epoch_is_the_permutation_it_has_always_been() -> None:
    (batch,) = TrainBatchSampler(8, 8, seed=3, epoch=2)
    expected = np.random.default_rng([3, 2, 0]).permutation(8)
    assert [index for index, _ in batch] == expected.tolist()


def test_another_process_draws_the_same() -> None:
    code = (
        "import json, numpy as np\n"
        "from segtrain.data.schemes import Weighted\n"
        "draws = Weighted(np.array([0.1, 0.0, 0.7, 0.2])).draw(20, np.random.default_rng([1, 2, 0]))\n"
        "print(json.dumps(draws.tolist()))\n"
    )
    answers = {subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout for _ in range(2)}
    assert len(answers) == 1
    assert 1 not in json.loads(answers.pop())


def _epoch(sampler: TrainBatchSampler, epoch: int) -> list[list[tuple[int, int]]]:
    sampler.set_position(epoch)
    return list(sampler)
