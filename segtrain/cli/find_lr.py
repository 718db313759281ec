"""The command `find-lr`: train with a rate that rises, draw what the loss makes of it, and suggest a rate."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from segtrain.cli.arguments import positive

if TYPE_CHECKING:
    from segtrain.engine.find_lr import RangeTest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("config", help="YAML file, such as configs/quickstart.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as train.batch_size=4")
    parser.add_argument("--steps", type=positive, default=100, help="at most, 10 or more; default: 100")
    parser.add_argument("--lowest", type=float, default=1e-7, help="rate of the first step; default: 1e-7")
    parser.add_argument("--highest", type=float, default=10.0, help="rate of the last step; default: 10")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="default: <output>/find-lr/<name>")


def run(args: argparse.Namespace) -> int:
    """Print the suggestion, and write lr.png, lr.csv and lr.json; return 0."""
    from segtrain.config import load_config
    from segtrain.console import make_console, progress, say
    from segtrain.engine.find_lr import explain, find_lr
    from segtrain.report.lr_plot import save_lr_plot

    config = load_config(args.config, args.overrides)
    console = make_console()
    with progress("steps", args.steps) as advance:
        result = find_lr(
            config, steps=args.steps, lowest=args.lowest, highest=args.highest, tell=lambda step: advance(1)
        )
    folder: Path = args.out or Path(config.output) / "find-lr" / config.name
    _write(folder, result)
    save_lr_plot(folder / "lr.png", result, title=f"{config.name}: learning rate range test")
    say(console, f"written: {folder / 'lr.png'}, lr.csv, lr.json")
    for line in explain(result, config):
        say(console, line)
    return 0


def _write(folder: Path, result: RangeTest) -> None:
    import math

    from segtrain.files import write_csv, write_json

    rows = list(zip(result.lrs, result.losses, result.smoothed, strict=True))
    write_csv(folder / "lr.csv", [("lr", "loss", "smoothed"), *rows])
    steps = [
        {
            "lr": lr,
            "loss": loss if math.isfinite(loss) else None,
            "smoothed": smoothed if math.isfinite(smoothed) else None,
        }
        for lr, loss, smoothed in rows
    ]
    found = {"diverged": result.diverged, "suggested": result.steepest, "tenth_of_minimum": result.tenth}
    write_json(folder / "lr.json", {**found, "steps": steps})
