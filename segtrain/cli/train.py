"""The command `train`: from a YAML file to a trained model, its per-class table and the next commands."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("config", help="YAML file, such as configs/quickstart.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as train.epochs=5 optimizer.lr=1e-3")


def run(args: argparse.Namespace) -> int:
    """Train; return 0, or 128 + the signal's number when a signal stopped the run (130 for Ctrl-C)."""
    from segtrain.config import dump_config, load_config
    from segtrain.console import make_console, say
    from segtrain.engine import train
    from segtrain.report.tables import class_table

    console = make_console()
    config = load_config(args.config, args.overrides)
    say(console, dump_config(config).rstrip())
    result = train(config, console=console)
    if result.signal is not None:
        return 128 + result.signal
    assert result.evaluation is not None
    console.print(class_table(result.evaluation))
    say(console, f"best checkpoint: {result.best_checkpoint}\n\nNext:")
    split = "test" if "test" in config.data.splits else "val"
    images = f"{config.data.root}/{config.data.images}/{config.data.splits[split]}"
    for command in (
        f"python tools/evaluate.py {result.folder} --split {split}",
        f"python tools/visualize.py {result.folder} --split {split}",
        f"python tools/predict.py {result.folder} {images} --out predictions/{config.name}",
    ):
        say(console, f"  {command}")
    return 0
