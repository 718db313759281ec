"""What a check of a loss found, as an object, as text of 80 columns and as Markdown."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import Literal

from segtrain.testing.properties import Kind, Property

Outcome = Literal["holds", "fails", "differs", "not applicable"]
WIDTH = 80
SHORT: dict[Outcome, str] = {"holds": "holds", "fails": "FAILS", "differs": "differs", "not applicable": "n/a"}
MARKS: dict[Outcome, str] = {"holds": "✓", "fails": "✗", "differs": "○", "not applicable": "–"}
INDENT = " " * 9


@dataclass(frozen=True)
class Result:
    """One property and what was found: `fails` is said of requirements alone, `differs` of conventions alone."""

    rule: Property
    outcome: Outcome
    evidence: str

    @property
    def name(self) -> str:
        """The name of the property."""
        return self.rule.name

    @property
    def words(self) -> str:
        """The name as words."""
        return self.name.replace("_", " ")


@dataclass(frozen=True)
class LossReport:
    """All results for one loss. True, as `ok` is, when no requirement fails."""

    name: str
    results: tuple[Result, ...]

    @property
    def failures(self) -> tuple[Result, ...]:
        """The requirements that fail."""
        return tuple(result for result in self.results if result.outcome == "fails")

    @property
    def differences(self) -> tuple[Result, ...]:
        """The conventions that this loss does not share: facts, not faults."""
        return tuple(result for result in self.results if result.outcome == "differs")

    @property
    def ok(self) -> bool:
        """Whether no requirement fails."""
        return not self.failures

    def __bool__(self) -> bool:
        return self.ok

    def __getitem__(self, name: str) -> Result:
        """Return the result of the property of this name.

        Raises:
            KeyError: it was not checked.
        """
        for result in self.results:
            if result.name == name:
                return result
        raise KeyError(name)

    def __str__(self) -> str:
        return self.table()

    def table(self) -> str:
        """Return plain text of at most 80 columns: each property with its evidence, then why the failures matter."""
        lines = textwrap.wrap(f"{self.name}: {self._summary()}", WIDTH, subsequent_indent="  ")
        for kind, head in (("requirement", "Requirements"), ("convention", "Conventions (facts, not faults)")):
            found = [result for result in self.results if result.rule.kind == kind]
            lines += ["", head, *_rows(found)] if found else []
        if self.failures:
            lines += ["", "Why the failures matter"]
            for result in self.failures:
                lines += textwrap.wrap(f"- {result.words}: {result.rule.why}.", WIDTH, subsequent_indent="  ")
        return "\n".join(lines)

    def to_markdown(self) -> str:
        """Return a Markdown table of the results, under a heading."""
        lines = [
            f"### {self.name}",
            "",
            f"{self._summary()}.",
            "",
            "| | property | kind | evidence |",
            "|---|---|---|---|",
        ]
        lines += [
            f"| {MARKS[r.outcome]} | {r.words} | {r.rule.kind} | {r.evidence.replace('|', '/')} |" for r in self.results
        ]
        return "\n".join(lines) + "\n"

    def _summary(self) -> str:
        required = [r for r in self.results if r.rule.kind == "requirement" and r.outcome != "not applicable"]
        text = f"{len(required) - len(self.failures)} of {len(required)} requirements hold"
        skipped = sum(result.outcome == "not applicable" for result in self.results)
        return text + (f"; not applicable: {skipped}" if skipped else "")


def kind_of_miss(kind: Kind) -> Outcome:
    """Return what it is called when a property of this kind does not hold."""
    return "fails" if kind == "requirement" else "differs"


def _rows(results: list[Result]) -> list[str]:
    lines = []
    for result in results:
        lines.append(f"{SHORT[result.outcome]:<9}{result.words}")
        lines += textwrap.wrap(
            result.evidence, WIDTH, initial_indent=INDENT + "  ", subsequent_indent=INDENT + "  ", break_long_words=True
        )
    return lines
