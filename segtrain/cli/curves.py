"""The command `curves`: draw loss and gradient of a pixel against the probability of its label."""

from __future__ import annotations

import argparse
from pathlib import Path

GAMMAS = (0.5, 1.0, 2.0, 5.0)
WEIGHT = 3.0


def not_negative(text: str) -> float:
    """Parse a number of at least 0."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number of at least 0, found {text!r}")
    return value


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    shown = " ".join(f"{gamma:g}" for gamma in GAMMAS)
    parser.add_argument("--gamma", type=not_negative, nargs="+", default=GAMMAS, help=f"of focal; default: {shown}")
    parser.add_argument("--weight", type=not_negative, default=WEIGHT, help=f"of the class; default: {WEIGHT:g}")
    parser.add_argument("--out", type=Path, default=Path("loss_curves.png"), help="default: loss_curves.png")


def run(args: argparse.Namespace) -> int:
    """Draw cross entropy, weighted cross entropy and focal; return 0."""
    from segtrain.console import make_console, say
    from segtrain.report.loss_curves import save_loss_curves

    save_loss_curves(args.out, gammas=args.gamma, weight=args.weight)
    say(make_console(), f"written: {args.out}")
    return 0
