"""The network with what stands before and behind it, as one graph of tensor operations for images of any size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from segtrain.engine.predict import Predictor
from segtrain.errors import ConfigError, suggest
from segtrain.export.description import Description
from segtrain.export.resize import resize
from segtrain.kernels.confusion_cpu import class_dtype
from segtrain.metrics.multilabel import threshold_logits
from segtrain.models import SegmentationModel

# what may stand inside a graph: the first is what comes in, the others what comes out
PARTS = ("preprocess", "postprocess", "probabilities", "logits")
OUTPUTS = {"postprocess": "prediction", "probabilities": "probabilities", "logits": "logits"}
DEFAULT_PARTS = ("preprocess", "postprocess")


def check_parts(parts: Sequence[str]) -> tuple[str, ...]:
    """Return the parts in their order, with logits where nothing else would come out.

    Raises:
        ConfigError: a part that is none, or one named twice.
    """
    for part in parts:
        if part not in PARTS:
            raise ConfigError(f"--include: {part!r} is unknown; known: {', '.join(PARTS)}{suggest(part, PARTS)}")
    if len(set(parts)) != len(parts):
        raise ConfigError(f"--include names a part twice: {','.join(parts)}")
    chosen = {*parts} if OUTPUTS.keys() & {*parts} else {*parts, "logits"}
    return tuple(part for part in PARTS if part in chosen)


class ServingGraph(nn.Module):
    """A model as it is shipped: float32, without a choice that depends on the size of the images.

    Args:
        predictor: the model with what prediction needs; it stays as it is.
        description: of the same run.
        parts: of PARTS, as `check_parts` returns them.
    """

    shift: Tensor | None
    limits: Tensor | None

    def __init__(self, predictor: Predictor, description: Description, parts: Sequence[str]) -> None:
        super().__init__()
        self.model = predictor.model
        self.parts = tuple(parts)
        self.normalize = predictor.normalize
        self.input_size = description.preprocessing.input_size
        self.activation = description.activation
        self.num_classes = len(description.classes)
        shift, thresholds = predictor.shift, predictor.thresholds
        self.register_buffer("shift", None if shift is None else shift.to(torch.float32).view(1, -1, 1, 1))
        limits = None if thresholds is None else threshold_logits(thresholds).view(1, -1, 1, 1)
        self.register_buffer("limits", limits)

    def outputs(self) -> list[str]:
        """Return the names of what `forward` returns, in its order."""
        chosen = [name for part, name in OUTPUTS.items() if part in self.parts and part != "logits"]
        return [*chosen, "logits"]

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return the outputs by name, and the logits always.

        Args:
            images: [N, C, H, W]; with the part preprocess as stored (uint8, uint16), else normalised float32 at the
                size that the network is to see.

        Returns:
            prediction: [N, H, W] uint8 (int16 above 256 classes), or [N, K, H, W] uint8 of 0 and 1 where classes may
            overlap; probabilities and logits: float32 [N, K, H, W]. All at the size of the images.
        """
        logits = self._logits(images)
        outputs = {}
        if "postprocess" in self.parts:
            outputs["prediction"] = self._prediction(logits)
        if "probabilities" in self.parts:
            outputs["probabilities"] = logits.softmax(dim=1) if self.activation == "softmax" else logits.sigmoid()
        return {**outputs, "logits": logits}

    def _logits(self, images: Tensor) -> Tensor:
        if "preprocess" not in self.parts:
            return self._of_normalized(images)
        if self.input_size is None:
            return self._of_normalized(self.normalize(images))
        resized = resize(images, self.input_size).to(images.dtype)
        logits = self._of_normalized(self.normalize(resized))
        height, width = images.shape[-2:]
        return functional.interpolate(logits, size=(height, width), mode="bilinear", align_corners=False)

    def _of_normalized(self, images: Tensor) -> Tensor:
        if not isinstance(self.model, SegmentationModel):
            output = self.model(images)
            first = output[0] if isinstance(output, list | tuple) else output
            return cast(Tensor, first).to(torch.float32)
        height, width = images.shape[-2:]
        model = self.model
        rows, columns = (
            _padded(length, stride=model.stride, least=least)
            for length, least in zip((height, width), model.min_size, strict=True)
        )
        logits: Tensor = model.network(_grown(_grown(images, rows, dim=2), columns, dim=3))
        if model.upsampling > 1:
            logits = functional.interpolate(logits, size=(rows, columns), mode="bilinear", align_corners=False)
        return logits[:, :, :height, :width]

    def _prediction(self, logits: Tensor) -> Tensor:
        if self.limits is not None:
            return (logits >= self.limits).to(torch.uint8)
        shifted = logits if self.shift is None else logits + self.shift
        return shifted.argmax(dim=1).to(class_dtype(self.num_classes))


def _padded(length: int, *, stride: int, least: int) -> int:
    """Return the length that the network takes; arithmetic alone, as `length` may be the symbol of a size."""
    whole = (length + stride - 1) // stride * stride
    return whole if least <= stride else cast(int, torch.sym_max(whole, least))


def _grown(images: Tensor, length: int, *, dim: int) -> Tensor:
    """Repeat the last pixels along a dimension up to `length`: the padding of `segtrain.models`, of any amount."""
    own = images.shape[dim]
    if isinstance(own, int) and own == length:
        return images
    places = torch.arange(length, device=images.device).clamp(max=own - 1)
    return images.index_select(dim, places)
