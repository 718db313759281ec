"""The command `visualize`: panels of the images on which the named classes fare worst, and a page that shows them."""

from __future__ import annotations

import argparse
from pathlib import Path

from segtrain.cli.arguments import add_run_arguments, open_run, positive
from segtrain.errors import some

MAX_NAMED = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_run_arguments(parser)
    parser.add_argument("--split", default="val", help="split of the data set to look at; default: val")
    parser.add_argument("--classes", metavar="A,B", help="classes to look at; default: the rarest in training")
    parser.add_argument("--worst", type=positive, default=20, metavar="N", help="how many images; default: 20")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: <run folder>/visualization/<split>")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as data.root=/data/camvid")


def run(args: argparse.Namespace) -> int:
    """Find the worst images, draw them and write the page; return 0."""
    from segtrain.console import make_console, say
    from segtrain.data.dataset import EvalDataset
    from segtrain.data.frequencies import check_split
    from segtrain.report.gallery import write_gallery
    from segtrain.report.worst import choose_classes, find_worst, present_classes

    loaded, config = open_run(args, overrides=args.overrides)
    names = config.data.class_names
    scan = check_split(config.data, args.split)
    rarest = scan.frequencies if loaded.frequencies is None else loaded.frequencies
    tail = config.evaluate.tail_fraction
    classes = choose_classes(args.classes, names, pixels=rarest.pixels, tail_fraction=tail)
    console = make_console()
    if args.classes is None:
        absent = classes
        split_pixels = scan.frequencies.pixels
        classes = present_classes(classes, pixels=rarest.pixels, split_pixels=split_pixels, tail_fraction=tail)
        if classes != absent:
            text = some([names[index] for index in absent], limit=MAX_NAMED)
            taken = some([names[index] for index in classes], limit=MAX_NAMED)
            say(console, f"split {args.split!r} holds none of the rarest classes ({text}): {taken} instead")
    data = EvalDataset(scan.samples, config.data, split=args.split)
    found = find_worst(
        config,
        model=loaded.model,
        normalize=loaded.normalize,
        data=data,
        split=args.split,
        classes=classes,
        frequencies=loaded.frequencies,
        thresholds=loaded.thresholds,
        num_worst=args.worst,
    )
    out = args.out or loaded.folder / "visualization" / args.split
    page = write_gallery(found, out, data=data, config=config, checkpoint=loaded.path, step=loaded.step)
    looked_at = (
        f"the {found.num_concerned} images that hold {some(found.class_names, limit=MAX_NAMED)} or were predicted to"
    )
    say(console, f"{len(found.images)} of {looked_at}, worst first")
    say(console, f"open {page}")
    return 0
