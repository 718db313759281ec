"""The command `find-batch`: try larger and larger batches on a GPU, and say which settings use its memory well."""

from __future__ import annotations

import argparse

from segtrain.cli.arguments import positive


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("config", help="YAML file, such as configs/camvid.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as train.precision=bf16")
    parser.add_argument("--most", type=positive, default=1024, help="largest batch to try; default: 1024")


def run(args: argparse.Namespace) -> int:
    """Print each trial and the advice; return 0."""
    import torch

    from segtrain.config import load_config
    from segtrain.console import make_console, say
    from segtrain.engine.device import select_device
    from segtrain.engine.find_batch import advice, find_batch

    config = load_config(args.config, args.overrides)
    console = make_console()
    found = find_batch(config, most=args.most, tell=lambda text: say(console, text))
    total = torch.cuda.get_device_properties(select_device(config.device)).total_memory
    for line in advice(found, config, total_bytes=total):
        say(console, line)
    return 0
