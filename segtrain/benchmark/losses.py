"""The benchmark of the losses: every subject on every case, as one record in JSON types."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch

from segtrain.benchmark import memory
from segtrain.benchmark.bandwidth import copy_bytes_per_second, limit_ratio
from segtrain.benchmark.cases import Case, CaseInputs, as_target, make_inputs
from segtrain.benchmark.environment import describe_environment
from segtrain.benchmark.subjects import BASELINE, HEADLINE, SUBJECTS, Subject
from segtrain.benchmark.threads import torch_threads
from segtrain.benchmark.timing import Timing, paired_ratio, time_interleaved
from segtrain.errors import ConfigError, SegtrainError, suggest

GROUPS_OF_OTHERS = ("plain", "others")


@dataclass(frozen=True)
class LossSettings:
    """What to measure.

    Attributes:
        cases: the inputs; all on one device.
        subjects: names in SUBJECTS; the baseline is measured in any case.
        rounds: of timing; slow subjects take part in fewer (see `max_seconds`), 3 at least.
        max_seconds: of timing for one subject on one case.
        threads: of torch; None leaves them.
        memory: whether to measure peak memory too.
    """

    cases: tuple[Case, ...]
    subjects: tuple[str, ...] = tuple(SUBJECTS)
    rounds: int = 15
    max_seconds: float = 20.0
    threads: int | None = None
    memory: bool = True


def choose_subjects(only: Sequence[str] | None = None, *, others: bool = True) -> tuple[str, ...]:
    """Return the names of SUBJECTS to measure, in their order there.

    Args:
        only: these alone (and the baseline).
        others: False leaves out the plain forms and the other libraries.

    Raises:
        ConfigError: a name that is not in SUBJECTS.
    """
    for name in only or ():
        if name not in SUBJECTS:
            raise ConfigError(f"unknown loss {name!r}; known: {', '.join(SUBJECTS)}{suggest(name, SUBJECTS)}")
    return tuple(
        name
        for name, subject in SUBJECTS.items()
        if name == BASELINE or ((only is None or name in only) and (others or subject.group not in GROUPS_OF_OTHERS))
    )


def benchmark_losses(settings: LossSettings, *, tell: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """Measure forward + backward of every subject on every case; return all figures in JSON types.

    On the CPU memory is measured in processes of their own, so a script that calls this needs the usual
    `if __name__ == "__main__":`.

    Args:
        tell: hears what is measured next.

    Raises:
        SegtrainError: a loss of ours cannot be measured. Others that cannot get a row that says why.
    """
    device = settings.cases[0].device
    with torch_threads(settings.threads), torch.cuda.device(device) if device.startswith("cuda") else nullcontext():
        environment = describe_environment(device)
        cases = [_measure_case(case, settings, tell) for case in settings.cases]
    return {
        "benchmark": "losses",
        "environment": environment,
        "baseline": BASELINE,
        "headline": HEADLINE,
        "rounds": settings.rounds,
        "cases": cases,
    }


def measure_memory(job: tuple[str, Case, int]) -> int:
    """Return the peak extra bytes of forward + backward of the subject (by name), with so many threads.

    The gradient of the logits counts. A tiny call comes first, for what torch loads once; of the two full calls after
    it the second sees what the loss keeps of the first. A compiled subject gets one full call before, to compile.
    """
    name, case, threads = job
    torch.set_num_threads(threads)
    subject = SUBJECTS[name]
    loss = subject.make(case)
    if not subject.compiled:
        tiny = case.tiny()
        _call(subject, tiny, make_inputs(tiny), loss)()
    inputs = make_inputs(case)
    call = _call(subject, case, inputs, loss)
    if subject.compiled:
        call()
        inputs.logits.grad = None

    def twice() -> None:
        call()
        inputs.logits.grad = None
        call()

    if case.device.startswith("cuda"):
        return memory.cuda_peak(twice, device=case.device)
    return memory.resident_peak(twice)


def _measure_case(case: Case, settings: LossSettings, tell: Callable[[str], None]) -> dict[str, Any]:
    tell(case.title())
    problems = {name: SUBJECTS[name].missing(case.device) for name in settings.subjects}
    peaks: dict[str, int] = {}
    if settings.memory and (case.device.startswith("cuda") or memory.has_resident_peak()):
        tell(f"  memory: {len(_measurable(problems))} losses")
        for name in _measurable(problems):
            problems[name] = _try(name, lambda name=name: peaks.update({name: _peak(name, case)}))  # type: ignore[misc]
    inputs = make_inputs(case)
    calls = {}
    for name in _measurable(problems):
        subject = SUBJECTS[name]
        tiny = case.tiny()
        loss = subject.make(case)
        if not subject.compiled:  # its first shape must be the full one
            problems[name] = _try(name, _call(subject, tiny, make_inputs(tiny), loss))
        if problems[name] is None:
            calls[name] = _call(subject, case, inputs, loss)
    tell(f"  time: {len(calls)} losses, {settings.rounds} rounds")

    def reset() -> None:
        inputs.logits.grad = None

    timings = time_interleaved(
        calls,
        baseline=BASELINE,
        rounds=settings.rounds,
        max_seconds=settings.max_seconds,
        device=case.device,
        reset=reset,
    )
    rows = [_row(name, case, problems[name], peaks.get(name), timings) for name in settings.subjects]
    record = {**asdict(case), "title": case.title(), "logits_bytes": case.logits_bytes, "losses": rows}
    if case.device.startswith("cuda"):
        speed = copy_bytes_per_second(case.logits_bytes, device=case.device)
        record["copy_bytes_per_second"] = speed
        limit_bytes = least_bytes(case.logits_bytes, inputs.target.nbytes)
        for row in rows:
            if row["group"] == "segtrain":
                row["limit_bytes"] = limit_bytes
                row["of_limit"] = limit_ratio(row["seconds"], limit_bytes, bytes_per_second=speed)
    return record


def least_bytes(logits_bytes: int, target_bytes: int) -> int:
    """Return what forward and backward must move: the logits read twice and their gradient written, targets twice."""
    return 3 * logits_bytes + 2 * target_bytes


def _row(name: str, case: Case, problem: str | None, peak: int | None, timings: dict[str, Timing]) -> dict[str, Any]:
    subject = SUBJECTS[name]
    row: dict[str, Any] = {"name": name, "label": subject.label, "group": subject.group, "target": subject.target}
    row |= {"problem": problem, "time": None, "cpu_time": None, "memory": None}
    row |= {"peak_bytes": peak} | asdict(timings.get(name, Timing()))
    if peak is not None:
        row["memory"] = peak / case.logits_bytes
    if name not in timings:
        return row
    timing, base = timings[name], timings[BASELINE]
    time = paired_ratio(timing.rounds, timing.seconds, base.rounds, base.seconds)
    cpu_time = paired_ratio(timing.rounds, timing.cpu_seconds, base.rounds, base.cpu_seconds)
    row["time"] = None if time is None else asdict(time)
    row["cpu_time"] = None if cpu_time is None else asdict(cpu_time)
    return row


def _call(subject: Subject, case: Case, inputs: CaseInputs, loss: Callable[..., torch.Tensor]) -> Callable[[], None]:
    target = as_target(inputs, subject.target, ignore_index=case.ignore_index)
    return lambda: loss(inputs.logits, target).backward()  # type: ignore[no-untyped-call]


def _peak(name: str, case: Case) -> int:
    job = (name, case, torch.get_num_threads())
    return measure_memory(job) if case.device.startswith("cuda") else memory.in_child(measure_memory, job)


def _measurable(problems: dict[str, str | None]) -> list[str]:
    return [name for name, problem in problems.items() if problem is None]


def _try(name: str, measure: Callable[[], None]) -> str | None:
    """Measure; what goes wrong in a loss that is not ours (a type that it does not take, say) is told, not raised."""
    try:
        measure()
    except (RuntimeError, TypeError, ValueError, SegtrainError) as error:
        if SUBJECTS[name].group not in GROUPS_OF_OTHERS:
            raise
        return f"{error}".strip().splitlines()[0]
    return None
