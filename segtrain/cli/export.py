"""The command `export`: write a run's model as ONNX, as a program of torch, or as a folder that load_model takes."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING

from segtrain.cli.arguments import positive, refuse_without_effect

if TYPE_CHECKING:
    from segtrain.export import GraphOptions

FORMATS = ("onnx", "pt2", "folder")
# what only graphs have: {argument: its flag}
OF_GRAPHS = {
    "include": "--include",
    "opset": "--opset",
    "size": "--size",
    "batch": "--batch",
    "images": "--images",
    "num_images": "--num-images",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("run", help="a run's folder, such as runs/quickstart, or a checkpoint file")
    told = "onnx or pt2: a graph; folder: weights, config.json, a model card"
    parser.add_argument("--format", required=True, choices=FORMATS, help=told)
    parser.add_argument("--out", type=Path, metavar="PATH", help="default: <run folder>/export/<name>[.onnx|.pt2]")
    parser.add_argument("--overwrite", action="store_true", help="replace what is at --out")
    parser.add_argument(
        "--checkpoint", choices=("best", "last"), default="best", help="which one of the run's folder; default: best"
    )
    parser.add_argument(
        "--include",
        type=lambda text: tuple(text.split(",")),
        metavar="PARTS",
        help="parts of the graph, with commas: preprocess (images come in as stored, else normalised floats), "
        "postprocess (class numbers come out), probabilities, logits; default: preprocess,postprocess",
    )
    parser.add_argument("--size", type=_size, metavar="HxW", help="images of this size only; default: of any size")
    parser.add_argument("--batch", type=positive, metavar="N", help="so many images at once only; default: any number")
    parser.add_argument("--opset", type=int, metavar="N", help="version of the ONNX operators; default: torch's")
    parser.add_argument(
        "--images",
        type=Path,
        nargs="+",
        metavar="IMAGE",
        help="files or folders of real images on which the file is compared with the run; default: the val split",
    )
    parser.add_argument("--num-images", type=positive, metavar="N", help="how many of them; default: 4")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as evaluate.prior_tau=1")


def run(args: argparse.Namespace) -> int:
    """Export, compare, and say where the file is; return 0."""
    from segtrain.console import make_console, say
    from segtrain.errors import ConfigError
    from segtrain.export import export_run, save_pretrained

    refuse_without_effect(args.overrides)
    if any(text.startswith("device=") for text in args.overrides):
        raise ConfigError("device: models are exported on the CPU, and run wherever they are loaded: drop it")
    options = _graph_options(args)
    chosen = {"checkpoint": args.checkpoint, "overrides": args.overrides, "overwrite": args.overwrite}
    console = make_console()
    if args.format == "folder":
        path = save_pretrained(args.run, args.out, **chosen)
        files = ", ".join(f"{file.name} ({_megabytes(file.stat().st_size)})" for file in sorted(path.iterdir()))
        say(console, f"written to {path}: {files}")
        say(console, f'use it: import segtrain; model = segtrain.load_model("{path}"); model.predict("image.png")')
        return 0
    exported = export_run(args.run, format=args.format, out=args.out, options=options, **chosen)
    say(console, exported.parity.describe())
    say(console, f"written: {exported.path} ({_megabytes(exported.num_bytes)})")
    return 0


def _graph_options(args: argparse.Namespace) -> GraphOptions:
    from segtrain.errors import ConfigError
    from segtrain.export import GraphOptions, Shapes

    given = {name: getattr(args, name) for name in OF_GRAPHS if getattr(args, name) is not None}
    if args.format == "folder" and given:
        flags = ", ".join(OF_GRAPHS[name] for name in given)
        raise ConfigError(f"--format folder writes no graph: drop {flags}, or take --format onnx or pt2")
    shapes = Shapes(batch=given.pop("batch", None), size=given.pop("size", None))
    if "include" in given:
        given["parts"] = given.pop("include")
    if "images" in given:
        given["images"] = tuple(given["images"])
    return GraphOptions(shapes=shapes, **given)


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([1-9]\d*)[x×]([1-9]\d*)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"expected height and width, such as 512x1024, found {text!r}")
    return int(match[1]), int(match[2])


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.2f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"
