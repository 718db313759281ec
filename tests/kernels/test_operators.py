"""The registered operators: what torch.library checks of them, and one opaque node under torch.compile."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from segtrain.kernels import class_sums as ops
from segtrain.kernels.request import SUMS
from segtrain.losses import build_loss

HEADLINE = {
    "terms": [{"name": "cross_entropy"}, {"name": "focal"}, {"name": "dice"}],
    "ohem": {"threshold": 0.7},
    "class_weights": {"scheme": "manual", "weights": [1.0, 2.0, 0.5, 3.0]},
}


def arguments(*, sigmoid: bool, mining: tuple[float, ...] = ()) -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 5, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    shape = (2, 4, 5, 6) if sigmoid else (2, 5, 6)
    target = torch.randint(0, 2, shape, generator=generator).to(torch.uint8)
    shift = torch.randn(4, generator=generator, dtype=torch.float64)
    wanted = [index for index, name in enumerate(SUMS) if not (sigmoid and name == "log_mass")]
    return logits, target, shift, None, None, None, wanted, sigmoid, 255, [2.0], 1.0, list(mining), not sigmoid


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # its own doing
@pytest.mark.parametrize("sigmoid", [False, True])
@pytest.mark.parametrize("mining", [(), (0.7, 0.05, 1.0, -1.0, 0.0)])
def test_the_operator_keeps_the_rules_of_the_library(sigmoid: bool, mining: tuple[float, ...]) -> None:
    torch.library.opcheck(ops.class_sums, arguments(sigmoid=sigmoid, mining=mining))


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    """No graph of another test, and none left behind."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.usefixtures("fresh_compiler")
def test_a_compiled_loss_is_one_graph_with_the_same_value_and_gradient() -> None:
    loss = build_loss(HEADLINE, num_classes=4)
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 4, 8, 9, generator=generator, requires_grad=True)
    target = torch.randint(0, 4, (2, 8, 9), generator=generator).to(torch.uint8)
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)

    def run(function: Any) -> tuple[Tensor, Tensor]:
        value = function(logits, target)
        return value, torch.autograd.grad(value, logits)[0]

    for found, expected in zip(run(compiled), run(loss), strict=True):
        torch.testing.assert_close(found, expected)
