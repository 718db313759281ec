"""The command `doctor`: check versions, devices, disk and shared memory, and say what to do about problems."""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from segtrain.machine import usable_cores

GIB = 2**30
MIN_DISK_GIB = 2
MIN_SHARED_GIB = 1
CV2_BUILDS = ("opencv-python", "opencv-contrib-python", "opencv-python-headless", "opencv-contrib-python-headless")


@dataclass(frozen=True)
class Finding:
    """One line of the report; `problem` says what to do when something is wrong."""

    subject: str
    found: str
    problem: str | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--folder", type=Path, default=Path(), help="where runs are to be written; default: here")


def run(args: argparse.Namespace) -> int:
    """Print the report; return 0, or 1 when there are problems."""
    findings = [*check_packages(), *check_devices(), *check_cores(), *check_disk(args.folder), *check_shared_memory()]
    return report(findings)


def report(findings: Iterable[Finding]) -> int:
    """Print the findings, then the problems or OK; return 0, or 1 when there are problems."""
    findings = list(findings)
    width = max(len(finding.subject) for finding in findings)
    for finding in findings:
        mark = " " if finding.problem is None else "!"
        sys.stdout.write(f"{mark} {finding.subject:<{width}}  {finding.found}\n")
    problems = [finding for finding in findings if finding.problem is not None]
    for finding in problems:
        sys.stdout.write(f"problem: {finding.subject}: {finding.problem}\n")
    sys.stdout.write("OK\n" if not problems else f"{len(problems)} problem{'s' if len(problems) > 1 else ''}\n")
    return 1 if problems else 0


def check_packages() -> list[Finding]:
    """Report Python and the packages that the results depend on, as far as they can be found."""
    findings = [Finding("python", f"{platform.python_version()} on {platform.platform()}")]
    for name in ("segtrain", "torch", "segmentation-models-pytorch", "albumentations", "numpy", "pydantic"):
        version = _version(name)
        problem = None if version else "not installed; run: pip install -e ."
        findings.append(Finding(name, version or "missing", problem))
    findings.append(check_cv2_builds({name: version for name in CV2_BUILDS if (version := _version(name))}))
    return findings


def check_cv2_builds(builds: dict[str, str]) -> Finding:
    """Two builds of OpenCV overwrite each other's files: exactly one may be installed."""
    found = ", ".join(f"{name} {version}" for name, version in builds.items()) or "missing"
    if not builds:
        return Finding("opencv", found, "not installed; run: pip install opencv-python-headless")
    if len(builds) > 1:
        advice = f"builds overwrite each other; run: pip uninstall -y {' '.join(builds)}; "
        return Finding("opencv", found, advice + "pip install opencv-python-headless")
    return Finding("opencv", found)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def check_devices() -> list[Finding]:
    """Report the CUDA devices, and a CUDA build of torch that finds none where a driver is present."""
    try:
        import torch
    except (ImportError, OSError) as error:
        return [Finding("torch import", "fails", str(error))]
    built = torch.version.cuda
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        devices = ", ".join(f"{device.name} ({device.total_memory / GIB:.0f} GiB)" for device in names)
        return [Finding("cuda", f"{built}: {devices}")]
    driver = Path("/proc/driver/nvidia/version").exists()
    problem = "a driver is present, but torch sees no device: check CUDA_VISIBLE_DEVICES and torch's CUDA version"
    found = f"no device (torch is built for {f'CUDA {built}' if built else 'the CPU'})"
    return [Finding("cuda", found, problem if driver else None)]


def check_cores() -> list[Finding]:
    """Report the cores that this process may use: what data.workers should not exceed."""
    return [Finding("cores", f"{usable_cores()} usable of {os.cpu_count()}")]


def check_disk(folder: Path) -> list[Finding]:
    """Report free space and write access where runs are to go."""
    folder = folder.resolve()
    existing = next(path for path in (folder, *folder.parents) if path.is_dir())
    free = shutil.disk_usage(existing).free / GIB
    problem = f"below {MIN_DISK_GIB} GiB: checkpoints may not fit" if free < MIN_DISK_GIB else None
    findings = [Finding("disk", f"{free:.1f} GiB free in {existing}", problem)]
    try:
        with tempfile.TemporaryFile(dir=existing):
            findings.append(Finding("write access", f"yes, in {existing}"))
    except OSError as error:
        findings.append(
            Finding("write access", f"no, in {existing}", f"{error.strerror}: choose another output folder")
        )
    return findings


def check_shared_memory(folder: Path = Path("/dev/shm")) -> list[Finding]:
    """Report the shared memory through which loader workers send batches."""
    if not folder.is_dir():
        return []
    total = shutil.disk_usage(folder).total / GIB
    advice = f"below {MIN_SHARED_GIB} GiB: start the container with --shm-size=2g, or train with data.workers=0"
    return [Finding("shared memory", f"{total:.2f} GiB in {folder}", advice if total < MIN_SHARED_GIB else None)]
