"""The command `predict`: write index masks, palette masks and overlays for images of your own."""

from __future__ import annotations

import argparse
from pathlib import Path

from segtrain.cli.arguments import add_run_arguments, open_run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_run_arguments(parser)
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="image files, or folders of them")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write to")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="overrides",
        metavar="key=value",
        help="change a setting of the run, such as evaluate.batch_size=2; may be given several times",
    )
    parser.add_argument(
        "--save",
        action="append",
        default=[],
        choices=("probabilities",),
        help="write more: a grey PNG of 16 bits with the probability of each class",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist in --out")


def run(args: argparse.Namespace) -> int:
    """Predict and write; return 0. Raises DataError at the end if images could not be read."""
    from segtrain.console import make_console, say
    from segtrain.engine.predict import Predictor
    from segtrain.engine.predict_files import check_outputs, find_images, write_predictions

    # The images and the outputs are checked first: loading a model takes longer than a typing error should.
    sources = find_images(args.images, out=args.out)
    if not args.overwrite:
        check_outputs(sources, args.out)
    loaded, config = open_run(args, overrides=args.overrides)
    if not args.overwrite:
        check_outputs(sources, args.out, config=config, save=args.save)
    predictor = Predictor.from_config(
        config,
        model=loaded.model,
        normalize=loaded.normalize,
        frequencies=loaded.frequencies,
        thresholds=loaded.thresholds,
    )
    written = write_predictions(
        sources, args.out, config=config, predictor=predictor, checkpoint=loaded.path, save=args.save
    )
    console = make_console()
    kinds = "index/ (class numbers), palette/ (colours), overlay/ (on the image)"
    if config.data.multi_label:
        kinds = "labels/<class>/ (255 where it is present), overlay/ (on the image)"
    if args.save:
        kinds += ", probabilities/<class>/ (65535 stands for 1)"
    say(console, f"{written} images, in {args.out}: {kinds}")
    if config.data.label_map is not None and not config.data.multi_label:
        say(console, "index/ holds the class numbers of classes.json, not the mask values of data.label_map")
    return 0
