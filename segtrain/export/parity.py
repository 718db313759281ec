"""Whether an exported model does what the run does: on real images, on their crops, and pixel by pixel."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from segtrain.data.images import AnyArray
from segtrain.data.steps import resize_image
from segtrain.engine.predict import Predictor
from segtrain.errors import CheckpointError
from segtrain.export.description import Description
from segtrain.export.graph import ServingGraph
from segtrain.export.program import Shapes

TOLERANCE = 1e-3  # of logits, relative to the largest one, at least 1
LEAST_AGREEMENT = 0.999  # share of the pixels that get the same class
# resizing in the graph rounds a few grey values another way than OpenCV does
LEAST_AGREEMENT_RESIZED = 0.99
ODD_SIZES = ((33, 47), (1, 1))
BATCH = 3

Outputs = Callable[[Tensor], Mapping[str, Tensor]]


@dataclass(frozen=True)
class Parity:
    """How an exported model compares with the run.

    num_images: real images. sizes: of all batches that were tried, [N, H, W]. max_difference: the largest absolute
    difference of logits between the file and the same graph in torch; max_logit: the largest absolute logit there.
    agreement: the share of pixels (with labels that may overlap, of pixels and classes) that the file and the run's own
    prediction in float32 put into one class. own_agreement: the same with the run's precision (bf16), None for fp32.
    """

    num_images: int
    sizes: tuple[tuple[int, int, int], ...]
    max_difference: float
    max_logit: float
    agreement: float
    own_agreement: float | None

    def describe(self) -> str:
        """Return a line for people."""
        own = "" if self.own_agreement is None else f" ({100 * self.own_agreement:.4f} % with the run's own precision)"
        images = f"{self.num_images} image{'' if self.num_images == 1 else 's'} and {len(self.sizes) - self.num_images}"
        return (
            f"parity over {images} crops or batches: logits differ by {self.max_difference:.2g} at most (largest logit "
            f"{self.max_logit:.3g}), {100 * self.agreement:.4f} % of the pixels get the same class{own}"
        )


class Reference:
    """What the run itself predicts, for batches of images as stored, and what the graph is then given.

    Args:
        predictor: of the run; without tiles.
        graph: in evaluation mode, on the CPU.
    """

    def __init__(self, predictor: Predictor, graph: ServingGraph, description: Description) -> None:
        self.own = predictor
        self.exact = replace(predictor, precision="fp32")
        self.graph = graph
        self.input_size = description.preprocessing.input_size

    def inputs(self, images: Tensor) -> Tensor:
        """Return what the graph takes in the place of images [N, C, H, W] as stored."""
        return images if "preprocess" in self.graph.parts else self.own.normalize(self._resized(images))

    def _resized(self, images: Tensor) -> Tensor:
        if self.input_size is None:
            return images
        arrays = [resize_image(_array(image), self.input_size) for image in images]
        return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)

    def prediction(self, predictor: Predictor, images: Tensor) -> Tensor:
        """Return the classes as `predict` writes them, at the size of what the graph takes."""
        resized = self._resized(images)
        size = images.shape[2:] if "preprocess" in self.graph.parts else resized.shape[2:]
        return predictor.classes(resized, size=(size[0], size[1]))


def check_parity(
    outputs: Outputs, logits: Outputs, reference: Reference, images: Sequence[AnyArray], *, shapes: Shapes, place: str
) -> Parity:
    """Compare an exported model with the run it came from.

    Args:
        outputs: the file: inputs -> its outputs by name.
        logits: the same graph, which hands out the logits too; it may be `outputs` itself.
        reference: the run.
        images: [H, W, C] as stored; crops and a batch of them are tried too where sizes are not fixed.
        shapes: what is fixed.
        place: the file, for messages.

    Raises:
        CheckpointError: the logits differ by more than TOLERANCE, or fewer pixels than LEAST_AGREEMENT get the same
            class (LEAST_AGREEMENT_RESIZED where images are resized in the graph).
    """
    tally = _Tally()
    for batch in batches(images, shapes):
        tally.add(outputs, logits, reference, batch)
    parity = tally.parity(len(images))
    resized = reference.input_size is not None and "preprocess" in reference.graph.parts
    least = LEAST_AGREEMENT_RESIZED if resized else LEAST_AGREEMENT
    limit = TOLERANCE * max(1.0, parity.max_logit)
    # written so that a NaN fails, too
    if not (parity.max_difference <= limit and parity.agreement >= least):
        raise CheckpointError(
            f"{place} would not do what the run does, and was not kept: {parity.describe()}; allowed are {limit:.2g} "
            f"and {100 * least:g} %. Try another --opset or --format, and other versions of torch and onnxruntime"
        )
    return parity


def batches(images: Sequence[AnyArray], shapes: Shapes) -> Iterator[Tensor]:
    """Yield each image as a batch of its own, then crops and a batch of several where the graph takes any size.

    Of a graph for one size images are resized to it.
    """
    sized = [image if shapes.size is None else resize_image(image, shapes.size) for image in images]
    for image in sized:
        yield shapes.fit(_stack([image]))
    if shapes.size is None:
        for height, width in ODD_SIZES:
            yield shapes.fit(_stack([sized[0][:height, :width]]))
    if shapes.batch is None:
        height, width = (min(image.shape[axis] for image in sized) for axis in (0, 1))
        yield _stack([sized[index % len(sized)][:height, :width] for index in range(BATCH)])


class _Tally:
    """Adds up how two models compare."""

    def __init__(self) -> None:
        self.sizes: list[tuple[int, int, int]] = []
        self.difference, self.largest = 0.0, 0.0
        self.same, self.own_same, self.pixels = 0, 0, 0
        self.low_precision = False

    def add(self, outputs: Outputs, logits: Outputs, reference: Reference, images: Tensor) -> None:
        """Compare one batch of images as stored."""
        inputs = reference.inputs(images)
        with torch.no_grad():
            wanted = reference.graph(inputs)
        found, found_logits = outputs(inputs), logits(inputs)["logits"]
        self.difference = _largest(self.difference, found_logits - wanted["logits"])
        self.largest = _largest(self.largest, wanted["logits"])
        if "probabilities" in found:
            self.difference = _largest(self.difference, found["probabilities"] - wanted["probabilities"])
        classes = found["prediction"] if "prediction" in found else reference.exact.decide(found_logits)
        self.same += int((classes == reference.prediction(reference.exact, images)).sum())
        self.low_precision = reference.own.precision != "fp32"
        if self.low_precision:
            self.own_same += int((classes == reference.prediction(reference.own, images)).sum())
        self.pixels += classes.numel()
        self.sizes.append((images.shape[0], images.shape[2], images.shape[3]))

    def parity(self, num_images: int) -> Parity:
        """Return the result."""
        own = self.own_same / self.pixels if self.low_precision else None
        return Parity(num_images, tuple(self.sizes), self.difference, self.largest, self.same / self.pixels, own)


def _largest(before: float, values: Tensor) -> float:
    """The largest absolute value so far; NaN stays."""
    return float(torch.maximum(torch.tensor(before), values.abs().amax()))


def _array(image: Tensor) -> AnyArray:
    return np.ascontiguousarray(image.permute(1, 2, 0).numpy())


def _stack(images: Sequence[AnyArray]) -> Tensor:
    stacked = torch.from_numpy(np.ascontiguousarray(np.stack(images).transpose(0, 3, 1, 2)))
    return stacked
