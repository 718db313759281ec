"""The terminal: one rich console, and progress that becomes plain lines where there is no terminal."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from segtrain.errors import SegtrainError

SECONDS_BETWEEN_PLAIN_LINES = 10.0
PROSE = ("warning: ", "note: ")
PROSE_COLUMNS = 80


def make_console(*, stderr: bool = False) -> Console:
    """Return a console on standard output (or error) that never guesses colours of numbers and paths.

    Without a terminal, tables have at least 120 columns. Messages go through `say`.
    """
    console = Console(stderr=stderr, highlight=False)
    if not console.is_terminal:
        console = Console(stderr=stderr, highlight=False, width=max(console.width, 120))
    return console


def say(console: Console, text: str, *, style: str | None = None) -> None:
    """Print text as it is: no markup, and no line breaks of rich's, so that commands and paths can be copied.

    Warnings and notes are prose: their lines are folded between words at 80 columns, in files as in terminals.
    """
    text = "\n".join(_folded(line) if line.startswith(PROSE) else line for line in text.split("\n"))
    console.print(text, style=style, markup=False, soft_wrap=True)


def _folded(line: str) -> str:
    """Break a line between words; a path or an override stays whole, even where it is longer than the line."""
    return textwrap.fill(line, PROSE_COLUMNS, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


@contextmanager
def held(console: Console) -> Iterator[None]:
    """Show what the block prints once it is done; where it ends in an error of the user's, that alone is shown."""
    capture = console.capture()
    try:
        with capture:
            yield
    except Exception as error:
        if not isinstance(error, SegtrainError):
            console.file.write(capture.get())
        raise
    console.file.write(capture.get())
    console.file.flush()


@contextmanager
def progress(description: str, total: int, *, console: Console | None = None) -> Iterator[Callable[[int], None]]:
    """Show how much of `total` is done; yields `advance(count)`.

    On a terminal this is a bar with the remaining time. Elsewhere it is a plain line every ten seconds,
    so that short jobs stay silent and logs stay readable.
    """
    console = console or make_console(stderr=True)
    if not console.is_terminal:
        yield _plain_lines(description, total, console)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(description, total=total)
        yield lambda count: bar.advance(task, count)


def _plain_lines(description: str, total: int, console: Console) -> Callable[[int], None]:
    done, last = 0, time.monotonic()

    def advance(count: int) -> None:
        nonlocal done, last
        done += count
        if time.monotonic() - last >= SECONDS_BETWEEN_PLAIN_LINES:
            last = time.monotonic()
            say(console, f"{description}: {done}/{total}")

    return advance
