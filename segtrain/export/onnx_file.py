"""ONNX files: written from an exported program, and run by onnxruntime."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from segtrain.data.extras import require
from segtrain.errors import ConfigError
from segtrain.export.program import EXPORT_ERRORS, INPUT, Shapes
from segtrain.files import write_whole

EXTRA = "onnx"
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
LEAST_OPSET = 18
MOST_BYTES = 2**31 - 1  # what protobuf takes


def require_onnx() -> None:
    """Raise ConfigError, naming the extra, unless all packages are there; before anything is loaded or traced."""
    for package in PACKAGES:
        require(package, extra=EXTRA, what="--format onnx writes and checks an ONNX file")


def to_onnx(
    program: ExportedProgram, *, outputs: Sequence[str], shapes: Shapes, opset: int | None, metadata: Mapping[str, str]
) -> Any:
    """Convert an exported program to an ONNX model (a protobuf message of the package onnx).

    Args:
        program: whose input is images, and whose outputs have these names in this order.
        opset: version of the operators; None: what torch takes by default.
        metadata: texts by key.

    Raises:
        ConfigError: an opset that is not to be had, or an operator that torch cannot convert.
    """
    _check_opset(opset)
    axes = shapes.dynamic()
    try:
        with warnings.catch_warnings():
            # torch 2.10 says so of its own code
            warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)`", category=FutureWarning)
            converted = torch.onnx.export(
                program,
                dynamo=True,
                verbose=False,
                input_names=[INPUT],
                output_names=list(outputs),
                opset_version=opset,
                dynamic_shapes=(axes,) if axes else None,
            )
    except EXPORT_ERRORS as error:
        cause = " ".join(str(error).split())[:400]
        raise ConfigError(f"torch cannot convert this model to ONNX ({type(error).__name__}: {cause})") from error
    assert converted is not None
    model: Any = converted.model_proto
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=value)
    return model


def without_outputs(model: Any, kept: Sequence[str]) -> Any:
    """Return a copy of an ONNX model that hands out `kept` alone; what is computed stays the same."""
    copy = type(model)()
    copy.CopyFrom(model)
    for output in [output for output in copy.graph.output if output.name not in kept]:
        copy.graph.output.remove(output)
    return copy


def write_onnx(model: Any, path: Path) -> None:
    """Write an ONNX model as one file, whole or not at all.

    Raises:
        ConfigError: it is larger than such a file can be. SegtrainError: it cannot be written.
    """
    size = model.ByteSize()
    if size > MOST_BYTES:
        raise ConfigError(f"the ONNX file would have {size / 2**30:.1f} GiB, and 2 are the limit: take --format pt2")
    write_whole(path, model.SerializeToString())


class OnnxSession:
    """An ONNX model in onnxruntime, on the CPU.

    Args:
        source: a file, or its bytes.
    """

    def __init__(self, source: Path | bytes) -> None:
        self.source = source
        runtime = require("onnxruntime", extra=EXTRA, what="an ONNX file is run")
        options = runtime.SessionOptions()
        options.log_severity_level = 3
        given = source if isinstance(source, bytes) else str(source)
        self._session = runtime.InferenceSession(given, options, providers=["CPUExecutionProvider"])
        self._names = [output.name for output in self._session.get_outputs()]

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Return the outputs of images [N, C, H, W] by name."""
        values = self._session.run(self._names, {INPUT: images.numpy()})
        return {name: torch.from_numpy(value) for name, value in zip(self._names, values, strict=True)}

    def input_shape(self) -> list[int | str]:
        """Return the length of each axis of the images, a name where it may be any."""
        return list(self._session.get_inputs()[0].shape)

    def metadata(self) -> dict[str, str]:
        """Return the texts that the file carries."""
        return dict(self._session.get_modelmeta().custom_metadata_map)


def _check_opset(opset: int | None) -> None:
    if opset is None:
        return
    most = require("onnx", extra=EXTRA, what="--opset").defs.onnx_opset_version()
    if not LEAST_OPSET <= opset <= most:
        raise ConfigError(f"--opset {opset}: torch and the onnx installed here write {LEAST_OPSET} to {most}")
