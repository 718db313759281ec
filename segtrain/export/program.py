"""From a serving graph to an exported program of torch, whose images may have any number and any size."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram, export

from segtrain.errors import ConfigError
from segtrain.export.graph import ServingGraph
from segtrain.models import SegmentationModel

INPUT = "images"
AXES = {0: "batch", 2: "height", 3: "width"}
# what torch.export raises for a network that it cannot follow: caught around its code alone
EXPORT_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
)


@dataclass(frozen=True)
class Shapes:
    """What is fixed in the graph: the number of images and their (height, width); None: any."""

    batch: int | None = None
    size: tuple[int, int] | None = None

    def dynamic(self) -> dict[int, str]:
        """Return the names of the axes that may have any length."""
        fixed = {0: self.batch, 2: self.size, 3: self.size}
        return {axis: name for axis, name in AXES.items() if fixed[axis] is None}

    def fit(self, images: Tensor) -> Tensor:
        """Return images [N, C, H, W] repeated or cut to the fixed number; their size must be right."""
        if self.batch is None:
            return images
        return images[torch.arange(self.batch) % len(images)]


def trace(graph: ServingGraph, *, channels: int, dtype: torch.dtype, shapes: Shapes) -> ExportedProgram:
    """Export a serving graph in evaluation mode.

    Args:
        graph: on the CPU.
        channels: of the images.
        dtype: of what comes in: uint8, uint16 or float32.
        shapes: what is fixed.

    Raises:
        ConfigError: torch cannot follow the network, or not for images of any size.
    """
    example = _example(graph, channels=channels, dtype=dtype, shapes=shapes)
    dynamic = {axis: Dim(name, min=1) for axis, name in shapes.dynamic().items()}
    try:
        with torch.no_grad():
            program = export(
                graph,
                (example,),
                dynamic_shapes=({**dynamic},) if dynamic else None,
                prefer_deferred_runtime_asserts_over_guards=True,
            )
    except EXPORT_ERRORS as error:
        raise ConfigError(_refusal(error, shapes)) from error
    _drop_assertions(program)
    return program


def _example(graph: ServingGraph, *, channels: int, dtype: torch.dtype, shapes: Shapes) -> Tensor:
    """Images of a size at which no two lengths inside the network agree by chance, and none is 1."""
    model = graph.model
    stride, least = (model.stride, model.min_size) if isinstance(model, SegmentationModel) else (8, (8, 8))
    height, width = shapes.size or (max(2 * stride, least[0]) + 13, max(3 * stride, least[1]) + 5)
    count = shapes.batch or 2
    return torch.zeros(count, channels, height, width).to(dtype)


def _drop_assertions(program: ExportedProgram) -> None:
    """Take out torch's assertions that certain lengths are not 1.

    They come from how memory is laid out while it follows the network, and would refuse images up to the network's
    stride; the parity check runs such images.
    """
    graph = program.graph
    for node in list(graph.nodes):
        if node.op == "call_function" and node.target is torch.ops.aten._assert_scalar.default:
            graph.erase_node(node)
    graph.eliminate_dead_code()
    program.graph_module.recompile()


def _refusal(error: Exception, shapes: Shapes) -> str:
    cause = " ".join(str(error).split())[:400]
    advice = "export at one size with --size HxW" if shapes.size is None else "take another architecture or encoder"
    return f"torch cannot export this model ({type(error).__name__}: {cause}): {advice}"
