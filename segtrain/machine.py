"""What this process may use of the machine."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def usable_cores() -> int:
    """Return the number of cores that this process may run on: containers and job schedulers grant fewer than all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available_memory() -> int:
    """Return the bytes of RAM that this process may still take: of the machine, or less in a container."""
    return min(_machine_memory(Path("/proc/meminfo")), _cgroup_memory(Path("/sys/fs/cgroup")))


def _machine_memory(path: Path) -> int:
    with suppress(OSError):
        for line in path.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _cgroup_memory(folder: Path) -> int:
    """What is left of the limit of a container (cgroup v2); without one more than any machine has."""
    with suppress(OSError, ValueError):
        limit = int((folder / "memory.max").read_text())
        return limit - int((folder / "memory.current").read_text())
    return 2**63
