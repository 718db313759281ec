"""The Triton kernel of the confusion counts: interpreted, it counts what torch does; compiled, it is machine code.

Whether Triton interprets is settled when it is imported, so that the checks run in a process of their own, with inputs
drawn anew each time (the seed is printed with what failed).
"""

from __future__ import annotations

import os
import re
import secrets
import subprocess
import sys
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import Tensor

from segtrain.kernels.confusion import confusion_update, plain_counts

DTYPES = ((torch.float32, torch.uint8), (torch.bfloat16, torch.int64), (torch.float16, torch.int32))
needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")


@needs_triton
def test_the_interpreted_kernel_counts_as_torch_does() -> None:
    import triton

    if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 7):
        pytest.skip(f"the interpreter of Triton {triton.__version__} takes no `range` over a scalar; that of 3.7 does")
    seed = str(secrets.randbits(31))
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, __file__, seed], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"seed {seed}\n{done.stdout}\n{done.stderr}"


@needs_triton
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(
    ("dtype", "classes", "options"),
    [
        ("bf16", 19, {"prediction"}),
        ("fp32", 150, {"shift"}),
        ("bf16", 19, {"enlarged", "prediction"}),
        ("fp64", 2, {"enlarged", "prediction", "shift"}),
        ("i64", 19, set()),
    ],
)
def test_the_kernel_compiles_without_a_gpu(capability: int, dtype: str, classes: int, options: set[str]) -> None:
    assembly = compiled(capability, dtype=dtype, classes=classes, options=options)
    assert "cubin" in assembly
    assert f".target sm_{capability}" in assembly["ptx"]
    assert "ld.global" in assembly["ptx"]


@needs_triton
def test_the_places_of_channels_are_worked_out_in_64_bits() -> None:
    """150 classes of 4096 x 4096 pixels are more than 2^31 elements, in strides of less."""
    middle = compiled(90, dtype="bf16", classes=150, options=set(), stride="i32")["ttir"]
    products = re.findall(r"%channel\w* = arith\.muli .* : (\w+)", middle)
    assert products
    assert set(products) == {"i64"}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("classes", [2, 19, 150])
def test_the_gpu_counts_as_the_cpu_does(classes: int) -> None:
    for dtype, target_dtype in DTYPES:
        logits, target = drawn(classes, dtype, target_dtype, size=(300, 257))
        shift = torch.randn(classes)
        for values in (logits, logits.contiguous(memory_format=torch.channels_last), logits.argmax(1)):
            added = shift if values.is_floating_point() else None
            settings: dict[str, Any] = {"num_classes": classes, "with_prediction": True}
            expected = confusion_update(values, target, shift=added, **settings)
            added = None if added is None else added.cuda()
            found = confusion_update(values.cuda(), target.cuda(), shift=added, **settings)
            assert torch.equal(found.matrix.cpu(), expected.matrix)
            assert found.prediction is not None
            assert expected.prediction is not None
            assert torch.equal(found.prediction.cpu(), expected.prediction)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_the_kernel_runs_on_the_device_of_its_tensors() -> None:
    logits, target = drawn(5, *DTYPES[0])
    expected = confusion_update(logits, target, num_classes=5)
    with torch.cuda.device(0):
        found = confusion_update(logits.to("cuda:1"), target.to("cuda:1"), num_classes=5)
    assert found.matrix.device == torch.device("cuda", 1)
    assert torch.equal(found.matrix.cpu(), expected.matrix)


