"""train.compile hands its mode to torch.compile, and refuses what would do nothing or cannot work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from segtrain.config import parse_config
from segtrain.engine import train
from segtrain.engine.compiled import check_compile, compile_model
from segtrain.errors import ConfigError


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The modes that torch.compile was asked for; nothing is compiled, and a compiler seems to be there."""
    modes: list[Any] = []

    def compile_nothing(model: nn.Module, *, mode: str) -> nn.Module:
        modes.append(mode)
        return model

    monkeypatch.setattr(torch, "compile", compile_nothing)
    monkeypatch.setattr("segtrain.engine.compiled.shutil.which", lambda name: f"/usr/bin/{name}")
    return modes


@pytest.mark.parametrize(
    ("value", "modes"), [(False, []), (True, ["default"]), ("default", ["default"]), ("max-autotune", ["max-autotune"])]
)
def test_the_mode_of_the_file_is_that_of_torch(
    value: Any, modes: list[str], compiled: list[Any], tiny_config: Callable[..., Any], tiny_net: Callable[..., Any]
) -> None:
    train(tiny_config(train={"compile": value, "steps": 1}), model=tiny_net(), console=Console(quiet=True))
    assert compiled == modes


@pytest.mark.usefixtures("compiled")
def test_cuda_graphs_hear_of_each_step(tiny_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: events.append("step"))

    class Model(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            events.append("forward")
            return images

    for mode, expected in (("reduce-overhead", ["step", "forward"]), ("default", ["forward"])):
        call = compile_model(Model(), tiny_config(train={"compile": mode}))
        events.clear()
        call(torch.zeros(1))
        call(torch.zeros(1))
        assert events == 2 * expected


def test_what_would_do_nothing_or_cannot_work_is_refused(
    tiny_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segtrain.engine.compiled.shutil.which", lambda name: None)
    config = tiny_config(train={"compile": True})
    with pytest.raises(ConfigError, match=r"needs a C\+\+ compiler"):
        train(config, console=Console(quiet=True))
    check_compile(config, torch.device("cuda"))
    monkeypatch.setattr("segtrain.engine.compiled.shutil.which", lambda name: name)
    with pytest.raises(ConfigError, match="reduce-overhead records CUDA graphs, and the device is a CPU"):
        check_compile(tiny_config(train={"compile": "reduce-overhead"}), torch.device("cpu"))


def test_a_mode_that_is_none_is_named(folder_dataset: Callable[..., Any]) -> None:
    values = folder_dataset().config
    with pytest.raises(ConfigError, match=r"train\.compile.*reduce-overhed"):
        parse_config(values | {"train": values["train"] | {"compile": "reduce-overhed"}})
