"""Peak extra memory of a call: the allocator's on CUDA, the process's resident pages on the CPU."""

from __future__ import annotations

import ctypes
import gc
import mmap
import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TypeVar

import torch

from segtrain.errors import SegtrainError

Argument = TypeVar("Argument")

STATUS = Path("/proc/self/status")
MALLOC_PARAMETERS = {-3: 2**16, -4: 2**20, -1: 2**17}  # M_MMAP_THRESHOLD, M_MMAP_MAX, M_TRIM_THRESHOLD of malloc.h
SLACK = 2**20  # by which the ballast goes over the old peak, since the kernel counts pages in small batches


class ChildDied(SegtrainError):
    """The process that a measurement ran in was ended from outside, for want of memory most likely."""


def has_resident_peak() -> bool:
    """Whether this system tells a process's peak of resident memory (Linux does)."""
    return STATUS.is_file() and "VmHWM" in STATUS.read_text(encoding="ascii")


def cuda_peak(call: Callable[[], object], *, device: str) -> int:
    """Return the bytes that the call adds at its peak to what is allocated on the device before it."""
    gc.collect()
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def resident_peak(call: Callable[[], object]) -> int:
    """Return the bytes of resident memory that the call adds at its peak to what the process holds before it.

    The kernel keeps the highest count of resident pages (VmHWM). Ballast first lifts the present count to that mark,
    so that every page more moves it. glibc is told to give each block of 64 KiB and more pages of its own, for the rest
    of the process: then the count is what the call holds, not what the allocator keeps of what was freed. Exact to
    about a megabyte: measure tensors well above that, in a process that does nothing else (see `in_child`).
    """
    gc.collect()
    _keep_no_free_pages()
    with _ballast(max(_status("VmHWM") - _status("VmRSS"), 0) + SLACK):
        before = _status("VmRSS")
        call()
        return max(_status("VmHWM") - before, 0)


def in_child(measure: Callable[[Argument], int], argument: Argument) -> int:
    """Run a measurement in a process of its own, in which nothing has been allocated or freed before.

    The process is forked from a server that has imported torch and run nothing. `measure` must be importable by name.

    Raises:
        ChildDied: it was ended by a signal.
        SegtrainError: it raised; the message is its error.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["segtrain.benchmark.subjects"])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sender, measure, argument))
    process.start()
    sender.close()
    try:
        answer: int | str = receiver.recv()
    except EOFError:
        process.join()
        raise ChildDied(f"its process ended with code {process.exitcode}: out of memory?") from None
    finally:
        process.join()
        receiver.close()
    if isinstance(answer, str):
        raise SegtrainError(answer)
    return answer


def _send(sender: Connection, measure: Callable[[Argument], int], argument: Argument) -> None:
    try:
        sender.send(measure(argument))
    except Exception as error:  # whatever it is: told in the parent, under the name of its subject
        sender.send(f"{type(error).__name__}: {error}".splitlines()[0])


@contextmanager
def _ballast(num_bytes: int) -> Iterator[None]:
    with mmap.mmap(-1, num_bytes) as pages:
        step = mmap.PAGESIZE
        pages[::step] = bytes(len(range(0, num_bytes, step)))
        yield


def _status(key: str) -> int:
    """Read a field of this process's status in bytes."""
    for line in STATUS.read_text(encoding="ascii").splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise SegtrainError(f"{STATUS} has no {key}: peak memory on the CPU is measured on Linux only.")


def _keep_no_free_pages() -> None:
    """Settle glibc's allocator; others are left as they are."""
    libc = ctypes.CDLL(None)
    if not (hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim")):
        return
    for parameter, value in MALLOC_PARAMETERS.items():
        libc.mallopt(parameter, value)
    libc.malloc_trim(0)
