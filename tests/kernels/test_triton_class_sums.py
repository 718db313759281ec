"""The Triton class sums: in the interpreter (a process of its own), without Triton, and on a GPU where there is one."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from segtrain.kernels import class_sums as ops
from segtrain.kernels import launch, triton_available
from segtrain.kernels.mining import HardExamples
from segtrain.kernels.request import SUMS, Inputs, Request, encode_mining
from segtrain.losses import build_loss
from segtrain.losses.class_sums import class_sums, fused_sums
from segtrain.losses.plain_sums import plain_sums

HERE = Path(__file__).parent
INTERPRETER = (3, 7)  # of Triton: that of 3.6 takes no `range` over a scalar with NumPy of today
HEADLINE = {"terms": [{"name": "cross_entropy"}, {"name": "focal"}, {"name": "dice"}], "ohem": {"threshold": 0.7}}
WITHOUT_TRITON = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "triton":
            raise ModuleNotFoundError("No module named 'triton'", name="triton")
sys.meta_path.insert(0, Missing())
import torch
import segtrain.losses, segtrain.metrics, segtrain.engine
assert "triton" not in sys.modules
logits = torch.randn(1, 3, 4, 5, requires_grad=True)
loss = segtrain.losses.build_loss({"terms": [{"name": "cross_entropy"}, {"name": "dice"}]}, num_classes=3)
loss(logits, torch.zeros(1, 4, 5, dtype=torch.uint8)).backward()
assert logits.grad.any() and "triton" not in sys.modules
"""


def needs_triton(oldest: tuple[int, int], purpose: str) -> None:
    """Skip the test where Triton is missing or too old."""
    triton = pytest.importorskip("triton")
    if tuple(map(int, triton.__version__.split(".")[:2])) < oldest:
        pytest.skip(f"Triton {triton.__version__} is too old to {purpose} the kernels: {oldest[0]}.{oldest[1]} does")


def run_interpreted(selection: str) -> None:
    """Run the tests in `interpreted` in a process in which Triton interprets its kernels."""
    needs_triton(INTERPRETER, "interpret")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", selection]
    files = sorted(map(str, (HERE / "interpreted").glob("interpreted_*.py")))
    assert files
    command += files
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(command, cwd=HERE.parent.parent, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-20000:] + done.stderr[-2000:]


def test_interpreted_kernels_sum_what_the_plain_form_does() -> None:
    run_interpreted("not slow")


@pytest.mark.exhaustive
def test_interpreted_kernels_sum_what_the_plain_form_does_on_drawn_cases() -> None:
    run_interpreted("slow")


def run_compiler(architecture: int, size: str, cache: Path) -> None:
    """Compile kernels for a GPU that need not be there; Triton brings the assembler.

    By default, for sm_90, one case of each route: few classes with mining, sums by tiles with channels_last, sigmoid,
    and shapes of 1. Marked slow, for sm_80 and sm_90: all widths, layouts, mining rules and every sum at once.
    """
    needs_triton(triton_available.OLDEST_TRITON, "compile")
    command = [sys.executable, str(HERE / "compile_class_sums.py"), str(architecture), size]
    environment = os.environ | {"TRITON_CACHE_DIR": str(cache)}
    done = subprocess.run(command, cwd=HERE.parent.parent, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-10000:]


def test_the_kernels_compile_for_a_gpu(tmp_path: Path) -> None:
    run_compiler(90, "quick", tmp_path)


@pytest.mark.exhaustive
@pytest.mark.parametrize("architecture", [80, 90])
def test_the_kernels_compile_for_all_numbers_of_classes(architecture: int, tmp_path: Path) -> None:
    run_compiler(architecture, "all", tmp_path)


