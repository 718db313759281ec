"""Weights from files: names, sizes, damage and malice."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from segtrain.config.schema import ModelConfig
from segtrain.errors import CheckpointError, ConfigError
from segtrain.models import build_model
from segtrain.models.weights import read_file, read_tensors

SMALL = {"encoder_depth": 3, "decoder_channels": (16, 8, 8)}


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.trace,)


@pytest.fixture(scope="module")
def classifier() -> nn.Module:
    """A ResNet-18 classifier with the names of timm and torchvision."""
    torch.manual_seed(5)
    return timm.create_model("resnet18", pretrained=False)


def start(path: Path, **settings: Any) -> Any:
    return build_model(ModelConfig(encoder_weights=str(path), params=SMALL, **settings), 3)


@pytest.mark.parametrize("prefix", ["", "module.", "encoder.", "backbone.", "module.network.encoder."])
def test_encoder_weights_are_taken_whatever_the_prefix(tmp_path: Path, classifier: nn.Module, prefix: str) -> None:
    state = {prefix + key: value for key, value in classifier.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "resnet.pth")
    model = start(tmp_path / "resnet.pth")
    for key, value in model.encoder.state_dict().items():
        assert torch.equal(value, classifier.state_dict()[key])
    assert "left in the file: fc.weight, fc.bias" in "\n".join(model.init_report)


def test_weights_of_a_timm_encoder_are_taken(tmp_path: Path) -> None:
    torch.manual_seed(6)
    source = timm.create_model("test_convnext", pretrained=False)
    save_file(source.state_dict(), tmp_path / "convnext.safetensors")
    config = ModelConfig(
        encoder="tu-test_convnext",
        encoder_weights=str(tmp_path / "convnext.safetensors"),
        params={"decoder_channels": (8,) * 5},
    )
    model = build_model(config, 3)
    stem = model.encoder.model.stem_0.weight
    assert torch.equal(stem, source.stem[0].weight)
    assert any("tensors of the encoder taken" in line for line in model.init_report)


def test_weights_survive_the_trip_into_the_frozen_encoder(tmp_path: Path, classifier: nn.Module) -> None:
    torch.save(classifier.state_dict(), tmp_path / "resnet.pth")
    model = start(tmp_path / "resnet.pth", freeze=("encoder",))
    assert torch.equal(model.encoder.conv1.weight, classifier.state_dict()["conv1.weight"])
    assert not any("random weights" in line for line in model.init_report)


@pytest.mark.parametrize("in_channels", [1, 4])
def test_a_first_convolution_over_rgb_is_repeated_over_other_channels(
    tmp_path: Path, classifier: nn.Module, in_channels: int
) -> None:
    torch.save(classifier.state_dict(), tmp_path / "resnet.pth")
    model = start(tmp_path / "resnet.pth", in_channels=in_channels)
    rgb = classifier.state_dict()["conv1.weight"]
    expected = rgb[:, [0, 1, 2, 0][:in_channels]] * 3 / in_channels
    torch.testing.assert_close(model.encoder.conv1.weight.detach(), expected)
    assert f"conv1.weight repeated from 3 to {in_channels} input channels" in "\n".join(model.init_report)


def test_missing_tensors_are_named(tmp_path: Path, classifier: nn.Module) -> None:
    state = {key: value for key, value in classifier.state_dict().items() if not key.startswith("layer1.0.conv1")}
    torch.save(state, tmp_path / "part.pth")
    assert any("start at random: layer1.0.conv1.weight" in line for line in start(tmp_path / "part.pth").init_report)


def test_weights_of_another_encoder_are_an_error(tmp_path: Path) -> None:
    torch.save({"layer.weight": torch.zeros(2), "conv1.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ConfigError, match=r"has 0 of the \d+ tensors of encoder resnet18.*layer\.weight.*this very"):
        start(tmp_path / "other.pth")


def test_a_malicious_file_is_refused_and_nothing_in_it_runs(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    torch.save({"model": {"weight": torch.zeros(2)}, "extra": Payload(trace)}, tmp_path / "evil.pth")
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(Payload(trace)))
    for name in ("evil.pth", "evil.pkl"):
        for settings in ({"encoder_weights": str(tmp_path / name)}, {"init_from": str(tmp_path / name)}):
            with pytest.raises(CheckpointError, match="nothing in it was run") as caught:
                build_model(ModelConfig(encoder="tu-test_resnet", params=SMALL, **settings), 3)
            assert "\n" not in str(caught.value)
    assert not trace.exists()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04broken", bytes(range(256)) * 8])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_damaged_files_are_named(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="weights"):
        read_file(path)


def test_a_truncated_file_is_named(tmp_path: Path, classifier: nn.Module) -> None:
    path = tmp_path / "weights.pth"
    torch.save(classifier.state_dict(), path)
    path.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(CheckpointError, match=r"weights\.pth is damaged"):
        read_file(path)


@pytest.mark.parametrize("content", [{"a": 1, "model": {"b": 2}}, [1, 2], torch.zeros(2)])
def test_a_file_without_named_tensors_is_an_error(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "plain.pt")
    with pytest.raises(CheckpointError, match="no named tensors"):
        read_tensors(tmp_path / "plain.pt")


def test_missing_files_and_folders_say_what_to_give(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "best.pt").touch()
    with pytest.raises(CheckpointError, match=r"is a folder: name a file in it, such as best\.pt"):
        build_model(ModelConfig(params=SMALL, init_from=str(tmp_path / "run")), 3)
    with pytest.raises(CheckpointError, match="does not exist"):
        start(tmp_path / "gone.pth")


@pytest.mark.parametrize(("ema", "expected"), [({"a": torch.ones(1)}, 1.0), (None, 0.0), (0.99, 0.0), ({}, 0.0)])
def test_averaged_weights_of_a_checkpoint_come_before_the_raw_ones(tmp_path: Path, ema: Any, expected: float) -> None:
    torch.save({"model": {"a": torch.zeros(1)}, "ema": ema}, tmp_path / "best.pt")
    assert read_tensors(tmp_path / "best.pt")["a"].item() == expected
