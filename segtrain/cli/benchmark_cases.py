"""What the benchmarks of losses and of the confusion matrix share: the arguments for their cases, and their files."""

from __future__ import annotations

import argparse
import json
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segtrain.cli.arguments import positive

if TYPE_CHECKING:
    from segtrain.benchmark.cases import Case, MemoryFormat

DTYPES = ("float32", "float64", "float16", "bfloat16")
TARGET_DTYPES = {"uint8": 255, "int16": 2**15, "int32": 2**31, "int64": 2**63}  # and how many classes they hold


def add_case_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what is measured on: every combination of classes, sizes, batches and layouts."""
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:<number>; default: cpu")
    parser.add_argument("--classes", type=positive, nargs="+", default=[19], metavar="C", help="such as 2 19 150")
    parser.add_argument(
        "--size", type=positive, nargs="+", default=[512], metavar="S", help="height and width in pixels; default: 512"
    )
    parser.add_argument("--batch", type=positive, nargs="+", default=[4], metavar="N", help="default: 4")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the logits; default: float32")
    parser.add_argument("--memory-format", choices=("nchw", "channels_last", "both"), default="nchw")
    parser.add_argument("--target-dtype", choices=tuple(TARGET_DTYPES), default="uint8", help="default: uint8")
    parser.add_argument("--ignored", type=_fraction, default=0.1, help="share of ignored pixels; default: 0.1")


def make_cases(args: argparse.Namespace) -> tuple[Case, ...]:
    """Return the cases that the arguments name.

    Raises:
        ConfigError: more classes than the targets' type holds, or a device that is not there.
    """
    from segtrain.benchmark.cases import Case
    from segtrain.errors import ConfigError

    most = TARGET_DTYPES[args.target_dtype]
    if max(args.classes) > most:
        raise ConfigError(
            f"--classes {max(args.classes)} does not fit --target-dtype {args.target_dtype}, which holds {most} "
            "classes: choose --target-dtype int16 or wider."
        )
    inputs = {"dtype": args.dtype, "ignored": args.ignored, "target_dtype": args.target_dtype}
    inputs |= {"device": _device(args.device)}
    formats: tuple[MemoryFormat, ...] = (
        ("nchw", "channels_last") if args.memory_format == "both" else (args.memory_format,)
    )
    return tuple(
        Case(classes=c, size=size, batch=batch, memory_format=form, **inputs)
        for size, batch, c, form in product(args.size, args.batch, args.classes, formats)
    )


def read_result(path: Path, *, kind: str) -> dict[str, Any]:
    """Read what `--out` wrote.

    Raises:
        DataError: the file is no measurement of this kind.
    """
    from segtrain.errors import DataError

    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is no JSON ({error}); expected a file that --out wrote.") from error
    if not isinstance(result, dict) or result.get("benchmark") != kind:
        raise DataError(f"{path} is no measurement of {kind}; expected a file that `benchmark {kind} --out` wrote.")
    return result


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
