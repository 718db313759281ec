"""From images to logits: normalised on the device, whole or in overlapping tiles that leave no seams."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from segtrain.config import Config
from segtrain.config.schema import TileConfig
from segtrain.data import ClassFrequencies
from segtrain.engine.device import autocast
from segtrain.engine.nan_outputs import NanOutputs, RefuseNan
from segtrain.engine.thresholds import thresholds_in_force
from segtrain.errors import ConfigError
from segtrain.kernels.upsample import CoarseLogits
from segtrain.metrics.multilabel import predict_labels
from segtrain.metrics.prediction import predict_classes, prior_shift
from segtrain.models import SegmentationModel

DEFAULT_BATCH_SIZE = 8


@dataclass(frozen=True)
class Predictor:
    """A model with all that prediction needs to know.

    model: normalised floats [N, C, H, W] -> logits [N, K, H, W], in eval mode; of a list of logits the first is taken.
    normalize: images as stored -> normalised floats. batch_size: tiles in one forward pass. precision: fp32, bf16 or
    fp16. shift: floats [K], added to the logits where classes are chosen, and only there; see `prior_shift`.
    thresholds: probabilities [K] from which on a class is present, where classes do not exclude each other; None: the
    most probable class is predicted. nan: what becomes of logits that are not finite, of which no class can be told.
    """

    model: nn.Module
    normalize: Callable[[Tensor], Tensor]
    tile: TileConfig | None = None
    precision: str = "fp32"
    channels_last: bool = False
    batch_size: int = DEFAULT_BATCH_SIZE
    shift: Tensor | None = None
    thresholds: tuple[float, ...] | None = None
    nan: NanOutputs = field(default_factory=RefuseNan)

    @classmethod
    def from_config(
        cls,
        config: Config,
        *,
        model: nn.Module,
        normalize: Callable[[Tensor], Tensor],
        frequencies: ClassFrequencies | None = None,
        thresholds: Mapping[str, float] | None = None,
        nan: NanOutputs | None = None,
    ) -> Predictor:
        """Predict as `config` says (sections evaluate and train).

        A model trained in fp16 on a GPU predicts in fp32 on a CPU, which has no fp16 arithmetic worth using.

        frequencies: of the training data, as the checkpoint holds them; needed by evaluate.prior_tau. thresholds:
        {class name: threshold} chosen on val, as the checkpoint holds them; needed by evaluate.tune_thresholds. nan:
        default: logits that are not finite are an error.

        Raises:
            ConfigError: evaluate.prior_tau or tune_thresholds is set and what it needs is not known.
        """
        fits = config.train.precision != "fp16" or device_of(model).type == "cuda"
        return cls(
            model=model,
            normalize=normalize,
            tile=config.evaluate.tile,
            precision=config.train.precision if fits else "fp32",
            channels_last=config.train.channels_last,
            batch_size=config.evaluate.batch_size,
            shift=_shift(config, frequencies),
            thresholds=thresholds_in_force(config, thresholds),
            nan=RefuseNan() if nan is None else nan,
        )

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Return float32 logits [N, K, H, W] of images [N, C, H, W] as stored (uint8, uint16 or float).

        Without tiles they are on the model's device. With tiles they are put together on the CPU, so that
        the device holds no more than one batch of tiles, however large the image.
        """
        if self.tile is None:
            return self._forward(images)
        return torch.stack([torch.cat([band for _, band in self.bands(image)], dim=1) for image in images])

    @torch.no_grad()
    def read_logits(self, images: Tensor) -> Tensor | CoarseLogits:
        """Return what `logits` does without tiles, as coarse ones where the model has them: for what enlarges them."""
        if not isinstance(self.model, SegmentationModel) or self.model.upsampling == 1:
            return self._forward(images)
        with autocast(device_of(self.model), self.precision):
            read = self.model.coarse(self._inputs(images))
        self.nan.see(read.values)
        return read

    @torch.no_grad()
    def classes(self, images: Tensor, *, size: tuple[int, int] | None = None) -> Tensor:
        """Return the predicted classes [N, h, w] (uint8, or int16 above 256 classes) on the CPU.

        With thresholds instead which classes are present, uint8 [N, K, h, w] of 0 and 1.

        size: (h, w) of the answer; default: the images' own. The logits are resized, never the classes.
        With tiles and no resize, only a band of logits as high as a tile is held at a time.
        """
        size = size or (images.shape[2], images.shape[3])
        if self.tile is not None and size == tuple(images.shape[2:]):
            return torch.stack([self._classes_by_band(image) for image in images])
        logits = self.logits(images)
        # One image at a time: resized logits of a batch of large masks would be the peak of all memory.
        return torch.cat([self.decide(resize_logits(one[None], size)).cpu() for one in logits])

    def decide(self, logits: Tensor) -> Tensor:
        """Return what logits [N, K, h, w] mean, on their device: as `classes` does."""
        if self.thresholds is not None:
            return predict_labels(logits, self.thresholds)
        return predict_classes(logits, shift=self.shift)

    def _classes_by_band(self, image: Tensor) -> Tensor:
        return torch.cat([self.decide(band[None])[0] for _, band in self.bands(image)], dim=-2)

    @torch.no_grad()
    def bands(self, image: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Yield (top, logits float32 [K, h, W] on the CPU): finished horizontal bands of one image [C, H, W].

        Each tile is weighted by a smooth window, and the weights of all tiles add up to 1 at each pixel. A
        band is finished, and forgotten here, as soon as no later tile reaches it.
        """
        assert self.tile is not None
        height, width = image.shape[1:]
        rows = _Cuts.of(height, self.tile.size[0], self.tile.overlap)
        columns = _Cuts.of(width, self.tile.size[1], self.tile.overlap)
        cells = [(row, column) for row in range(len(rows.starts)) for column in range(len(columns.starts))]
        strip = torch.empty(0)
        for begin in range(0, len(cells), self.batch_size):
            batch = cells[begin : begin + self.batch_size]
            tiles = [image[:, rows.slice(row), columns.slice(column)] for row, column in batch]
            for (row, column), logits in zip(batch, self._forward(torch.stack(tiles)).cpu(), strict=True):
                if column == 0:
                    top, done = rows.starts[row - 1] if row else 0, rows.starts[row]
                    if row:
                        yield top, strip[:, : done - top]
                    strip = _shifted(strip, done - top, (logits.shape[0], rows.length, width))
                window = rows.weights[row][:, None] * columns.weights[column]
                strip[:, :, columns.slice(column)] += logits * window
        yield rows.starts[-1], strip

    def _forward(self, images: Tensor) -> Tensor:
        inputs = self._inputs(images)
        with autocast(inputs.device, self.precision):
            output = self.model(inputs)
        logits: Tensor = output[0] if isinstance(output, list | tuple) else output
        if logits.ndim != 4 or logits.shape[0] != images.shape[0] or logits.shape[2:] != images.shape[2:]:
            raise ValueError(
                f"the model made {list(logits.shape)} of images {list(images.shape)}: "
                "expected logits [N, num_classes, H, W] at the size of the images"
            )
        self.nan.see(logits)
        return logits.float()

    def _inputs(self, images: Tensor) -> Tensor:
        inputs = self.normalize(images.to(device_of(self.model)))
        return inputs.contiguous(memory_format=torch.channels_last) if self.channels_last else inputs


def _shift(config: Config, frequencies: ClassFrequencies | None) -> Tensor | None:
    if config.evaluate.prior_tau is None:
        return None
    if frequencies is None:
        raise ConfigError(
            "evaluate.prior_tau is set, and the class frequencies of the training data are not known here: pass "
            "frequencies=, or leave prior_tau out"
        )
    return prior_shift(frequencies.pixels.tolist(), config.evaluate.prior_tau)


def predict_logits(
    model: nn.Module,
    normalize: Callable[[Tensor], Tensor],
    images: Tensor,
    *,
    tile: TileConfig | None = None,
    precision: str = "fp32",
    channels_last: bool = False,
    batch_size: int = DEFAULT_BATCH_SIZE,
) -> Tensor:
    """Return float32 logits [N, K, H, W] of images [N, C, H, W]; see Predictor.logits."""
    predictor = Predictor(model, normalize, tile, precision, channels_last, batch_size)
    return predictor.logits(images)


def resize_logits(logits: Tensor, size: Sequence[int]) -> Tensor:
    """Return logits [N, K, h, w] resized to size (height, width): bilinear, corners not aligned."""
    if tuple(logits.shape[2:]) == tuple(size):
        return logits
    return nn.functional.interpolate(logits, size=tuple(size), mode="bilinear", align_corners=False)


def device_of(model: nn.Module) -> torch.device:
    """Return the device of the model's first parameter (CPU for a model without any)."""
    parameter = next(model.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


@dataclass(frozen=True)
class _Cuts:
    """Where tiles of one length lie along one axis, and their weights, which add up to 1 at each position."""

    length: int
    starts: tuple[int, ...]
    weights: tuple[Tensor, ...]

    def slice(self, index: int) -> slice:
        return slice(self.starts[index], self.starts[index] + self.length)

    @classmethod
    def of(cls, extent: int, length: int, overlap: float) -> _Cuts:
        """Cut `extent` pixels into tiles of `length` that overlap by at least the share `overlap`, evenly spread."""
        length = min(length, extent)
        stride = max(1, math.floor(length * (1 - overlap)))
        count = math.ceil((extent - length) / stride) + 1
        starts = tuple(round(index * (extent - length) / max(count - 1, 1)) for index in range(count))
        # A Hann window taken at the middles of the pixels: smooth, and positive everywhere.
        window = torch.sin(math.pi * (torch.arange(length, dtype=torch.float64) + 0.5) / length) ** 2
        total = torch.zeros(extent, dtype=torch.float64)
        for start in starts:
            total[start : start + length] += window
        return cls(length, starts, tuple((window / total[start : start + length]).float() for start in starts))


def _shifted(strip: Tensor, rows: int, shape: tuple[int, int, int]) -> Tensor:
    """Return zeros of `shape` [K, h, W] that begin with what `strip` holds after its first `rows` rows."""
    fresh = torch.zeros(shape)
    if strip.numel():
        fresh[:, : shape[1] - rows] = strip[:, rows:]
    return fresh
