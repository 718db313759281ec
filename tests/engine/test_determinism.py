"""train.deterministic gives equal bits with several threads, names what cannot, and leaves no trace in torch."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from segtrain.engine import train
from segtrain.engine.determinism import check_environment, deterministic_algorithms
from segtrain.errors import ConfigError, SegtrainError


def _flags() -> tuple[bool, ...]:
    cudnn = torch.backends.cudnn
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    return torch.are_deterministic_algorithms_enabled(), warn_only, cudnn.deterministic, cudnn.benchmark


@pytest.fixture
def several_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("several_threads")
def test_two_runs_with_several_threads_end_with_the_same_bits_and_torch_is_left_as_it_was(
    tiny_config: Callable[..., Any],
) -> None:
    before = _flags()
    seen: list[tuple[bool, ...]] = []
    weights = []
    model = {"encoder": "tu-regnetx_002", "params": {"encoder_depth": 2, "decoder_channels": [8, 8]}}
    for name in ("first", "second"):
        config = tiny_config(
            name=name, model=model, data={"input_size": [96, 96]}, train={"steps": 3, "deterministic": True}
        )
        handle = nn.modules.module.register_module_forward_pre_hook(lambda *_: seen.append(_flags()))
        try:
            result = train(config, console=Console(file=io.StringIO()))
        finally:
            handle.remove()
        weights.append(torch.load(result.folder / "checkpoints" / "last.pt", weights_only=True)["model"])
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert set(seen) == {(True, False, True, False)}
    assert _flags() == before


class Unpooled(nn.Module):
    """A model with an operation for which torch has no deterministic algorithm, on any device."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, 3, 1)

    def forward(self, images: Tensor) -> Tensor:
        smaller, index = nn.functional.max_pool2d(self.head(images), 2, return_indices=True)
        return nn.functional.max_unpool2d(smaller, index, 2)


def test_an_operation_without_a_deterministic_algorithm_is_named(tiny_config: Callable[..., Any]) -> None:
    before = _flags()
    config = tiny_config(name="unpooled", train={"steps": 1, "deterministic": True})
    with pytest.raises(SegtrainError, match=r"train\.deterministic: max_unpool.* does not have a deterministic"):
        train(config, model=Unpooled(), console=Console(quiet=True))
    assert _flags() == before
    train(tiny_config(name="free", train={"steps": 1}), model=Unpooled(), console=Console(quiet=True))


def test_what_was_set_before_is_set_again_after_an_error() -> None:
    before = _flags()
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = True
    try:
        with pytest.raises(KeyError), deterministic_algorithms(device=torch.device("cpu")):
            raise KeyError(_flags())
        assert _flags() == (True, True, before[2], True)
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.backends.cudnn.benchmark = before[3]


def test_on_a_gpu_the_variable_of_cublas_must_be_set_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    check_environment(torch.device("cpu"))
    with pytest.raises(ConfigError, match=r"needs CUBLAS_WORKSPACE_CONFIG=:4096:8 .*found nothing"):
        check_environment(torch.device("cuda"))
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    check_environment(torch.device("cuda"))
