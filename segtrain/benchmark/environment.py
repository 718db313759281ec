"""What the figures were measured with: device, threads, versions, allocator, and how busy the machine was."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from segtrain.machine import usable_cores

PACKAGES = ("segtrain", "torch", "segmentation-models-pytorch", "monai", "torchmetrics")
ALLOCATOR_VARIABLES = ("GLIBC_TUNABLES", "LD_PRELOAD", "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")


def describe_environment(device: str) -> dict[str, Any]:
    """Return the environment in JSON types; call it before the measurement, for the load average."""
    return {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device,
        "device_name": device_name(device),
        "threads": torch.get_num_threads(),
        "cores": usable_cores(),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "packages": {name: version for name in PACKAGES if (version := _version(name)) is not None},
        "allocator": allocator_settings(),
    }


def allocator_settings() -> dict[str, str]:
    """Return the environment variables that change how memory is allocated: MALLOC_*_ of glibc and the like."""
    chosen = {name for name in os.environ if name.startswith("MALLOC_")} | set(ALLOCATOR_VARIABLES)
    return {name: os.environ[name] for name in sorted(chosen) if os.environ.get(name)}


def environment_lines(environment: dict[str, Any]) -> list[str]:
    """Return the header of the report."""
    packages = ", ".join(f"{name} {version}" for name, version in environment["packages"].items() if name != "segtrain")
    settings = " ".join(f"{name}={value}" for name, value in environment["allocator"].items())
    threads, cores, load = environment["threads"], environment["cores"], environment["load_average"]
    return [
        f"{environment['device']}: {environment['device_name']}",
        f"{threads} thread{'s' if threads != 1 else ''} of torch on {cores} usable core{'s' if cores != 1 else ''}; "
        + ("load average unknown" if load is None else f"load average {load:.2f} before the start"),
        f"{packages}; Python {environment['python']}",
        f"allocator: {settings or 'as the system has it (no MALLOC_* variable)'}",
    ]


def busy_warning(environment: dict[str, Any]) -> str | None:
    """Say that other processes were running when the measurement began, or None."""
    load, cores = environment["load_average"], environment["cores"]
    if load is None or (load <= cores / 4 and load + environment["threads"] <= cores + 0.5):
        return None
    return (
        f"warning: the machine was busy (load average {load:.2f} on {cores} usable cores): times are not to be "
        "trusted, CPU-time ratios a little more; end other work, wait a minute, and measure again"
    )


def device_name(device: str) -> str:
    """Return the model of the processor, or of the CUDA device with the version of CUDA."""
    if device.startswith("cuda"):
        return f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"
    return cpu_name()


def cpu_name() -> str:
    """Return the model name of the processor, as far as the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
