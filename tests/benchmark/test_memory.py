"""Peak memory is that of a call with a known answer, whatever the process held or freed before."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from segtrain.benchmark.cases import Case
from segtrain.benchmark.losses import measure_memory
from segtrain.benchmark.memory import ChildDied, has_resident_peak, in_child
from segtrain.errors import SegtrainError

pytestmark = pytest.mark.skipif(not has_resident_peak(), reason="this system does not tell the peak of resident memory")

MIB = 2**20
TOLERANCE = 2 * MIB
KNOWN = """
import os
import signal
import numpy as np
import torch
from segtrain.benchmark.memory import resident_peak

def block(mib):
    return np.ones(mib << 20, np.uint8)

def held(mib):
    return resident_peak(lambda: block(mib))

def two_at_once(mib):
    return resident_peak(lambda: (block(mib), block(mib)))

def one_after_the_other(mib):
    return resident_peak(lambda: (block(mib).sum(), block(mib).sum()))

def after_more_was_freed(mib):
    block(4 * mib).sum()
    return held(mib)

def small_pieces_freed_before(mib):
    pieces = [np.ones(2**16, np.uint8) for _ in range(16 * mib)]
    pieces.clear()
    return resident_peak(lambda: [np.ones(2**16, np.uint8) for _ in range(16 * mib)])

def gradient_of_a_sum(mib):
    x = torch.ones(mib << 18, requires_grad=True)
    x[:4].exp().sum().backward()
    x.grad = None
    return resident_peak(lambda: x.exp().sum().backward())

def with_holes_left_by_another_call(mib):
    def call():
        first, second = block(mib // 4), block(mib // 2)
        del first
        third = block(mib // 2)
    call()
    return resident_peak(lambda: (call(), block(mib).sum(), call()))

def raises(mib):
    raise ValueError("no such thing")

def is_killed(mib):
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Callable[[int], int]]:
    """Functions with a known answer, in a module that the measuring process can import too."""
    (tmp_path / "known_answers.py").write_text(KNOWN, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "known_answers", raising=False)
    module: ModuleType = __import__("known_answers")
    monkeypatch.setitem(sys.modules, "known_answers", module)
    return lambda name: getattr(module, name)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("name", "multiple"),
    [
        ("held", 1),
        ("two_at_once", 2),
        ("one_after_the_other", 1),
        ("after_more_was_freed", 1),
        ("small_pieces_freed_before", 1),
        ("with_holes_left_by_another_call", 1),
        ("gradient_of_a_sum", 2),  # exp(x), kept for the backward, and the gradient of x
    ],
)
def test_the_peak_of_a_known_allocation_is_found(
    known: Callable[[str], Callable[[int], int]], name: str, multiple: int
) -> None:
    assert in_child(known(name), 16) == pytest.approx(multiple * 16 * MIB, abs=TOLERANCE)


def test_the_gradient_of_the_logits_counts_and_the_inputs_do_not() -> None:
    case = Case(batch=1, classes=8, size=512)
    peak = in_child(measure_memory, ("torch_ce", case, 1)) / case.logits_bytes
    assert 2.8 < peak < 3.2  # log_softmax is kept, and two gradients at once; the inputs would be one more


def test_an_error_in_the_child_is_told(known: Callable[[str], Callable[[int], int]]) -> None:
    with pytest.raises(SegtrainError, match="ValueError: no such thing"):
        in_child(known("raises"), 1)


def test_a_killed_child_is_told(known: Callable[[str], Callable[[int], int]]) -> None:
    with pytest.raises(ChildDied, match="code -9: out of memory"):
        in_child(known("is_killed"), 1)
