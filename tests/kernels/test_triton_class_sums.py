"""The Triton class sums: in the interpreter (a process of its own), without Triton, and on a GPU where there is one."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from segtrain.kernels import launch, triton_available
from segtrain.kernels.request import SUMS, Inputs, Request
from segtrain.losses.class_sums import class_sums
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
    whole = entry.is_fused
    monkeypatch.setattr(entry, "is_fused", lambda device, *rest: whole(torch.device("cuda", 0), *rest))
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
