"""Timing is paired: all subjects in each round in changing order, so that drift of the machine leaves ratios alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from segtrain.benchmark import timing
from segtrain.benchmark.timing import WARMUP_ROUNDS, Spread, paired_ratio, time_interleaved

CallOrder = list[str]


def _recorder(names: str, order: CallOrder) -> dict[str, Callable[[], None]]:
    return {name: partial(order.append, name) for name in names}


@pytest.fixture
def fake_clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, float], Callable[[int], float]], CallOrder]:
    """Durations by name, times what the machine's slowness is at that call, in place of the real clock."""

    def install(durations: dict[str, float], slowness: Callable[[int], float] = lambda index: 1.0) -> CallOrder:
        order: CallOrder = []

        def time_call(call: Callable[[], None], *, device: str) -> tuple[float, float]:
            call()
            seconds = durations[order[-1]] * slowness(len(order))
            return seconds, seconds / 2

        monkeypatch.setattr(timing, "time_call", time_call)
        return order

    return install


def test_every_round_holds_every_subject_once_in_an_order_of_its_own() -> None:
    order: CallOrder = []
    time_interleaved(_recorder("abcd", order), baseline="a", rounds=12, max_seconds=10)
    assert len(order) == 4 * (WARMUP_ROUNDS + 12)
    rounds = ["".join(order[start : start + 4]) for start in range(4 * WARMUP_ROUNDS, len(order), 4)]
    assert {"".join(sorted(each)) for each in rounds} == {"abcd"}
    assert len(set(rounds)) > 3


def test_what_is_reset_is_reset_before_each_call_and_outside_the_clock(fake_clock: Any) -> None:
    order = fake_clock({"a": 1.0, "b": 1.0, "reset": 100.0})
    timings = time_interleaved(
        _recorder("ab", order), baseline="a", rounds=4, max_seconds=10, reset=lambda: order.append("reset")
    )
    assert set(order[::2]) == {"reset"}
    assert timings["a"].seconds == timings["b"].seconds == [1.0] * 4


def test_ratios_stay_when_the_machine_slows_down_half_way(fake_clock: Any) -> None:
    order = fake_clock({"a": 1.0, "b": 2.0}, lambda index: 10.0 if index > 14 else 1.0)
    timings = time_interleaved(_recorder("ab", order), baseline="a", rounds=11, max_seconds=1e9)
    a, b = timings["a"], timings["b"]
    assert max(a.seconds) == 10 * min(a.seconds)
    for values, others in ((b.seconds, a.seconds), (b.cpu_seconds, a.cpu_seconds)):
        ratio = paired_ratio(b.rounds, values, a.rounds, others)
        assert ratio is not None
        assert ratio.median == pytest.approx(2.0)


def test_a_slow_subject_takes_part_in_fewer_rounds_evenly_spread_and_pairs_with_the_baseline_of_them(
    fake_clock: Any,
) -> None:
    order = fake_clock({"a": 0.01, "b": 2.0, "c": 1000.0})
    timings = time_interleaved(_recorder("abc", order), baseline="a", rounds=20, max_seconds=10)
    assert timings["a"].rounds == list(range(20))
    assert timings["b"].rounds == [3, 7, 11, 15, 19]
    assert len(timings["c"].rounds) == 3
    a, b = timings["a"], timings["b"]
    ratio = paired_ratio(b.rounds, b.seconds, a.rounds, a.seconds)
    assert ratio is not None
    assert ratio.median == pytest.approx(200)


def test_the_spread_is_the_median_and_the_quartiles() -> None:
    assert Spread.of([4.0, 1.0, 3.0, 2.0, 100.0]) == Spread(median=3.0, lower=2.0, upper=4.0)
    assert Spread.of([7.0]) == Spread(median=7.0, lower=7.0, upper=7.0)


def test_no_ratio_is_made_up_where_the_clock_saw_nothing() -> None:
    assert paired_ratio([0, 1], [1.0, 2.0], [0, 1], [0.0, 0.0]) is None
    assert paired_ratio([], [], [0, 1], [1.0, 1.0]) is None
    assert paired_ratio([0, 1], [1.0, 2.0], [0, 1], [0.0, 1.0]) == Spread.of([2.0])


def test_on_cuda_the_device_has_work_before_the_clock_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    order: CallOrder = []

    class Event:
        def __init__(self, *, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            order.append("record")

        def synchronize(self) -> None:
            order.append("wait")

        def elapsed_time(self, other: Event) -> float:
            return 250.0

    monkeypatch.setattr(timing.torch.cuda, "Event", Event)
    monkeypatch.setattr(timing.torch.cuda, "synchronize", lambda device: order.append("idle"))
    monkeypatch.setattr(timing, "keep_busy", lambda device: order.append("busy"))
    assert timing.time_call(lambda: order.append("call"), device="cuda:0")[0] == 0.25
    assert order == ["idle", "busy", "record", "call", "record", "wait"]
