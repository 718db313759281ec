"""Normalisation, padding and frozen parts of the models."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from segtrain.config.schema import ModelConfig
from segtrain.errors import ConfigError
from segtrain.models import Normalize, SegmentationModel, build_model

SMALL = {"encoder_depth": 3, "decoder_channels": (16, 8, 8)}


def small_model(**settings: object) -> SegmentationModel:
    torch.manual_seed(0)
    return build_model(ModelConfig(encoder="tu-test_resnet", params=SMALL, **settings), 4)


class Recorder(nn.Module):
    """A network that keeps what it is given and answers with its first channel."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Identity()
        self.segmentation_head = nn.Conv2d(1, 1, 1)
        self.seen: Tensor | None = None

    def forward(self, images: Tensor) -> Tensor:
        self.seen = images
        return images[:, :1]


@pytest.mark.parametrize(("dtype", "white"), [(torch.uint8, 255), (torch.uint16, 65535), (torch.float32, 1)])
def test_normalize_divides_by_the_largest_value_of_the_type(dtype: torch.dtype, white: int) -> None:
    images = torch.stack([torch.zeros(2, 3), torch.full((2, 3), white)]).to(dtype)[None]
    normal = Normalize((0.25, 0.5), (0.5, 0.2))(images)
    assert normal.dtype == torch.float32
    torch.testing.assert_close(normal[0, 0], torch.full((2, 3), -0.5))
    torch.testing.assert_close(normal[0, 1], torch.full((2, 3), 2.5))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.float32])
