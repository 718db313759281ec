"""The way from a run, or a model given in code, to a file: traced, written, compared with the run, or removed."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from segtrain.config import Config
from segtrain.data import ClassFrequencies
from segtrain.data.images import AnyArray
from segtrain.engine.checkpoint import LoadedRun, load_checkpoint, load_run
from segtrain.engine.predict import Predictor
from segtrain.errors import ConfigError, suggest
from segtrain.export.description import Description, describe
from segtrain.export.graph import DEFAULT_PARTS, OUTPUTS, ServingGraph, check_parts
from segtrain.export.images import DEFAULT_NUMBER, one_dtype, read_given, read_val
from segtrain.export.onnx_file import OnnxSession, require_onnx, to_onnx, without_outputs, write_onnx
from segtrain.export.parity import Outputs, Parity, Reference, check_parity
from segtrain.export.program import Shapes, trace
from segtrain.export.pt2_file import Pt2Program, write_pt2
from segtrain.models import Normalize

METADATA_KEY = "segtrain"


@dataclass(frozen=True)
class GraphOptions:
    """What a graph is to hold and how it is checked.

    parts: of segtrain.export.graph.PARTS. opset: of ONNX, None for torch's default. shapes: what is fixed. images:
    files and folders to check on instead of the val split; num_images: how many of them.
    """

    parts: tuple[str, ...] = DEFAULT_PARTS
    opset: int | None = None
    shapes: Shapes = field(default_factory=Shapes)
    images: tuple[Path, ...] = ()
    num_images: int = DEFAULT_NUMBER


@dataclass(frozen=True)
class Shippable:
    """A model that can be shipped: with its predictor on the CPU, and what is said about it."""

    predictor: Predictor
    description: Description
    config: Config


@dataclass(frozen=True)
class Exported:
    """A file that was written and compared with its run."""

    path: Path
    num_bytes: int
    parity: Parity


def shippable_run(
    run: str | Path, *, checkpoint: str = "best", overrides: Sequence[str] = ()
) -> tuple[LoadedRun, Shippable]:
    """Load a run on the CPU to ship it; `checkpoint` is best or last, `overrides` as for evaluate.

    Raises:
        CheckpointError: no checkpoint, a broken one, or one whose model was given in code (see `export_model`).
    """
    loaded = load_run(run, device="cpu", which=checkpoint, overrides=overrides)
    made = _shippable(
        loaded.config,
        loaded.model,
        loaded.normalize,
        frequencies=loaded.frequencies,
        thresholds=loaded.thresholds,
        step=loaded.step,
        checkpoint=load_checkpoint(loaded.path),
        in_code=False,
    )
    return loaded, made


def _shippable(
    config: Config,
    model: nn.Module,
    normalize: Normalize,
    *,
    frequencies: ClassFrequencies | None,
    thresholds: Mapping[str, float] | None,
    step: int,
    checkpoint: Mapping[str, Any],
    in_code: bool,
) -> Shippable:
    predictor = Predictor.from_config(
        config, model=model, normalize=normalize, frequencies=frequencies, thresholds=thresholds
    )
    pixels = () if frequencies is None else tuple(int(count) for count in frequencies.pixels)
    description = describe(config, predictor, step=step, pixels=pixels, checkpoint=checkpoint, in_code=in_code)
    return Shippable(predictor, description, config)


def export_run(
    run: str | Path,
    *,
    format: str,
    out: Path | None = None,
    options: GraphOptions | None = None,
    checkpoint: str = "best",
    overrides: Sequence[str] = (),
    overwrite: bool = False,
) -> Exported:
    """Export a run's evaluated weights as a graph in float32, and compare the file with the run on real images.

    Args:
        run: its folder, or a checkpoint file.
        format: onnx or pt2.
        out: the file; default: <run folder>/export/<name>.<format>.
        options: what the graph holds; default: pre- and post-processing, any number of images of any size.
        checkpoint: best or last.
        overrides: `key=value`, as for evaluate.
        overwrite: replace a file that exists.

    Raises:
        ConfigError: a setting that a graph cannot have, packages of the extra onnx that are missing, an existing file.
        CheckpointError: no usable checkpoint; or the file does not do what the run does, and was removed.
        DataError: no images to compare on.
    """
    options = options or GraphOptions()
    _check_format(format)
    loaded, made = shippable_run(run, checkpoint=checkpoint, overrides=overrides)
    path = out or loaded.folder / "export" / f"{made.config.name}.{format}"
    check_free(path, overwrite=overwrite)
    _check_graph(made, options)
    images = (
        read_given(options.images, made.config, number=options.num_images)
        if options.images
        else read_val(made.config, number=options.num_images)
    )
    return _export(made, images, path, format=format, options=options)


def export_model(
    config: Config,
    *,
    model: nn.Module,
    images: Sequence[AnyArray],
    format: str,
    out: Path,
    options: GraphOptions | None = None,
    frequencies: ClassFrequencies | None = None,
    thresholds: Mapping[str, float] | None = None,
    overwrite: bool = False,
) -> Exported:
    """Export a network that was given in code, as `export_run` does; a copy of it, on the CPU.

    Args:
        config: of its training.
        model: normalised floats [N, C, H, W] -> logits [N, K, H, W]; of a list of logits the first is exported.
        images: [H, W, C] as stored, to compare on.
        frequencies: of the training data, which evaluate.prior_tau needs.
        thresholds: {class name: threshold}, which evaluate.tune_thresholds needs.
    """
    options = options or GraphOptions()
    _check_format(format)
    check_free(out, overwrite=overwrite)
    normalize = Normalize(config.data.normalize.mean, config.data.normalize.std)
    made = _shippable(
        config,
        copy.deepcopy(model).cpu().eval(),
        normalize,
        frequencies=frequencies,
        thresholds=thresholds,
        step=0,
        checkpoint={},
        in_code=True,
    )
    _check_graph(made, options)
    return _export(made, images, out, format=format, options=options)


def _check_format(format: str) -> None:
    if format not in GRAPH_FORMATS:
        known = f"{', '.join(GRAPH_FORMATS)}{suggest(format, GRAPH_FORMATS)}"
        raise ConfigError(f"format {format!r} is no graph; known: {known}")
    if format == "onnx":
        require_onnx()


def check_free(path: Path, *, overwrite: bool) -> None:
    """Raise ConfigError where `path` exists and may not be replaced."""
    if path.exists() and not overwrite:
        raise ConfigError(f"{path} exists: choose another --out, or replace it with --overwrite")


def _check_graph(made: Shippable, options: GraphOptions) -> None:
    """Raise ConfigError for what the run does and a graph cannot do."""
    config, size = made.config, options.shapes.size
    if config.evaluate.tile is not None:
        raise ConfigError(
            "evaluate.tile is set, and a graph sees whole images: export with evaluate.tile=null, and cut tiles around "
            "it where images are large; --format folder keeps the tiles"
        )
    wanted = config.data.input_size
    if size is not None and wanted is not None and "preprocess" not in options.parts and tuple(size) != tuple(wanted):
        raise ConfigError(
            f"--size {size[0]}x{size[1]} without the part preprocess: the network was trained on images of "
            f"{wanted[0]}x{wanted[1]} (data.input_size), which must come in then"
        )


def _export(made: Shippable, images: Sequence[AnyArray], path: Path, *, format: str, options: GraphOptions) -> Exported:
    """Write beside `path`, compare, and give the file its name only then: what stood there before is kept till then."""
    graph = ServingGraph(made.predictor, made.description, check_parts(options.parts)).eval()
    first = torch.from_numpy(one_dtype(images)[:1, :1])
    dtype = first.dtype if "preprocess" in graph.parts else torch.float32
    program = trace(graph, channels=first.shape[2], dtype=dtype, shapes=options.shapes)
    metadata = {METADATA_KEY: json.dumps({**made.description.to_json(), "graph": _describe(graph, dtype, options)})}
    unchecked = path.with_name(f".unchecked-{path.name}")
    try:
        outputs, logits = GRAPH_FORMATS[format](program, unchecked, graph, options, metadata)
        reference = Reference(made.predictor, graph, made.description)
        parity = check_parity(outputs, logits, reference, images, shapes=options.shapes, place=str(path))
        unchecked.replace(path)
    finally:
        unchecked.unlink(missing_ok=True)
    return Exported(path, path.stat().st_size, parity)


def _write_onnx(
    program: ExportedProgram, path: Path, graph: ServingGraph, options: GraphOptions, metadata: Mapping[str, str]
) -> tuple[Outputs, Outputs]:
    """Write the outputs that were asked for; return the file, and the same graph with its logits."""
    whole = to_onnx(program, outputs=graph.outputs(), shapes=options.shapes, opset=options.opset, metadata=metadata)
    write_onnx(without_outputs(whole, [OUTPUTS[part] for part in graph.parts if part in OUTPUTS]), path)
    return OnnxSession(path), OnnxSession(whole.SerializeToString())


def _write_pt2(
    program: ExportedProgram, path: Path, graph: ServingGraph, options: GraphOptions, metadata: Mapping[str, str]
) -> tuple[Outputs, Outputs]:
    """Write all outputs: a program of torch hands out tensors that it has anyway, so that its logits cost nothing."""
    if options.opset is not None:
        raise ConfigError("--opset is of ONNX: drop it with --format pt2")
    write_pt2(program, path, metadata=metadata)
    loaded = Pt2Program(path)
    return loaded, loaded


Writer = Callable[[ExportedProgram, Path, ServingGraph, GraphOptions, Mapping[str, str]], tuple[Outputs, Outputs]]
GRAPH_FORMATS: dict[str, Writer] = {"onnx": _write_onnx, "pt2": _write_pt2}


def _describe(graph: ServingGraph, dtype: torch.dtype, options: GraphOptions) -> dict[str, Any]:
    """Return what comes in and out of a graph, in JSON types."""
    inside = "preprocess" in graph.parts
    return {
        "input": {
            "name": "images",
            "dtype": str(dtype).removeprefix("torch."),
            "layout": "NCHW",
            "values": "as stored" if inside else "normalised: (value / largest value of the type - mean) / std",
            "batch": options.shapes.batch,
            "size": options.shapes.size,
        },
        "parts": list(graph.parts),
    }
