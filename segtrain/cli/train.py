"""The command `train`: from a YAML file to a trained model, its per-class table and the next commands."""

from __future__ import annotations

import argparse
import shlex
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from segtrain.config import Config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("config", help="YAML file, such as configs/quickstart.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as train.epochs=5 optimizer.lr=1e-3")


def run(args: argparse.Namespace) -> int:
    """Train; return 0, or 128 + the signal's number when a signal stopped the run (130 for Ctrl-C)."""
    from segtrain.config import load_config

    config = load_config(args.config, args.overrides)  # ahead of torch, for which a typing error should not wait
    from segtrain.console import make_console, say
    from segtrain.distributed import launched_rank
    from segtrain.engine import train
    from segtrain.report.tables import class_table

    console = make_console()
    console.quiet = launched_rank() != 0
    result = train(config, console=console)
    if result.signal is not None:
        return 128 + result.signal
    assert result.evaluation is not None
    console.print(class_table(result.evaluation))
    say(console, f"best checkpoint: {result.best_checkpoint}\n\nNext:")
    for command in _next_commands(config, str(result.folder)):
        say(console, f"  {command}")
    return 0


def _next_commands(config: Config, folder: str) -> list[str]:
    """Return the commands that measure, show and use the run, for the split and the images that are there."""
    from segtrain.data.formats import image_folder, present_splits

    data = config.data
    split = "test" if "test" in present_splits(data) else "val"
    commands = [
        ["python", "tools/evaluate.py", folder, "--split", split],
        ["python", "tools/visualize.py", folder, "--split", split],
    ]
    images = image_folder(data, split)
    source = "path/to/images" if images is None else str(images)
    commands.append(["python", "tools/predict.py", folder, source, "--out", f"predictions/{config.name}"])
    return [shlex.join(command) for command in commands]