@pytest.mark.parametrize("stored", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("wanted", [torch.contiguous_format, torch.channels_last])
def test_normal_images_are_the_same_to_the_last_bit_in_every_layout(
    dtype: torch.dtype, stored: torch.memory_format, wanted: torch.memory_format
) -> None:
    generator = torch.Generator().manual_seed(0)
    images = (torch.rand(2, 3, 5, 7, generator=generator) * 255).to(dtype).contiguous(memory_format=stored)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    white = {torch.uint8: 255.0, torch.uint16: 65535.0, torch.float32: 1.0}[dtype]
    before = images.clone()
    normal = Normalize(mean, std)(images, wanted)
    middle, spread = (torch.tensor(values).view(1, 3, 1, 1) * white for values in (mean, std))
    assert torch.equal(normal, (images.to(torch.float32) - middle) / spread)
    assert normal.is_contiguous(memory_format=wanted)
    assert torch.equal(images, before)


def test_normalize_leaves_float_images_as_they_are() -> None:
    images = torch.rand(1, 3, 4, 4)
    before = images.clone()
    Normalize((0.5,) * 3, (0.5,) * 3)(images)
    assert torch.equal(images, before)


@pytest.mark.parametrize(
    ("images", "text"),
    [
        (torch.zeros(1, 3, 4, 4, dtype=torch.int64), "dtype torch.int64"),
        (torch.zeros(1, 1, 4, 4), r"expected \[N, 3, H, W\]"),
        (torch.zeros(3, 4, 4), r"expected \[N, 3, H, W\]"),
    ],
)
def test_normalize_refuses_other_types_and_shapes(images: Tensor, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        Normalize((0.5,) * 3, (0.5,) * 3)(images)


def test_images_are_padded_by_their_border_at_the_bottom_and_right() -> None:
    network = Recorder()
    model = SegmentationModel(network, in_channels=2, num_classes=1, stride=8)
    images = torch.rand(1, 2, 5, 9)
    logits = model(images)
    assert network.seen is not None
    assert network.seen.shape == (1, 2, 8, 16)
    assert torch.equal(network.seen[..., :5, :9], images)
    assert torch.equal(network.seen[0, :, 7, :9], images[0, :, 4])
    assert torch.equal(network.seen[0, :, :5, 15], images[0, :, :, 8])
    assert torch.equal(logits, images[:, :1])


def test_small_images_are_padded_to_the_smallest_size_of_the_network() -> None:
    network = Recorder()
    SegmentationModel(network, in_channels=1, num_classes=1, stride=8, min_size=(32, 16))(torch.rand(1, 1, 1, 1))
    assert network.seen is not None
    assert network.seen.shape == (1, 1, 32, 16)


def test_images_that_fit_are_not_copied() -> None:
    network = Recorder()
    images = torch.rand(1, 1, 16, 8)
    SegmentationModel(network, in_channels=1, num_classes=1, stride=8, min_size=(8, 8))(images)
    assert network.seen is images


@pytest.mark.parametrize("shape", [(1, 1, 8, 8), (3, 8, 8), (1, 3, 0, 8)])
def test_images_of_a_wrong_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"expected \[N, 3, H, W\]"):
        small_model()(torch.zeros(shape))


def test_a_batch_too_small_for_batch_norm_says_what_to_do() -> None:
    torch.manual_seed(0)
    model = build_model(ModelConfig(arch="deeplabv3", params={"encoder_depth": 3, "decoder_channels": 8}), 4)
    with pytest.raises(ConfigError, match=r"batch_size of at least 2"):
        model.train()(torch.rand(1, 3, 16, 16))
    assert model.train()(torch.rand(2, 3, 16, 16)).shape == (2, 4, 16, 16)


def test_a_frozen_encoder_gets_no_gradient_and_keeps_its_statistics() -> None:
    model = small_model(freeze=("encoder",)).train()
    before = copy.deepcopy(model.encoder.state_dict())
    model(torch.rand(2, 3, 16, 16)).sum().backward()
    assert not any(parameter.requires_grad for parameter in model.encoder_parameters())
    assert all(parameter.grad is not None for parameter in model.decoder.parameters())
    assert model.classifier.weight.grad is not None
    assert all(torch.equal(value, before[key]) for key, value in model.encoder.state_dict().items())
    assert not any(module.training for module in model.encoder.modules())
    assert model.decoder.training


def test_frozen_batch_norms_keep_statistics_and_affine_parameters_after_train() -> None:
    model = small_model(freeze=("batchnorm",))
    norms = [module for module in model.eval().train().modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    assert not any(module.training or module.weight.requires_grad or module.bias.requires_grad for module in norms)
    before = norms[0].running_mean.clone()
    model(torch.rand(2, 3, 16, 16)).sum().backward()
    assert torch.equal(norms[0].running_mean, before)
    assert model.classifier.weight.grad is not None


def test_frozen_parts_stay_frozen_in_a_deep_copy() -> None:
    averaged = torch.optim.swa_utils.AveragedModel(small_model(freeze=("encoder",)), use_buffers=True)
    assert not averaged.train().module.encoder.training


def test_freezing_batch_norm_of_a_model_without_one_is_an_error() -> None:
    with pytest.raises(ConfigError, match="no BatchNorm layer"):
        SegmentationModel(Recorder(), in_channels=1, num_classes=1, freeze=("batchnorm",))


class Failing(Recorder):
    """A network that raises what it was given."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def forward(self, images: Tensor) -> Tensor:
        raise self.error


@pytest.mark.parametrize("error", [ValueError("a mistake of ours"), AssertionError("an invariant of ours")], ids=repr)
def test_mistakes_of_ours_are_not_blamed_on_the_images(error: Exception) -> None:
    model = SegmentationModel(Failing(error), in_channels=1, num_classes=1)
    with pytest.raises(type(error), match="of ours"):
        model(torch.zeros(1, 1, 8, 8))


def test_an_encoder_made_for_one_size_says_so() -> None:
    # ViT with positions for images of 32x32: timm refuses others with an assertion.
    network = Failing(AssertionError("Input height (64) doesn't match model (32)."))
    with pytest.raises(ConfigError, match=r"images of one size and refuses \[1, 1, 64, 8\].*model \(32\)"):
        SegmentationModel(network, in_channels=1, num_classes=1)(torch.zeros(1, 1, 64, 8))


def test_compiled_in_one_graph_with_equal_logits() -> None:
    # The padding alone: tracing a whole encoder takes long.
    model = SegmentationModel(nn.Conv2d(3, 2, 3, padding=1), in_channels=3, num_classes=2, stride=8)
    images = torch.rand(1, 3, 5, 9)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images), model(images))
