"""The page that compares the losses of four libraries, property by property, made by running them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from segtrain.testing.check import check_loss
from segtrain.testing.libraries import NUM_CLASSES, Subject, subjects, versions
from segtrain.testing.numbers import number_tables
from segtrain.testing.properties import PROPERTIES, Kind
from segtrain.testing.report import MARKS, LossReport

COMMAND = "python -m segtrain.testing > docs/divergence.md"
HEAD = """\
# What losses do: torch, smp, MONAI and segtrain

Losses of one name differ from library to library. This page says in what, by running each of them on the same small
batches. It is made by

    {command}

with {versions}, on the CPU. The same checks run on any loss of yours:

    from segtrain.testing import check_loss
    print(check_loss(my_loss, num_classes=4, ignore_index=255).table())

A *requirement* is what any loss should meet: where it fails, numbers are wrong or training stops. A *convention* is a
choice that sound losses make differently, often stated in their documentation: it is good to know which one you train
with. Every library here is good at what it was made for; several of these losses were written for batches in which
every class occurs and every pixel is labelled, and there those of one formula agree.

| mark | meaning |
|---|---|
| ✓ | holds |
| ✗ | a requirement that does not hold |
| ○ | a convention that this loss does not share |
| – | does not apply: no `ignore_index`, no class weights, or the input is refused with an error |
"""
ADAPTERS = """\
With the defaults of the library, and `target` int64 `[N, H, W]`, `logits` `[N, 4, H, W]`. MONAI's losses take the
target as `[N, 1, H, W]` and make it one-hot themselves; those without an `ignore_index` were called on labelled pixels
only. smp's SoftCrossEntropyLoss needs a `smooth_factor`. Class weights were given as `weight` (torch, MONAI),
`class_weights` (smp) or `class_weights: {scheme: manual}` (segtrain). The float16 rows are about the kernels of a CPU:
those of a GPU may accumulate in float32.
"""
LEGEND = {"requirement": "Requirements", "convention": "Conventions"}


def divergence_page() -> str:
    """Return the Markdown page; takes about half a minute.

    Raises:
        ConfigError: MONAI is not installed.
    """
    named = ", ".join(f"{library} {number}" for library, number in versions().items())
    found = [(subject, report_of(subject)) for subject in subjects()]
    parts = [HEAD.format(command=COMMAND, versions=named)]
    for kind in ("requirement", "convention"):
        parts += [f"## {LEGEND[kind]}\n"]
        for library in _libraries(found):
            parts.append(_table(kind, [pair for pair in found if pair[0].library == library]))
    parts += ["## The numbers behind the marks\n", *(_evidence(*pair) for pair in found if _missed(pair[1]))]
    parts += [number_tables(), "## What the properties say\n", "\n".join(_explanations()) + "\n"]
    parts += ["## How each loss was called\n", ADAPTERS]
    parts.append("\n".join(f"- {subject.library} {subject.name}: `{subject.call}`" for subject, _ in found) + "\n")
    return "\n".join(parts).rstrip() + "\n"


def report_of(subject: Subject) -> LossReport:
    """Check one loss of a library."""
    return check_loss(
        subject.loss(),
        num_classes=NUM_CLASSES,
        ignore_index=subject.ignore_index,
        for_classes=subject.for_classes,
        weighted=subject.weighted if subject.takes_weights else None,
        name=f"{subject.library} {subject.name}",
    )


def verdicts(page: str) -> list[str]:
    """Return the rows of a page that hold marks and no measured numbers."""
    marks = set(MARKS.values())
    return [line for line in page.splitlines() if line.startswith("|") and line.strip("| ").split(" | ")[-1] in marks]


def _libraries(found: Sequence[tuple[Subject, LossReport]]) -> list[str]:
    return list(dict.fromkeys(subject.library for subject, _ in found))


def _table(kind: Kind, found: Sequence[tuple[Subject, LossReport]]) -> str:
    heads = [subject.name for subject, _ in found]
    lines = [f"| {found[0][0].library} | " + " | ".join(heads) + " |", "|---|" + "---|" * len(heads)]
    for prop in PROPERTIES:
        if prop.kind == kind:
            marks = [MARKS[report[prop.name].outcome] for _, report in found]
            lines.append(f"| {prop.name.replace('_', ' ')} | " + " | ".join(marks) + " |")
    return "\n".join(lines) + "\n"


def _missed(report: LossReport) -> bool:
    return bool(report.failures or report.differences)


def _evidence(subject: Subject, report: LossReport) -> str:
    lines = [f"**{subject.library} {subject.name}**\n"]
    lines += [
        f"- {MARKS[result.outcome]} {result.words}: {result.evidence}"
        for result in (*report.failures, *report.differences)
    ]
    return "\n".join(lines) + "\n"


def _explanations() -> Iterator[str]:
    for prop in PROPERTIES:
        text = " ".join((prop.check.__doc__ or "").split())
        yield f"- **{prop.name.replace('_', ' ')}** ({prop.kind}). {text} Where not: {prop.why}."
