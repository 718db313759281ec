"""Arguments that several commands share: which run, which checkpoint, which device, which tiles."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from segtrain.config import Config
    from segtrain.engine.checkpoint import LoadedRun


# What may be changed of a run that is finished: the rest is in its weights already, or belongs to training.
CHANGEABLE_SECTIONS = ("data", "evaluate")
CHANGEABLE_KEYS = ("device", "train.precision", "train.channels_last")


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
    """Load the run that the arguments name, and return it with its config, --tile applied.

    Raises:
        ConfigError: an override of a setting that changes nothing once a run is finished.
    """
    from segtrain.config.schema import TileConfig
    from segtrain.engine.checkpoint import load_run

    refuse_without_effect(overrides)
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


def refuse_without_effect(overrides: Sequence[str]) -> None:
    """Raise ConfigError for overrides of settings that change nothing once a run is finished."""
    from segtrain.errors import ConfigError, listing

    keys = [text.partition("=")[0].strip() for text in overrides]
    idle = [
        key
        for key in keys
        if key not in CHANGEABLE_KEYS and not any((key + ".").startswith(f"{name}.") for name in CHANGEABLE_SECTIONS)
    ]
    if idle:
        allowed = ", ".join([*(f"{name}.*" for name in CHANGEABLE_SECTIONS), *CHANGEABLE_KEYS])
        raise ConfigError(
            listing(
                f"overrides without effect on a finished run (those with one: {allowed})", list(dict.fromkeys(idle))
            )
        )
