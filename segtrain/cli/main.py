"""Finds the command, runs it, and turns every error that a user can cause into one line and an exit code."""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import NoReturn

from segtrain import __version__
from segtrain.errors import ConfigError, SegtrainError, closest, suggest

# command: its line in the help. The modules segtrain/cli/<command>.py are imported when they are asked for.
COMMANDS = {
    "train": "train a model from a YAML file",
    "evaluate": "measure every class of a run on a split",
    "visualize": "draw the images on which the rare classes fare worst, as a page",
    "compare": "put several evaluated runs into one table, class by class",
    "predict": "write masks and overlays for images of your own",
    "export": "write a trained model as ONNX, pt2, or a folder that loads itself",
    "prepare": "unpack an archive safely, and propose the data section for it",
    "scan": "count the pixels and images of each class, and check the files",
    "split": "make train, val and test, or folds, each with all classes",
    "validate": "read every file of a data set and report all that is wrong",
    "curves": "draw loss and gradient against the probability of the label",
    "find-batch": "find the largest batch that fits on a GPU",
    "find-lr": "try rising learning rates, draw the loss, and suggest one",
    "schema": "write the JSON Schema with which editors complete training files",
    "benchmark": "measure time and memory of the losses against other libraries",
    "doctor": "check this machine: versions, devices, disk, shared memory",
}

# Of files that the message names; others keep their traceback, which shows what was going on.
PLAIN_ERRORS = frozenset(
    {
        errno.EACCES,
        errno.EEXIST,
        errno.EISDIR,
        errno.ENAMETOOLONG,
        errno.ENOENT,
        errno.ENOTDIR,
        errno.EPERM,
        errno.EROFS,
    }
)
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run `segtrain <command> ...` and return its exit code.

    0: done; 2: something the user can put right, told on standard error; 130: stopped by Ctrl-C; 141: the reader of
    our output went away. Errors of our own making keep their traceback.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _run(arguments)
        sys.stdout.flush()
    except SegtrainError as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        return _fail("stopped by Ctrl-C", code=EXIT_INTERRUPTED)
    except OSError as error:
        if isinstance(error, BrokenPipeError) and _stdout_is_gone():
            return EXIT_BROKEN_PIPE
        if not _can_be_put_right(error):
            raise
        return _fail(f"{error.strerror}{_about(error)}")
    return code


def _run(arguments: list[str]) -> int:
    parser = _parser()
    if not arguments:
        parser.print_help()
        return EXIT_USER_ERROR
    command = arguments[0]
    if command.startswith("-"):
        return _parse(parser, arguments)[1]
    command = command.replace("_", "-")  # the names of doors and modules have no hyphens
    if command not in COMMANDS:
        raise ConfigError(f"unknown command {command!r}; commands: {', '.join(COMMANDS)}{suggest(command, COMMANDS)}")
    module = importlib.import_module(f"segtrain.cli.{command.replace('-', '_')}")
    return _run_command(command, module, arguments[1:])


def _run_command(command: str, module: ModuleType, arguments: list[str]) -> int:
    description = (module.__doc__ or "").strip().splitlines()[0]
    parser = _Parser(prog=f"segtrain {command}", description=description, allow_abbrev=False)
    module.add_arguments(parser)
    args, code = _parse(parser, arguments)
    if args is None:
        return code
    result: int = module.run(args)
    return result


class _Parser(argparse.ArgumentParser):
    """An argparse parser whose errors are ours: one line, with the closest option where one is misspelt."""

    def error(self, message: str) -> NoReturn:
        """Raise ConfigError instead of printing the usage and exiting."""
        unknown, required = "unrecognized arguments: ", "the following arguments are required: "
        if message.startswith(unknown):
            words = message.removeprefix(unknown).split()
            message = f"unknown argument{'s' if len(words) > 1 else ''} {' '.join(words)}{self._hint(words[0])}"
        if message.startswith(required):  # argparse names those too of which there may be none
            free = {action.metavar or action.dest for action in self._actions if action.nargs == argparse.ZERO_OR_MORE}
            names = message.removeprefix(required).split(", ")
            message = required + ", ".join(name for name in names if name not in free)
        raise ConfigError(f"{message} (see: {self.prog} --help)")

    def _hint(self, word: str) -> str:
        """Return the option that an unknown one was meant to be, or how settings are given where it may be one."""
        actions = [action for parser in _with_subjects(self) for action in parser._actions]
        # without their hyphens, by which all options are alike
        names = {option.lstrip("-"): option for action in actions for option in action.option_strings}
        name = closest(word.partition("=")[0].lstrip("-"), names)
        if name is not None:
            return f"; did you mean {names[name]!r}?"
        takes_settings = any(action.dest == "overrides" and not action.option_strings for action in actions)
        return "; settings are given as key=value, such as train.epochs=5" if takes_settings else ""


def _parser() -> _Parser:
    width = max(len(name) for name in COMMANDS)
    lines = "\n".join(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items())
    parser = _Parser(
        prog="segtrain",
        usage="segtrain [--version] [--help] <command> ...",
        description="Semantic segmentation for data in which the classes that matter are rare.",
        epilog=f"commands:\n{lines}\n\nsegtrain <command> --help tells the arguments of a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"segtrain {__version__}")
    return parser


def _parse(parser: _Parser, arguments: list[str]) -> tuple[argparse.Namespace | None, int]:
    """Parse, with options and overrides in any order; None and an exit code where --help or --version answered."""
    # argparse cannot mix options into the arguments of a command that has subjects of its own.
    parse = parser.parse_intermixed_args if len(_with_subjects(parser)) == 1 else parser.parse_args
    try:
        return parse(arguments), 0
    except SystemExit as stop:
        return None, int(stop.code or 0)


def _with_subjects(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    """Return the parser and those of its subjects, as `benchmark losses` has them."""
    parsers = [parser]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            parsers += action.choices.values()
    return parsers


def _fail(message: str, *, code: int = EXIT_USER_ERROR) -> int:
    sys.stderr.write(f"{_rank_name()}error: {message}\n")
    return code


def _rank_name() -> str:
    """Return which of several processes under torchrun speaks; nothing where there is one."""
    several = os.environ.get("WORLD_SIZE", "1") != "1"
    return f"rank {os.environ['RANK']}: " if several and "RANK" in os.environ else ""


def _can_be_put_right(error: OSError) -> bool:
    """Whether the message says all: a disk that is full, or a file that is missing or may not be touched."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return error.filename is not None and error.errno in PLAIN_ERRORS


def _about(error: OSError) -> str:
    return f": {error.filename}" if error.filename is not None else ""


def _stdout_is_gone() -> bool:
    """Whether it is our own output that nobody reads; then it is closed for good, for the interpreter's last flush."""
    try:
        sys.stdout.write("\n")
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


if __name__ == "__main__":
    raise SystemExit(main())
