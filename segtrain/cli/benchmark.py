"""The command `benchmark`: measure time and memory, ours beside others', as ratios within one run."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segtrain.cli import benchmark_data
from segtrain.cli.arguments import positive

if TYPE_CHECKING:
    from rich.console import Console

    from segtrain.benchmark import LossSettings
    from segtrain.benchmark.cases import MemoryFormat

DTYPES = ("float32", "float64", "float16", "bfloat16")
TARGET_DTYPES = {"uint8": 255, "int16": 2**15, "int32": 2**31, "int64": 2**63}  # and how many classes they hold


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the subjects, each with arguments of its own."""
    subjects = parser.add_subparsers(dest="subject", required=True, metavar="subject", parser_class=type(parser))
    losses = subjects.add_parser(
        "losses", help="forward + backward of the losses, against torch, smp and MONAI", allow_abbrev=False
    )
    _add_loss_arguments(losses)
    losses.set_defaults(run_subject=_run_losses)
    data = subjects.add_parser("data", help="loader, scan and cache, against the bare decode", allow_abbrev=False)
    benchmark_data.add_arguments(data)
    data.set_defaults(run_subject=benchmark_data.run)


def run(args: argparse.Namespace) -> int:
    """Measure the subject and print its table; return 0."""
    code: int = args.run_subject(args)
    return code


def _add_loss_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:<number>; default: cpu")
    parser.add_argument("--classes", type=positive, nargs="+", default=[19], metavar="C", help="such as 2 19 150")
    parser.add_argument("--size", type=positive, default=512, help="height and width in pixels; default: 512")
    parser.add_argument("--batch", type=positive, default=4, help="default: 4")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the logits; default: float32")
    parser.add_argument("--memory-format", choices=("nchw", "channels_last", "both"), default="nchw")
    parser.add_argument("--target-dtype", choices=tuple(TARGET_DTYPES), default="uint8", help="default: uint8")
    parser.add_argument("--ignored", type=_fraction, default=0.1, help="share of ignored pixels; default: 0.1")
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
        result = _read(args.show)
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
    from segtrain.benchmark.cases import Case
    from segtrain.benchmark.losses import LossSettings, choose_subjects
    from segtrain.errors import ConfigError

    subjects = choose_subjects(args.only, others=not args.no_others)
    most = TARGET_DTYPES[args.target_dtype]
    if max(args.classes) > most:
        raise ConfigError(
            f"--classes {max(args.classes)} does not fit --target-dtype {args.target_dtype}, which holds {most} "
            "classes: choose --target-dtype int16 or wider."
        )
    device = _device(args.device)
    formats: tuple[MemoryFormat, ...] = (
        ("nchw", "channels_last") if args.memory_format == "both" else (args.memory_format,)
    )
    inputs = {"batch": args.batch, "size": args.size, "dtype": args.dtype, "ignored": args.ignored}
    inputs |= {"target_dtype": args.target_dtype, "device": device}
    cases = tuple(Case(classes=c, memory_format=form, **inputs) for c in args.classes for form in formats)
    return LossSettings(
        cases=cases, subjects=subjects, rounds=args.rounds, threads=args.threads, memory=not args.no_memory
    )


def _device(name: str) -> str:
    import torch

    from segtrain.errors import ConfigError

    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda") or (number and not (kind == "cuda" and number.isdecimal())):
        raise ConfigError(f"--device is {name!r}; expected cpu, cuda or cuda:<number>.")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind == "cuda" and int(number or 0) >= count:
        raise ConfigError(f"--device is {name!r}, but torch finds {count} CUDA devices here: use --device cpu.")
    return name


def _fraction(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to below 1, found {text!r}")
    return value


def _read(path: Path) -> dict[str, Any]:
    from segtrain.errors import DataError

    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is no JSON ({error}); expected a file that --out wrote.") from error
    if not isinstance(result, dict) or result.get("benchmark") != "losses":
        raise DataError(f"{path} is no measurement of losses; expected a file that `benchmark losses --out` wrote.")
    return result
