"""A model whose head does not enlarge gives coarse logits in training, and the same logits at full size otherwise."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import interpolate

from segtrain.config.schema import ModelConfig
from segtrain.errors import ConfigError
from segtrain.kernels.upsample import CoarseLogits
from segtrain.models import SegmentationModel, build_model

SMALL = {"fpn": {"encoder_depth": 5, "decoder_pyramid_channels": 32, "decoder_segmentation_channels": 32}, "pspnet": {}}


def coarse_model(arch: str = "fpn") -> SegmentationModel:
    torch.manual_seed(0)
    return build_model(ModelConfig(arch=arch, encoder="resnet18", params=SMALL[arch]), 4, coarse=True)


@pytest.mark.parametrize(("arch", "factor"), [("fpn", 4), ("pspnet", 8)])
def test_training_gives_coarse_logits_and_evaluation_their_upsampling(arch: str, factor: int) -> None:
    model = coarse_model(arch)
    assert model.upsampling == factor
    images = torch.rand(2, 3, 70, 45)
    found = model.train()(images)
    assert isinstance(found, CoarseLogits)
    padded = (96, 64) if arch == "fpn" else (72, 48)
    assert (found.size, found.crop) == (padded, (70, 45))
    assert found.values.shape == (2, 4, padded[0] // factor, padded[1] // factor)
    model.eval()
    with torch.no_grad():
        full, coarse = model(images), model.coarse(images)
    expected = interpolate(coarse.values, size=padded, mode="bilinear", align_corners=False)[..., :70, :45]
    torch.testing.assert_close(full, expected)


def test_the_weights_are_those_of_the_model_with_its_upsampling() -> None:
    torch.manual_seed(0)
    whole = build_model(ModelConfig(arch="fpn", encoder="resnet18", params=SMALL["fpn"]), 4).eval()
    model = coarse_model().eval()
    assert model.state_dict().keys() == whole.state_dict().keys()
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        aligned = interpolate(model.coarse(images).values, scale_factor=4, mode="bilinear", align_corners=True)
        torch.testing.assert_close(whole(images), aligned)


def test_a_head_without_an_upsampling_is_refused() -> None:
    params = {"encoder_depth": 3, "decoder_channels": (16, 8, 8)}
    with pytest.raises(ConfigError, match=r"loss\.fused_upsample: the logits of unet are made at full size"):
        build_model(ModelConfig(arch="unet", encoder="resnet18", params=params), 4, coarse=True)


def test_a_compiled_model_gives_coarse_logits() -> None:
    model = coarse_model().train()
    found = torch.compile(model, backend="eager")(torch.rand(2, 3, 64, 64))
    assert isinstance(found, CoarseLogits)
    assert found.size == (64, 64)
