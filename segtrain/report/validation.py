"""A validation in words for a terminal: counts by kind, then each kind with its first files, in 80 columns."""

from __future__ import annotations

from collections.abc import Iterator
from textwrap import wrap

from segtrain.data.validation import Finding, Severity, Validation
from segtrain.data.validation.findings import Entry

INDENT = "  "


def validation_lines(result: Validation, *, width: int, num_files: int) -> Iterator[str]:
    """Yield the lines: each finding with at most `num_files` of its files. Paths are never broken."""
    held = ", ".join(f"{split} {len(scan.samples):,}" for split, scan in result.scans.items())
    yield f"good samples: {held or 'none'}"
    if result.threshold is not None:
        plain = f"; {result.num_plain:,} without detail were not" if result.num_plain else ""
        yield f"images of different splits compared, up to {result.threshold} bits{plain}"
    for finding in result.findings:
        yield ""
        yield from _finding_lines(finding, width=width, num_files=num_files)


def verdict(result: Validation, failing: list[Finding]) -> str:
    """One last line: what was found in all, and what of it makes the exit code 1."""
    count = {severity: sum(one.severity is severity for one in result.findings) for severity in Severity}
    if not result.findings:
        return "OK: nothing found"
    told = ", ".join(
        f"{number} kind{'s' if number > 1 else ''} of {severity.value}{'s' if number > 1 else ''}"
        for severity, number in count.items()
        if number
    )
    return f"{told}; failing: {', '.join(one.kind for one in failing) or 'none'}"


def _finding_lines(finding: Finding, *, width: int, num_files: int) -> Iterator[str]:
    yield f"{finding.severity.value.upper()} {finding.kind}: {finding.title}, {finding.count:,}"
    for note in finding.notes:
        yield from _wrapped(note, INDENT, width)
    for entry in finding.entries[:num_files]:
        yield from _entry_lines(entry, width)
    if len(finding.entries) > num_files:
        yield f"{INDENT}and {len(finding.entries) - num_files:,} more (all of them: --json FILE, or --files N)"
    if finding.advice:
        yield from _wrapped(f"-> {finding.advice}", INDENT, width)


def _entry_lines(entry: Entry, width: int) -> Iterator[str]:
    if entry.other is not None:
        yield f"{INDENT}{entry.file}"
        yield f"{INDENT}{INDENT}{entry.other} ({entry.distance} bits)"
        return
    yield f"{INDENT}{entry.file or entry.split}"
    if entry.detail:
        yield from _wrapped(entry.detail, INDENT + INDENT, width)


def _wrapped(text: str, indent: str, width: int) -> list[str]:
    return [
        line
        for paragraph in text.splitlines()
        for line in wrap(
            paragraph,
            width,
            initial_indent=indent,
            subsequent_indent=indent + "  ",
            break_long_words=False,
            break_on_hyphens=False,
        )
    ]
