"""The benchmark of the confusion matrix: every way to it on every case, as one record in JSON types."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from segtrain.benchmark import memory
from segtrain.benchmark.bandwidth import copy_bytes_per_second, limit_ratio
from segtrain.benchmark.cases import Case, CaseInputs, make_inputs
from segtrain.benchmark.confusion_subjects import CONFUSION_SUBJECTS, TORCHMETRICS
from segtrain.benchmark.environment import describe_environment
from segtrain.benchmark.threads import torch_threads
from segtrain.benchmark.timing import Timing, paired_ratio, time_interleaved
from segtrain.errors import SegtrainError


@dataclass(frozen=True)
class ConfusionSettings:
    """What to measure: cases (all on one device), rounds of timing, threads of torch (None leaves them), memory."""

    cases: tuple[Case, ...]
    rounds: int = 15
    max_seconds: float = 20.0
    threads: int | None = None
    memory: bool = True


def benchmark_confusion(
    settings: ConfusionSettings, *, tell: Callable[[str], None] = lambda text: None
) -> dict[str, Any]:
    """Measure every way on every case; return all figures in JSON types.

    Ratios are to torchmetrics from logits, or to torch's operators where it is not installed. As for the losses, on
    the CPU memory is measured in processes of their own.

    Raises:
        SegtrainError: ours cannot be measured. Others that cannot get a row that says why.
    """
    device = settings.cases[0].device
    with torch_threads(settings.threads), torch.cuda.device(device) if device.startswith("cuda") else nullcontext():
        environment = describe_environment(device)
        cases = [_measure_case(case, settings, tell) for case in settings.cases]
    return {"benchmark": "confusion", "environment": environment, "rounds": settings.rounds, "cases": cases}


def measure_confusion_memory(job: tuple[str, Case, int]) -> int:
    """Return the peak extra bytes of the subject (by name) on the case, with so many threads, after a tiny call."""
    name, case, threads = job
    torch.set_num_threads(threads)
    _call(name, case.tiny(), make_inputs(case.tiny()))()
    call = _call(name, case, make_inputs(case))
    if case.device.startswith("cuda"):
        return memory.cuda_peak(call, device=case.device)
    return memory.resident_peak(call)


def bytes_to_move(case: Case, values: Tensor, target: Tensor) -> int:
    """Return the bytes that must be read to count a batch once: the values and the target; the matrix is nothing."""
    return values.nbytes + target.nbytes


def _measure_case(case: Case, settings: ConfusionSettings, tell: Callable[[str], None]) -> dict[str, Any]:
    tell(case.title())
    problems = {name: subject.missing() for name, subject in CONFUSION_SUBJECTS.items()}
    peaks: dict[str, int] = {}
    if settings.memory and (case.device.startswith("cuda") or memory.has_resident_peak()):
        for name in [name for name, problem in problems.items() if problem is None]:
            problems[name] = _try(name, lambda name=name: peaks.update({name: _peak(name, case)}))  # type: ignore[misc]
    inputs = make_inputs(case)
    calls, sizes = {}, {}
    for name in [name for name, problem in problems.items() if problem is None]:
        problems[name] = _try(name, _call(name, case.tiny(), make_inputs(case.tiny())))
        if problems[name] is None:
            calls[name] = _call(name, case, inputs)
            sizes[name] = bytes_to_move(case, CONFUSION_SUBJECTS[name].values(case, inputs), inputs.target)
    baseline = TORCHMETRICS if TORCHMETRICS in calls else "torch"
    timings = time_interleaved(
        calls, baseline=baseline, rounds=settings.rounds, max_seconds=settings.max_seconds, device=case.device
    )
    speed = copy_bytes_per_second(case.logits_bytes, device=case.device)
    rows = [
        _row(name, problems[name], peaks.get(name), timings, baseline=baseline, size=sizes.get(name, 0), speed=speed)
        for name in CONFUSION_SUBJECTS
    ]
    record = {"title": case.title(), "logits_bytes": case.logits_bytes, "copy_bytes_per_second": speed}
    return {**asdict(case), **record, "baseline": baseline, "rows": rows}


def _row(
    name: str,
    problem: str | None,
    peak: int | None,
    timings: dict[str, Timing],
    *,
    baseline: str,
    size: int,
    speed: float,
) -> dict[str, Any]:
    timing, base = timings.get(name, Timing()), timings[baseline]
    time = paired_ratio(timing.rounds, timing.seconds, base.rounds, base.seconds)
    cpu_time = paired_ratio(timing.rounds, timing.cpu_seconds, base.rounds, base.cpu_seconds)
    faster = paired_ratio(base.rounds, base.seconds, timing.rounds, timing.seconds)
    return {
        "name": name,
        "label": CONFUSION_SUBJECTS[name].label,
        "problem": problem,
        "time": None if time is None else asdict(time),
        "cpu_time": None if cpu_time is None else asdict(cpu_time),
        "faster": None if faster is None else asdict(faster),
        "of_limit": limit_ratio(timing.seconds, size, bytes_per_second=speed),
        "bytes": size,
        "peak_bytes": peak,
        **asdict(timing),
    }


def _call(name: str, case: Case, inputs: CaseInputs) -> Callable[[], object]:
    subject = CONFUSION_SUBJECTS[name]
    update, values = subject.make(case), subject.values(case, inputs)
    return lambda: update(values, inputs.target)


def _peak(name: str, case: Case) -> int:
    job = (name, case, torch.get_num_threads())
    if case.device.startswith("cuda"):
        return measure_confusion_memory(job)
    return memory.in_child(measure_confusion_memory, job)


def _try(name: str, measure: Callable[[], object]) -> str | None:
    """Measure; what goes wrong in a way that is not ours is told, not raised."""
    try:
        measure()
    except (RuntimeError, TypeError, ValueError, SegtrainError) as error:
        if CONFUSION_SUBJECTS[name].is_ours:
            raise
        return f"{error}".strip().splitlines()[0]
    return None