def test_all_that_runs_on_a_cpu_runs_without_triton() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_TRITON], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def logits_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """CPU tensors that the choice of the operator takes for CUDA ones, on a GPU that Triton does not know."""
    entry = importlib.import_module("segtrain.losses.class_sums")  # the package exports a function of that name
    monkeypatch.setattr(entry, "triton_reason", lambda device: "compute capability 6.1 is below 8.0")
    whole = entry._is_fused
    monkeypatch.setattr(entry, "_is_fused", lambda device, *rest: whole(torch.device("cuda", 0), *rest))
    triton_available.warn_of_fallback.cache_clear()
    yield
    triton_available.warn_of_fallback.cache_clear()


@pytest.mark.usefixtures("logits_on_a_gpu")
def test_a_gpu_without_kernels_takes_the_plain_sums_with_one_warning() -> None:
    logits = torch.randn(1, 3, 4, 5)
    target = torch.zeros(1, 4, 5, dtype=torch.uint8)
    with pytest.warns(RuntimeWarning, match=r"compute capability 6\.1") as seen:
        found = [class_sums(logits, target) for _ in range(3)]
    assert len(seen) == 1
    expected = plain_sums(Inputs(logits, target), Request(SUMS, False, 255, (2.0,), 1.0))
    assert torch.equal(found[-1].kept, expected["kept"])
    assert found[-1].focal is not None
    assert torch.equal(found[-1].focal, expected["focal"])


@pytest.mark.parametrize(
    ("installed", "reason"), [((3, 5), r"triton 3\.5 is older than 3\.6"), ((3, 6), None), (None, None)]
)
def test_a_triton_that_is_too_old_to_compile_is_a_reason(
    installed: tuple[int, int] | None, reason: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_available, "find_spec", lambda name: object())
    monkeypatch.setattr(triton_available, "_triton_version", lambda: installed)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    triton_available._reason.cache_clear()
    try:
        found = triton_available.triton_reason(torch.device("cuda", 0))
    finally:
        triton_available._reason.cache_clear()
    assert found is None if reason is None else re.match(reason, str(found))


def test_the_version_of_triton_is_read_without_importing_it() -> None:
    triton = pytest.importorskip("triton")
    assert triton_available._triton_version() == tuple(map(int, triton.__version__.split(".")[:2]))


@pytest.mark.usefixtures("logits_on_a_gpu")
def test_float64_takes_the_plain_sums_without_a_word() -> None:
    class_sums(torch.randn(1, 3, 4, 5, dtype=torch.float64), torch.zeros(1, 4, 5, dtype=torch.uint8))


