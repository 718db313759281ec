"""Arguments that several commands share: which run, which checkpoint, which device, which tiles."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from segtrain.config import Config
    from segtrain.engine.checkpoint import LoadedRun


def positive(text: str) -> int:
    """Parse a whole number of at least 1."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, found {text!r}")
    return value


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the run, --checkpoint, --device and --tile."""
    parser.add_argument("run", help="a run's folder, such as runs/quickstart, or a checkpoint file")
    parser.add_argument(
        "--checkpoint", choices=("best", "last"), default="best", help="which one of the run's folder; default: best"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:<number>; default: auto")
    parser.add_argument(
        "--tile", type=positive, nargs=2, metavar=("H", "W"), help="predict in overlapping tiles of this size"
    )


def open_run(args: argparse.Namespace, *, overrides: Sequence[str] = ()) -> tuple[LoadedRun, Config]:
    """Load the run that the arguments name, and return it with its config, --tile applied."""
    from segtrain.config.schema import TileConfig
    from segtrain.engine.checkpoint import load_run

    loaded = load_run(args.run, device=args.device, which=args.checkpoint, overrides=overrides)
    if args.tile is None:
        return loaded, loaded.config
    section = loaded.config.evaluate
    tile = (
        TileConfig(size=tuple(args.tile))
        if section.tile is None
        else section.tile.model_copy(update={"size": tuple(args.tile)})
    )
    return loaded, loaded.config.model_copy(update={"evaluate": section.model_copy(update={"tile": tile})})
