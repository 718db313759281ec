"""The command `benchmark`: measure time and memory, ours beside others', as ratios within one run."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segtrain.cli import benchmark_confusion, benchmark_data, benchmark_step
from segtrain.cli.arguments import positive
from segtrain.cli.benchmark_cases import add_case_arguments, make_cases, read_result

if TYPE_CHECKING:
    from rich.console import Console

    from segtrain.benchmark import LossSettings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the subjects, each with arguments of its own."""
    subjects = parser.add_subparsers(dest="subject", required=True, metavar="subject", parser_class=type(parser))
    losses = subjects.add_parser(
        "losses", help="forward + backward of the losses, against torch, smp and MONAI", allow_abbrev=False
    )
    _add_loss_arguments(losses)
    losses.set_defaults(run_subject=_run_losses)
    confusion = subjects.add_parser(
        "confusion", help="counting a batch, from logits and from classes, against torchmetrics", allow_abbrev=False
    )
    benchmark_confusion.add_arguments(confusion)
    confusion.set_defaults(run_subject=benchmark_confusion.run)
    data = subjects.add_parser("data", help="loader, scan and cache, against the bare decode", allow_abbrev=False)
    benchmark_data.add_arguments(data)
    data.set_defaults(run_subject=benchmark_data.run)
    step = subjects.add_parser("step", help="a training step of the engine, against a bare loop", allow_abbrev=False)
    benchmark_step.add_arguments(step)
    step.set_defaults(run_subject=benchmark_step.run)


def run(args: argparse.Namespace) -> int:
    """Measure the subject and print its table; return 0."""
    code: int = args.run_subject(args)
    return code


def _add_loss_arguments(parser: argparse.ArgumentParser) -> None:
    add_case_arguments(parser)
    parser.add_argument("--rounds", type=positive, default=15, help="of timing, after two to warm up; default: 15")
    parser.add_argument("--threads", type=positive, help="of torch; default: as torch chooses")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these losses alone, beside F.cross_entropy")
    parser.add_argument("--no-others", action="store_true", help="without the plain forms, smp and MONAI")
    parser.add_argument("--no-memory", action="store_true", help="time alone")
    parser.add_argument("--markdown", action="store_true", help="print the report in markdown")
    files = parser.add_mutually_exclusive_group()
    files.add_argument("--out", type=Path, metavar="FILE.json", help="write all figures there")
    files.add_argument("--show", type=Path, metavar="FILE.json", help="measure nothing: print what --out wrote")


def _run_losses(args: argparse.Namespace) -> int:
    from segtrain.benchmark import benchmark_losses, report
    from segtrain.console import make_console, say
    from segtrain.files import write_json

    if args.show is not None:
        result = read_result(args.show, kind="losses")
    else:
        settings = _loss_settings(args)
        errors = make_console(stderr=True)
        result = benchmark_losses(settings, tell=lambda text: say(errors, text))
    console = make_console()
    if args.markdown:
        say(console, report.markdown(result))
    else:
        _print_tables(result, console)
    if args.out is not None:
        write_json(args.out, result)
        say(make_console(stderr=True), f"written: {args.out}")
    return 0


def _print_tables(result: dict[str, Any], console: Console) -> None:
    from segtrain.benchmark import report

    for line in report.header_lines(result):
        console.print(line, markup=False)
    for case in result["cases"]:
        console.print()
        console.print(report.case_table(case, headline=result["headline"]))
    console.print(f"\n{report.NOTES}", markup=False)


def _loss_settings(args: argparse.Namespace) -> LossSettings:
    from segtrain.benchmark.losses import LossSettings, choose_subjects

    subjects = choose_subjects(args.only, others=not args.no_others)
    return LossSettings(
        cases=make_cases(args),
        subjects=subjects,
        rounds=args.rounds,
        threads=args.threads,
        memory=not args.no_memory,
    )
