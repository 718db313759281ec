"""Compile the Triton kernels of the class sums for a GPU that need not be there; a script, started by a test.

`python compile_class_sums.py ARCHITECTURE quick|all`: the operators run on CPU tensors with every launch turned into
a compilation to machine code, so that what is compiled is what they launch, specialisation and all. Prints a line for
each kernel: its seconds of compilation, registers, bytes spilled and shared memory. Fails where one does not compile,
spills more than a little, or would not fit a multiprocessor.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from tempfile import NamedTemporaryFile
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.driver import CudaDriver
from triton.runtime.jit import JITFunction

from segtrain.kernels import launch, triton_coarse, triton_sigmoid, triton_softmax
from segtrain.kernels.mining import HardExamples
from segtrain.kernels.request import SUMS, Inputs, Request, encode_mining

MOST_SPILLED = 64  # bytes of a thread
REGISTERS = re.compile(r"REG:(\d+) STACK:(\d+) .*?LOCAL:(\d+)")
HEADLINE = ("probability", "intersection", "cross_entropy", "focal")
RULES = (HardExamples(threshold=0.7), HardExamples(top_k=0.1, per_class=True), HardExamples(threshold=0.7, min_kept=1))


class OfflineDriver:
    """What the compiler asks of a driver: the kind of GPU."""

    def __init__(self, architecture: int) -> None:
        self.target = GPUTarget("cuda", architecture, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    map_python_to_cpp_type = CudaDriver.map_python_to_cpp_type


def compiling(run: Any, report: Any) -> Any:
    """Return a launch that compiles in place of running, and reports each new kernel."""
    seen: set[int] = set()

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        start = time.process_time()
        kernel = run(self, *args, grid=grid, warmup=True, **options)
        if id(kernel) not in seen:
            seen.add(id(kernel))
            report(f"{self.__module__.rpartition('.')[2]}.{self.__name__}", kernel, time.process_time() - start)
        return kernel

    return compile_only


def report(name: str, kernel: Any, seconds: float) -> None:
    """Print what a kernel takes, and fail where it is too much."""
    tool = triton.knobs.nvidia.cuobjdump.path
    with NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        done = subprocess.run([tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True)
    found = REGISTERS.search(done.stdout)
    assert found, done.stdout
    registers, stack, local = map(int, found.groups())
    shared = kernel.metadata.shared
    warps = kernel.metadata.num_warps
    sizes = f"{registers} registers x {warps} warps, {stack + local} B spilled, {shared / 1024:.1f} KiB shared"
    sys.stdout.write(f"{name}: {seconds:.1f} s, {sizes}\n")
    assert stack + local <= MOST_SPILLED, f"{name} spills {stack + local} bytes of a thread"
    assert registers * warps * 32 <= 65536
    assert shared <= 48 * 1024  # what every GPU gives a block; sm_86 and sm_89 have 99 KiB for one, sm_80 163


def calls(size: str) -> Iterator[dict[str, Any]]:
    """Yield what is compiled."""
    yield {"classes": 3, "rule": RULES[0], "predictions": True}
    yield {"classes": 24, "wanted": HEADLINE}  # few for the backward, and too many sums for the forward's registers
    yield {"classes": 26, "last": True, "dtype": torch.float32, "predictions": True}
    yield {"classes": 2, "sigmoid": True, "last": True, "gamma": (0.5, 2.0)}
    yield {"classes": 1, "rule": RULES[2], "shape": (1, 1, 1)}  # what is 1 is a constant to the compiler
    yield {"classes": 19, "enlarged": True, "predictions": True}
    if size == "quick":
        return
    for classes in (19, 150, 2, 24, 300, 1024, 1, 8, 9, 13, 32, 64, 128, 256):
        for last in (False, True):
            yield {"classes": classes, "last": last}
            yield {"classes": classes, "last": last, "predictions": True}
            yield {"classes": classes, "last": last, "sigmoid": True, "dtype": torch.float16}
        yield {"classes": classes, "enlarged": True}
    full = {"wanted": SUMS, "vectors": True}
    for rule in RULES:
        for sigmoid in (False, True):
            yield {"classes": 5, "rule": rule, "sigmoid": sigmoid, **full, "dtype": torch.float32}
        yield {"classes": 40, "rule": rule, **full, "labels": torch.int64}


def call(
    *,
    classes: int,
    last: bool = False,
    sigmoid: bool = False,
    dtype: torch.dtype = torch.bfloat16,
    labels: torch.dtype = torch.uint8,
    rule: HardExamples | None = None,
    wanted: tuple[str, ...] = HEADLINE,
    vectors: bool = False,
    gamma: tuple[float, ...] = (2.0,),
    predictions: bool = False,
    enlarged: bool = False,
    shape: tuple[int, int, int] = (2, 32, 32),
) -> None:
    """Call the forward and the backward of the operator; their results mean nothing."""
    images, *size = shape
    logits = torch.zeros((images, classes, *size), dtype=dtype)
    logits = logits.contiguous(memory_format=torch.channels_last) if last else logits
    of_target = logits.shape if sigmoid else shape
    target = torch.zeros(of_target, dtype=labels if classes <= 255 else torch.int16)
    backend = triton_sigmoid if sigmoid else triton_softmax
    names = tuple(name for name in wanted if not (sigmoid and name == "log_mass"))
    vector = torch.zeros(classes) if vectors else None
    inputs = Inputs(logits, target, vector, vector, torch.zeros(shape) if vectors else None)
    request = Request(names, sigmoid, -1, gamma, 1.0, encode_mining(rule), predictions)
    if enlarged:
        sums, _ = triton_coarse.forward(replace(inputs, logits=logits[..., ::4, ::4]), request, shape[1:])
        triton_coarse.backward(
            torch.zeros(sums.shape, dtype=torch.float64),
            replace(inputs, logits=logits[..., ::4, ::4].contiguous()),
            request,
            shape[1:],
        )
        return
    sums, _, mask = backend.forward(inputs, request)
    inputs = replace(inputs, keep=mask if rule is not None else None)
    backend.backward(torch.zeros(sums.shape, dtype=torch.float64), inputs, request)


def main(architecture: int, size: str) -> None:
    """Compile all that `size` names."""
    triton.runtime.driver.set_active(OfflineDriver(architecture))
    JITFunction.run = compiling(JITFunction.run, report)
    launch.multiprocessors = lambda device: 132
    for settings in calls(size):
        sys.stdout.write(f"-- {settings}\n")
        call(**settings)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
