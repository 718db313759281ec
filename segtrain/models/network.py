"""The modules that images pass: normalisation on the device, and a network that takes images of any size."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from segtrain.errors import ConfigError
from segtrain.kernels.upsample import CoarseLogits

# Images travel as they are stored; the largest value of each type is white. Floats are taken to lie in 0 to 1.
LARGEST_VALUE = {
    torch.uint8: 255.0,
    torch.uint16: 65535.0,
    torch.float16: 1.0,
    torch.bfloat16: 1.0,
    torch.float32: 1.0,
    torch.float64: 1.0,
}


class Normalize(nn.Module):
    """(value / largest value of the image's type − mean) / std, for each channel.

    Args:
        mean: mean of each channel, as a fraction of the value range.
        std: standard deviation of each channel, as a fraction of the value range.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(std):
            raise ConfigError(f"mean has {len(mean)} values and std {len(std)}: give one of each per channel")
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1))

    def forward(self, images: Tensor, memory_format: torch.memory_format = torch.contiguous_format) -> Tensor:
        """Normalise images.

        Args:
            images: [N, C, H, W], uint8 (0 to 255), uint16 (0 to 65535) or float (0 to 1), in any layout.
            memory_format: how the result lies in memory.

        Returns:
            float32 [N, C, H, W]; the input is left as it is.

        Raises:
            ConfigError: another dtype, or another number of channels than `mean` has.
        """
        if images.dtype not in LARGEST_VALUE:
            known = ", ".join(str(dtype).removeprefix("torch.") for dtype in LARGEST_VALUE)
            raise ConfigError(f"images have dtype {images.dtype}, expected one of {known}: convert them first")
        if images.ndim != 4 or images.shape[1] != self.mean.shape[1]:
            raise ConfigError(f"images have shape {list(images.shape)}, expected [N, {self.mean.shape[1]}, H, W]")
        white = LARGEST_VALUE[images.dtype]
        # White is folded into mean and std: two passes over the images instead of three, both in place.
        mean, std = self.mean * white, self.std * white
        if memory_format != torch.channels_last:
            return images.to(torch.float32, memory_format=memory_format, copy=True).sub_(mean).div_(std)
        # A row of pixels is one long vector, and so are its means: three channels alone fill no vector register.
        count, channels, height, width = images.shape
        rows = images.permute(0, 2, 3, 1).reshape(count, height, width * channels).to(torch.float32, copy=True)
        rows.sub_(mean.view(-1).repeat(width)).div_(std.view(-1).repeat(width))
        return rows.view(count, height, width, channels).permute(0, 3, 1, 2)


