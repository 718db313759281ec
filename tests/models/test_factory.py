"""Models from their configuration: every architecture, names, errors, first weights."""

from __future__ import annotations

import math
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch

from segtrain.config.schema import ModelConfig
from segtrain.errors import ConfigError
from segtrain.models import build_model
from segtrain.models.factory import ARCHITECTURES

TINY = "tu-test_resnet"
SMALL = {"encoder_depth": 3, "decoder_channels": (16, 8, 8)}
# Arguments that make each architecture small.
ARCHITECTURE_PARAMS: dict[str, dict[str, Any]] = {
    "unet": SMALL,
    "unetplusplus": SMALL,
    "manet": {**SMALL, "decoder_pab_channels": 8},
    "linknet": {"encoder_depth": 3},
    "fpn": {"decoder_pyramid_channels": 16, "decoder_segmentation_channels": 32},
    "pspnet": {"psp_out_channels": 16},
    "deeplabv3": {"decoder_channels": 8},
    "deeplabv3plus": {"decoder_channels": 8},
    "pan": {"decoder_channels": 8},
    "upernet": {"decoder_channels": 8},
    "segformer": {"decoder_segmentation_channels": 8},
    "dpt": {"decoder_intermediate_channels": (8, 8, 8, 8), "decoder_fusion_channels": 8},
}


def frequencies(*pixels: int) -> Any:
    return SimpleNamespace(pixels=np.array(pixels, dtype=np.int64))


@pytest.mark.parametrize("arch", sorted(ARCHITECTURES))
def test_every_architecture_takes_images_of_any_size(arch: str) -> None:
    encoder = "tu-test_vit" if arch == "dpt" else "tu-test_resnet" if arch == "segformer" else "mobilenet_v2"
    torch.manual_seed(0)
    config = ModelConfig(arch=arch, encoder=encoder, params=ARCHITECTURE_PARAMS[arch])
    model = build_model(config, 5).eval()
    with torch.no_grad():
        for size in ((33, 47), (1, 1)):
            logits = model(torch.rand(1, 3, *size))
            assert logits.shape == (1, 5, *size)
            assert logits.isfinite().all()


def test_logits_of_padded_images_equal_those_of_images_padded_by_hand() -> None:
    torch.manual_seed(0)
    model = build_model(ModelConfig(encoder=TINY, params=SMALL), 4).eval()
    images = torch.rand(1, 3, 13, 21)
    padded = torch.nn.functional.pad(images, (0, 3, 0, 3), mode="replicate")
    with torch.no_grad():
        assert torch.equal(model(images), model(padded)[..., :13, :21])


@pytest.mark.parametrize(
    ("settings", "texts"),
    [
        ({"arch": "unett"}, ["model.arch", "'unett'", "did you mean 'unet'", "deeplabv3plus"]),
        ({"arch": "os.system"}, ["'os.system' is unknown", "known: unet"]),
        ({"encoder": "resnet81"}, ["model.encoder", "resnet18", "encoders of smp"]),
        ({"encoder": "tu-hf-hub:someone/model"}, ["is unknown"]),
        ({"encoder": "tu-resnet18.nope"}, ["nope"]),
        ({"encoder_weights": "imagenett"}, ["did you mean 'imagenet'", "local file"]),
        ({"encoder": "tu-resnet18", "encoder_weights": "a1_in1k"}, ["tu-<name>.<tag>"]),
        ({"encoder": "tu-test_vit3x", "encoder_weights": None}, ["tu-test_vit3"]),
        ({"params": {"decoder_chanels": (1,)}}, ["model.params.decoder_chanels", "did you mean 'decoder_channels'"]),
        ({"params": {"activation": "softmax"}}, ["model.params.activation is set by segtrain"]),
        ({"params": {"img_size": 64}}, ["model.params.img_size", "no such argument"]),
        ({"encoder": "tu-resnet18", "params": {"checkpoint_path": "x"}}, ["checkpoint_path", "no such argument"]),
        ({"params": {"decoder_channels": (64, 32)}}, ["decoder_channels: [64, 32]", "for 2 blocks"]),
        ({"params": {"encoder_depth": 9}}, ["range [1, 5], got 9"]),
        ({"arch": "pspnet", "params": {"encoder_depth": 4}}, ["logits of [8, 8] for an image of [16, 16]"]),
        ({"arch": "dpt"}, ["must start with 'tu-'"]),
    ],
)
def test_wrong_names_and_params_are_answered_in_one_line(settings: dict[str, Any], texts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        build_model(ModelConfig(**settings), 4)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 700
    for text in texts:
        assert text in message


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()], ids=repr)
@pytest.mark.parametrize("where", ["__init__", "forward"])
def test_a_lack_of_memory_is_not_blamed_on_params(
    monkeypatch: pytest.MonkeyPatch, error: Exception, where: str
) -> None:
    def fail(*args: Any, **settings: Any) -> None:
        raise error

    monkeypatch.setattr(smp.Unet, where, fail)
    with pytest.raises(type(error)):
        build_model(ModelConfig(encoder=TINY, params={}), 4)


def test_the_cause_of_a_refusal_is_told_and_chained(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **settings: Any) -> None:
        raise AttributeError("no such\nthing")

    monkeypatch.setattr(smp.Unet, "forward", fail)
    with pytest.raises(ConfigError, match="cannot be built: AttributeError: no such thing") as caught:
        build_model(ModelConfig(encoder=TINY), 4)
    assert isinstance(caught.value.__cause__, AttributeError)


def test_equal_seeds_give_equal_weights() -> None:
    states = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        states.append(build_model(ModelConfig(encoder=TINY, params=SMALL), 4).state_dict())
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    first = next(key for key in states[0] if key.endswith("weight"))
    assert not torch.equal(states[0][first], states[2][first])


