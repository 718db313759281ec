"""The errors a user can cause, one tree, and the phrases that their messages share."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence

MAX_LINES = 20


class SegtrainError(Exception):
    """Base of every error that the command line answers with one message and exit code 2.

    The message says what was found, what was expected, where (file, key, line) and what to do next.
    """


class ConfigError(SegtrainError):
    """The configuration, or an argument of a command, is wrong."""


class DataError(SegtrainError):
    """Images, masks, lists or labels are missing, unreadable or contradictory."""


class CheckpointError(SegtrainError):
    """A checkpoint cannot be found, read, written or matched with the model."""


def suggest(word: str, known: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" for the closest of `known`, or nothing where none is close."""
    name = closest(word, known)
    return "" if name is None else f"; did you mean {name!r}?"


def closest(word: str, known: Iterable[str]) -> str | None:
    """Return what a misspelt word was probably meant to be; capitals and hyphens make no difference."""
    found = nearest(word, known, limit=1)
    return found[0] if found else None


def nearest(word: str, known: Iterable[str], *, limit: int, cutoff: float = 0.6) -> list[str]:
    """Return at most `limit` of `known` that are like `word`, the likest first, and equals as people count.

    Args:
        cutoff: how like they must be at least, 0 to 1 (`difflib.SequenceMatcher.ratio`); capitals and hyphens make no
            difference.
    """
    names = {_plain(name): name for name in known}
    matcher = difflib.SequenceMatcher(b=_plain(word))
    scores = {}
    for plain in difflib.get_close_matches(_plain(word), names, n=max(len(names), 1), cutoff=cutoff):
        matcher.set_seq1(plain)
        scores[plain] = matcher.ratio()
    ranked = sorted(scores, key=lambda plain: (-scores[plain], natural_key(plain)))
    return [names[plain] for plain in ranked[:limit]]


def _plain(name: str) -> str:
    return name.lower().replace("-", "_")


def natural_key(text: str) -> tuple[tuple[bool, int, str], ...]:
    """Return a key that sorts numbers in texts by value: resnet9 before resnet34."""
    parts = re.findall(r"\d+|\D+", text)
    return tuple((False, int(part), "") if part.isdecimal() else (True, 0, part) for part in parts)


def some(items: Sequence[object], *, limit: int) -> str:
    """Return at most `limit` items on one line, and the number of the others."""
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(map(str, items[:limit])) + more


def listing(head: str, items: Sequence[object]) -> str:
    """Return a head and, below it, a line for each of at most 20 items, and the number of the others."""
    more = [f"  ... and {len(items) - MAX_LINES} more"] if len(items) > MAX_LINES else []
    return "\n".join([head, *(f"  {item}" for item in items[:MAX_LINES]), *more])