def test_launches_are_tried_only_where_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    default = launch.columns(19, channels_last=False)
    tried: list[launch.Launch] = []

    def fewest_warps(run: Callable[[launch.Launch], object], choice: launch.Launch) -> float:
        run(choice)
        return choice.warps + choice.programs / 100

    monkeypatch.setattr(launch, "milliseconds", fewest_warps)
    tuner = launch.Tuner()
    assert tuner.choose("key", default, tried.append, device=torch.device("cpu")) == default
    assert not tried
    tuner.enabled = True
    for _ in range(2):
        best = tuner.choose("key", default, tried.append, device=torch.device("cpu"))
        assert best == launch.Launch(default.block // 2, default.warps // 2, 2)
    assert len(tried) == len(set(tried)) > 1
    assert default in tried
    assert not launch.TUNER.enabled


def test_programs_share_an_image_so_that_their_sums_keep_their_digits() -> None:
    device = torch.device("cpu")
    choice = launch.columns(19, channels_last=False)
    assert launch.num_programs(choice, 1, device=device) == 1
    for size in (2**20, 2**30, launch.MOST_PIXELS):
        programs = launch.num_programs(choice, size, device=device, shared_by=16)
        assert programs * choice.block * launch.MOST_TILES >= size
        equal = np.full(2 * launch.MOST_TILES, 0.1, np.float32)  # two pixels a tile and thread
        assert np.cumsum(equal, dtype=np.float32)[-1] == pytest.approx(0.1 * len(equal), rel=1e-5)


@pytest.mark.parametrize(("shape", "message"), [((2**16, 1, 1, 1), "65536 images"), ((1, 1, 2**16, 2**15), "pixels")])
def test_batches_that_no_launch_covers_are_refused(shape: tuple[int, ...], message: str) -> None:
    pytest.importorskip("triton")
    from segtrain.kernels import triton_confusion, triton_softmax

    logits = torch.zeros(1, dtype=torch.bfloat16).expand(shape)
    target = torch.zeros(1, dtype=torch.uint8).expand((shape[0], *shape[2:]))
    with pytest.raises(ValueError, match=message):
        triton_softmax.forward(Inputs(logits, target), Request(("focal",), False, 255, (2.0,), 1.0))
    with pytest.raises(ValueError, match=message):
        triton_confusion.count(logits, target, None, (shape[2], shape[3]), 1, 255, False)


def on_gpu(
    *, classes: int = 19, size: tuple[int, int] = (67, 91), dtype: torch.dtype = torch.float32, last: bool = False
) -> tuple[Tensor, Tensor]:
    """Return logits and a uint8 target on the GPU, a fifth of it ignored, with NaN under an ignored pixel."""
    generator = torch.Generator("cuda").manual_seed(0)
    logits = torch.randn((2, classes, *size), generator=generator, device="cuda").mul_(3).to(dtype)
    target = torch.randint(0, classes, (2, *size), generator=generator, device="cuda").to(torch.uint8)
    target[torch.rand(target.shape, generator=generator, device="cuda") < 0.2] = 255
    target[0, 0, 0] = 255
    logits[0, :, 0, 0] = float("nan")
    return (logits.contiguous(memory_format=torch.channels_last) if last else logits).requires_grad_(), target


@pytest.mark.gpu
@pytest.mark.parametrize("classes", [1, 2, 3, 11, 19, 24, 25, 64, 65, 150])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gpu_sums_what_the_plain_form_does(classes: int, last: bool, dtype: torch.dtype) -> None:
    logits, target = on_gpu(classes=classes, dtype=dtype, last=last)
    inputs, request = Inputs(logits, target), Request(SUMS, False, 255, (2.0,), 1.0)
    double = logits.detach().nan_to_num(0.0).double().requires_grad_()
    found, exact = fused_sums(inputs, request), plain_sums(replace(inputs, logits=double), request)
    for name, value in exact.items():
        torch.testing.assert_close(
            found[name], value, rtol=1e-5, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )
    scale = torch.linspace(-1, 2, 2 * classes, dtype=torch.float64, device="cuda").view(2, classes)
    (grad,) = torch.autograd.grad(sum((found[name] * scale).sum() for name in SUMS), logits)
    (expected,) = torch.autograd.grad(sum((exact[name] * scale).sum() for name in SUMS), double)
    assert grad.stride() == logits.stride()
    torch.testing.assert_close(grad.double(), expected, rtol=1e-2 if dtype == torch.bfloat16 else 1e-4, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("last", [False, True])
def test_the_gpu_sums_sigmoids_as_the_plain_form_does(last: bool) -> None:
    logits, target = on_gpu(classes=5, last=last)
    target = torch.where(target == 255, 255, target % 2).to(torch.uint8).unsqueeze(1).repeat(1, 5, 1, 1)
    inputs, request = Inputs(logits, target), Request(SUMS[:-1], True, 255, (1.5,), 1.0)
    double = logits.detach().nan_to_num(0.0).double().requires_grad_()
    found, exact = fused_sums(inputs, request), plain_sums(replace(inputs, logits=double), request)
    for name, value in exact.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-4)
    names = [name for name in exact if exact[name].requires_grad]
    (grad,) = torch.autograd.grad(sum(found[name].sum() for name in names), logits)
    (expected,) = torch.autograd.grad(sum(exact[name].sum() for name in names), double)
    torch.testing.assert_close(grad.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize(
    "rule",
    [
        HardExamples(threshold=0.5, min_kept=0.1),
        HardExamples(threshold=1e-6, min_kept=0.3),
        HardExamples(top_k=0.25),
        HardExamples(top_k=0.25, per_class=True),
    ],
    ids=str,
)
@pytest.mark.parametrize("classes", [4, 40])
def test_the_gpu_mines_exactly_as_many_pixels_and_equally_each_time(rule: HardExamples, classes: int) -> None:
    logits, target = on_gpu(classes=classes)
    request = Request(SUMS, False, 255, (2.0,), 1.0, encode_mining(rule))
    arguments = (list(range(len(SUMS))), False, 255, [2.0], 1.0, list(request.mining), False)
    first = ops.class_sums(logits, target, None, None, None, None, *arguments)
    second = ops.class_sums(logits, target, None, None, None, None, *arguments)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    exact = plain_sums(Inputs(logits.detach().nan_to_num(0.0).double(), target), request)
    torch.testing.assert_close(first[1][1], exact["kept"], rtol=0, atol=0)
    torch.testing.assert_close(first[0][3], exact["cross_entropy"], rtol=1e-5, atol=1e-4)


@pytest.fixture
def no_waiting() -> Iterator[None]:
    """An error wherever the host waits for the device."""
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.parametrize("ohem", [{"threshold": 0.7}, {"top_k": 0.25}, {"top_k": 0.25, "per_class": True}])
def test_a_loss_on_the_gpu_never_waits_and_is_captured_in_a_graph(ohem: dict[str, object]) -> None:
    loss = build_loss(HEADLINE | {"ohem": ohem}, num_classes=19).cuda()
    logits, target = on_gpu(dtype=torch.bfloat16)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        (expected,) = torch.autograd.grad(loss(logits, target), logits)
        torch.cuda.set_sync_debug_mode("error")
        try:
            torch.autograd.grad(loss(logits, target), logits)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        (grad,) = torch.autograd.grad(loss(logits, target), logits)
    graph.replay()
    assert torch.equal(grad.nan_to_num(9.0), expected.nan_to_num(9.0))


@pytest.mark.gpu
@pytest.mark.usefixtures("no_waiting")
def test_exponents_by_class_reach_the_gpu_without_a_wait() -> None:
    logits, target = on_gpu(classes=5)
    class_sums(logits, target, gamma=[0.0, 0.5, 1.0, 2.0, 3.0])


@pytest.mark.gpu
@pytest.mark.parametrize("last", [False, True])
def test_images_beyond_two_billion_elements_are_summed_on_the_gpu(last: bool) -> None:
    free, _ = torch.cuda.mem_get_info()
    if free < 14 * 2**30:
        pytest.skip("needs 14 GiB of free GPU memory")
    height = 2**15 + 1
    logits = torch.zeros((1, 2, height, 2**15), dtype=torch.bfloat16, device="cuda")
    logits = (logits.contiguous(memory_format=torch.channels_last) if last else logits).requires_grad_()
    target = torch.zeros((1, height, 2**15), dtype=torch.uint8, device="cuda")
    sums = class_sums(logits, target, wanted=("cross_entropy",))
    assert sums.pixels.tolist() == [[height * 2**15, 0]]
    assert sums.cross_entropy is not None
    assert sums.cross_entropy[0, 0].item() == pytest.approx(height * 2**15 * 0.6931471805599453, rel=1e-5)
    sums.cross_entropy.sum().backward()
    assert logits.grad is not None
    assert logits.grad[0, :, -1, -1].tolist() == [-0.5, 0.5]
    assert logits.grad[0, :, 0, 0].tolist() == [-0.5, 0.5]


@pytest.mark.gpu
def test_a_compiled_loss_on_the_gpu_is_one_graph() -> None:
    loss = build_loss(HEADLINE, num_classes=19).cuda()
    logits, target = on_gpu()
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(logits, target), loss(logits, target))