def test_building_leaves_a_model_in_training_mode_with_fresh_statistics() -> None:
    model = build_model(ModelConfig(encoder=TINY, params=SMALL), 4)
    assert all(module.training for module in model.modules())
    counts = [value for key, value in model.named_buffers() if key.endswith("num_batches_tracked")]
    assert counts
    assert not any(counts)


def test_every_trainable_parameter_gets_a_gradient() -> None:
    model = build_model(ModelConfig(arch="pspnet", params={"psp_out_channels": 16}), 4)
    model(torch.rand(2, 3, 32, 32)).sum().backward()
    assert all((parameter.grad is not None) == parameter.requires_grad for parameter in model.parameters())
    assert "take no part in the output: encoder.layer3, encoder.layer4" in model.init_report[0]


@pytest.mark.parametrize("in_channels", [1, 5])
def test_other_numbers_of_channels(in_channels: int) -> None:
    model = build_model(ModelConfig(in_channels=in_channels, params=SMALL), 4).eval()
    assert model(torch.rand(1, in_channels, 8, 8)).shape == (1, 4, 8, 8)


@pytest.mark.parametrize(
    ("encoder", "where"),
    [
        ("resnet18", "segmentation_models_pytorch.encoders.hf_hub_download"),
        ("tu-test_resnet", "timm.models._builder.load_state_dict_from_hf"),
    ],
)
def test_weights_that_cannot_be_fetched_are_one_line_with_advice(
    monkeypatch: pytest.MonkeyPatch, encoder: str, where: str
) -> None:
    def offline(*args: Any, **settings: Any) -> None:
        raise OSError("no route\nto host")

    monkeypatch.setattr(where, offline)
    with pytest.raises(ConfigError, match=r"'imagenet' of .* cannot be fetched .*no route to host.* local file"):
        build_model(ModelConfig(encoder=encoder, encoder_weights="imagenet"), 4)


@pytest.mark.parametrize("encoder_weights", ["imagenet", "gone/encoder.pth"])
def test_a_model_is_rebuilt_without_network_and_first_files(
    monkeypatch: pytest.MonkeyPatch, encoder_weights: str
) -> None:
    def offline(*args: Any, **settings: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "create_connection", offline)
    monkeypatch.setattr(smp.encoders, "hf_hub_download", offline)
    config = ModelConfig(
        encoder_weights=encoder_weights, init_from="gone.pt", prior_bias=True, freeze=("encoder",), params=SMALL
    )
    model = build_model(config, 4, load_weights=False)
    assert not any(parameter.requires_grad for parameter in model.encoder_parameters())


def test_prior_bias_starts_probabilities_at_the_class_shares() -> None:
    torch.manual_seed(0)
    plain = build_model(ModelConfig(encoder=TINY, params=SMALL), 3)
    torch.manual_seed(0)
    model = build_model(
        ModelConfig(encoder=TINY, params=SMALL, prior_bias=True), 3, frequencies=frequencies(900, 100, 0)
    )
    expected = torch.tensor([math.log(0.9), math.log(0.1), math.log(1e-6)])
    assert model.classifier.bias is not None
    torch.testing.assert_close(model.classifier.bias.detach(), expected)
    assert torch.equal(model.classifier.weight, plain.classifier.weight)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (None, "needs the class frequencies"),
        (frequencies(1, 2), "2 classes"),
        (frequencies(0, 0, 0), "no labelled"),
    ],
)
def test_prior_bias_without_usable_frequencies_is_an_error(given: Any, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        build_model(ModelConfig(encoder=TINY, params=SMALL, prior_bias=True), 3, frequencies=given)


def test_init_from_names_and_skips_a_head_of_another_size(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = build_model(ModelConfig(encoder=TINY, params=SMALL), 7)
    torch.save({"model": source.state_dict(), "step": 12}, tmp_path / "best.pt")
    torch.manual_seed(1)
    config = ModelConfig(encoder=TINY, params=SMALL, init_from=str(tmp_path / "best.pt"), prior_bias=True)
    model = build_model(config, 3, frequencies=frequencies(98, 1, 1))
    report = "\n".join(model.init_report)
    assert "segmentation_head.0.weight skipped: [7, 8, 3, 3] in the file, [3, 8, 3, 3] in the model" in report
    assert "segmentation_head.0.bias skipped" in report
    assert "prior_bias: the output bias starts" in report
    for key, value in source.state_dict().items():
        assert "segmentation_head" in key or torch.equal(model.state_dict()[key], value)


def test_prior_bias_does_not_replace_a_trained_bias(tmp_path: Path) -> None:
    source = build_model(ModelConfig(encoder=TINY, params=SMALL), 3)
    torch.save({"_orig_mod." + key: value for key, value in source.state_dict().items()}, tmp_path / "bare.pt")
    config = ModelConfig(encoder=TINY, params=SMALL, init_from=str(tmp_path / "bare.pt"), prior_bias=True)
    model = build_model(config, 3, frequencies=frequencies(98, 1, 1))
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in source.state_dict().items())
    assert any("prior_bias: skipped" in line for line in model.init_report)


def test_init_from_another_model_altogether_is_an_error(tmp_path: Path) -> None:
    torch.save({"model": {"layer.weight": torch.zeros(2)}}, tmp_path / "other.pt")
    with pytest.raises(ConfigError, match=r"no tensor of .*layer\.weight.*model\.arch"):
        build_model(ModelConfig(encoder=TINY, params=SMALL, init_from=str(tmp_path / "other.pt")), 3)


def test_a_frozen_random_encoder_is_reported() -> None:
    model = build_model(ModelConfig(encoder=TINY, params=SMALL, freeze=("encoder",)), 3)
    assert any("frozen encoder has random weights" in line for line in model.init_report)