class SegmentationModel(nn.Module):
    """A network of segmentation-models-pytorch that takes images of any size and keeps its frozen parts still.

    Args:
        network: the network; it has `encoder`, `decoder` and `segmentation_head`.
        in_channels: number of channels of the images.
        num_classes: number of channels of the logits.
        stride: height and width of what the network gets are multiples of it, in pixels.
        min_size: smallest (height, width) that the network takes, in pixels.
        freeze: "encoder" (parameters fixed, always in evaluation mode) and "batchnorm" (statistics and affine
            parameters of every BatchNorm fixed), either or both.
        upsampling: how many times smaller than its input the network's logits are, each way. Above 1 the model gives
            `CoarseLogits` in training mode, and enlarges them (bilinear, corners not aligned) in evaluation mode.

    Attributes:
        init_report: what the start of the weights did and skipped, one line each, for the log.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        in_channels: int,
        num_classes: int,
        stride: int = 1,
        min_size: tuple[int, int] = (1, 1),
        freeze: Sequence[str] = (),
        upsampling: int = 1,
    ) -> None:
        super().__init__()
        self.network = network
        self.upsampling = upsampling
        self.in_channels = in_channels
        self.num_classes = num_classes
        self.stride = stride
        self.min_size = min_size
        self.freeze = tuple(freeze)
        self.init_report: list[str] = []
        self._fix_parameters()

    @property
    def encoder(self) -> nn.Module:
        """The part whose weights can be pretrained."""
        return cast(nn.Module, self.network.encoder)

    @property
    def decoder(self) -> nn.Module:
        """The part between encoder and head."""
        return cast(nn.Module, self.network.decoder)

    @property
    def head(self) -> nn.Module:
        """The part that makes the logits."""
        return cast(nn.Module, self.network.segmentation_head)

    @property
    def classifier(self) -> nn.Conv2d:
        """The last convolution: its output channels are the classes."""
        return [module for module in self.head.modules() if isinstance(module, nn.Conv2d)][-1]

    def encoder_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters of the encoder, frozen ones too."""
        return self.encoder.parameters()

    def train(self, mode: bool = True) -> SegmentationModel:
        """Set the training mode; frozen parts stay in evaluation mode."""
        super().train(mode)
        if "encoder" in self.freeze:
            self.encoder.eval()
        if "batchnorm" in self.freeze:
            for module in self._batch_norms():
                module.eval()
        return self

    def forward(self, images: Tensor) -> Tensor | CoarseLogits:
        """Logits of normalised images; `CoarseLogits` in training mode where the head does not enlarge them.

        The images are padded at the bottom and on the right by their border pixels to what the network takes, and
        the logits are cropped back; images that fit are not copied.

        Args:
            images: float [N, C, H, W], H and W at least 1.

        Returns:
            [N, K, H, W], K the number of classes; a view where the images were padded.

        Raises:
            ConfigError: the images have another number of channels, too few values for a BatchNorm in training, or
            another size than the one that the encoder is made for.
        """
        if images.ndim != 4 or images.shape[1] != self.in_channels or 0 in images.shape:
            found = list(images.shape)
            raise ConfigError(f"images have shape {found}, expected [N, {self.in_channels}, H, W] with no size of 0")
        if self.upsampling == 1:
            return self._logits(images, self._padded)
        coarse = self.coarse(images)
        return coarse if self.training else coarse.full()

    def coarse(self, images: Tensor) -> CoarseLogits:
        """Return what `forward` enlarges in evaluation mode, in either mode; arguments and errors as there."""
        padding = [self._padding(size, least) for size, least in zip(images.shape[-2:], self.min_size, strict=True)]
        size = (images.shape[-2] + padding[0], images.shape[-1] + padding[1])
        logits = self._logits(images, lambda images: self._of_padded(images, padding[0], padding[1]))
        return CoarseLogits(logits, size, (images.shape[-2], images.shape[-1]))

    def _logits(self, images: Tensor, network: Callable[[Tensor], Tensor]) -> Tensor:
        """Call the network, and say what to do about errors that the size of the images causes."""
        if torch.compiler.is_compiling():
            return network(images)
        try:
            return network(images)
        except (AssertionError, ValueError) as error:
            reason = _explain(error, images)
            if not reason:
                raise
            raise ConfigError(reason) from error

    def _padded(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        bottom, right = (self._padding(size, least) for size, least in zip((height, width), self.min_size, strict=True))
        logits = self._of_padded(images, bottom, right)
        return logits if bottom == 0 and right == 0 else logits[..., :height, :width]

    def _of_padded(self, images: Tensor, bottom: int, right: int) -> Tensor:
        if bottom or right:
            images = functional.pad(images, (0, right, 0, bottom), mode="replicate")
        return cast(Tensor, self.network(images))

    def _padding(self, size: int, least: int) -> int:
        return max(-size % self.stride, least - size)

    def _batch_norms(self) -> list[_BatchNorm]:
        return [module for module in self.modules() if isinstance(module, _BatchNorm)]

    def _fix_parameters(self) -> None:
        if "encoder" in self.freeze:
            self.encoder.requires_grad_(False)
        if "batchnorm" in self.freeze:
            modules = self._batch_norms()
            if not modules:
                raise ConfigError("model.freeze: batchnorm was given, but the model has no BatchNorm layer: drop it")
            for module in modules:
                module.requires_grad_(False)
        self.train(self.training)


def _explain(error: Exception, images: Tensor) -> str:
    """Say what to do about an error that the size of the images causes; empty for any other, which may be ours."""
    cause = " ".join(str(error).split())
    if "more than 1 value per channel" in cause:  # torch
        return (
            f"the network has a BatchNorm over one value per channel, which cannot be trained: a batch of "
            f"{images.shape[0]} image(s) of {images.shape[2]}x{images.shape[3]} is too small; "
            "give larger images, train.batch_size of at least 2, or model.freeze: [batchnorm]"
        )
    if "doesn't match model" in cause:  # timm
        return f"the encoder is made for images of one size and refuses {list(images.shape)}: {cause}"
    return ""