def compiled(capability: int, *, dtype: str, classes: int, options: set[str], stride: str = "i64") -> dict[str, Any]:
    """Return what the compiler makes of the kernel for a GPU that need not be there."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from segtrain.kernels import triton_confusion as kernels

    enlarged = "enlarged" in options
    bins = triton.next_power_of_2(classes**2 + 3)
    constants: dict[str, Any] = {"LOGITS": dtype != "i64", "ENLARGED": enlarged, "DOUBLE": dtype == "fp64"}
    constants |= {"BINS": bins if bins <= kernels.MOST_BINS else 0, "BLOCK": kernels.BLOCK}
    given = {"values": f"*{dtype}", "target": "*u8", "counts": "*i64", "sn": "i64", "sc": stride}
    given |= {"rows": "*i32", "columns": "*i32", "row_weights": "*fp64", "column_weights": "*fp64"} if enlarged else {}
    given |= {"shift": "*fp32"} if "shift" in options else {}
    given |= {"prediction": "*u8"} if "prediction" in options else {}
    pointers = {"shift", "rows", "columns", "row_weights", "column_weights", "prediction"}
    constants |= dict.fromkeys(pointers - set(given))
    names = kernels.count_kernel.arg_names
    signature = {name: "constexpr" if name in constants else given.get(name, "i32") for name in names}
    source = ASTSource(kernels.count_kernel, signature=signature, constexprs=constants)
    settings = {"num_warps": kernels.WARPS, "enable_fp_fusion": True}  # Triton 3.9 warns where the latter is not given
    done = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=settings)
    return dict(done.asm)


def drawn(
    classes: int, dtype: torch.dtype, target_dtype: torch.dtype, *, size: tuple[int, int] = (7, 23), wrong: int = 0
) -> tuple[Tensor, Tensor]:
    """Return logits with many ties and labels of which some are ignored (255), and some out of range."""
    logits = torch.randint(-3, 4, (2, classes, *size)).to(dtype)
    target = torch.randint(0, min(classes, 255), (2, *size))
    target[torch.rand(target.shape) < 0.2] = 255
    target[0, 0, :wrong] = 254
    return logits, target.to(target_dtype)


def check_logits() -> None:
    for classes, (dtype, target_dtype) in zip((1, 5, 9), DTYPES, strict=True):
        logits, target = drawn(classes, dtype, target_dtype, wrong=3)
        if classes > 1:
            logits[0, classes // 2, 3] = torch.nan
        for values in (logits, logits.contiguous(memory_format=torch.channels_last), logits[..., 2:]):
            for shift in (None, torch.randn(classes)):
                same(values, target[..., : values.shape[3]], shift, tuple(values.shape[-2:]))


def check_classes() -> None:
    for classes, (_, target_dtype) in zip((1, 5, 9), DTYPES, strict=True):
        _, target = drawn(classes, torch.float32, target_dtype, wrong=2)
        for dtype in (torch.uint8, torch.int64):
            prediction = torch.randint(0, classes + 1, target.shape).to(dtype)
            prediction[1, 0, 0] = 200
            same(prediction, target, None, (7, 23), classes=classes)


def check_enlarged() -> None:
    for classes, (dtype, target_dtype) in zip((2, 5, 9), DTYPES, strict=True):
        _, target = drawn(classes, dtype, target_dtype)
        for size in ((12, 24), (9, 31)):
            coarse = torch.randn(2, classes, 3, 6).to(dtype)
            same(coarse, target, torch.randn(classes), size)
            same(coarse.contiguous(memory_format=torch.channels_last), target, None, size)


def check_edges() -> None:
    logits, target = drawn(3, torch.float32, torch.uint8)
    infinite = torch.full_like(logits, -torch.inf)
    same(infinite, target, None, (7, 23))
    infinite[:, 1, ::2] = torch.inf
    same(infinite, target, None, (7, 23))
    same(logits.double(), torch.full_like(target, 255), None, (7, 23))
    same(logits[:0], target[:0], None, (7, 23))


def same(
    values: Tensor, target: Tensor, shift: Tensor | None, size: tuple[int, ...], *, classes: int | None = None
) -> None:
    """Compare the kernel with torch's operators; memory that it does not write holds what no class is."""
    from segtrain.kernels import triton_confusion as kernels

    num_classes = values.shape[1] if classes is None else classes
    empty, kernels.BLOCK, kernels.MOST_BINS = torch.empty, 128, 64  # 9 classes are too many for a histogram then
    torch.empty = lambda *shape, **settings: torch.full(*shape, 123, **settings)  # type: ignore[assignment]
    try:
        counts, prediction = kernels.count(values, target, shift, (size[0], size[1]), num_classes, 255, True)
    finally:
        torch.empty = empty
    expected = plain_counts(values, target, shift, (size[0], size[1]), num_classes, 255, True)
    assert torch.equal(counts, expected[0]), (values.dtype, values.shape, size)
    assert torch.equal(prediction, expected[1]), (values.dtype, values.shape, size)


if __name__ == "__main__":
    torch.manual_seed(int(sys.argv[1]))
    for check in (check_logits, check_classes, check_enlarged, check_edges):
        check()
