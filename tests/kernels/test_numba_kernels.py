"""The arithmetic of the kernels for CPUs, and that what is compiled is kept, found again, and never stale."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from numba import njit

from segtrain.errors import SegtrainError
from segtrain.kernels import numba_compile, numba_math

SOURCE = """
def build(sources):
    def add(values):
        sources
        total = 0.0
        for value in values:
            total += value
        return total
    return add
"""


@njit
def _exponentials(values: Any, result: Any) -> None:
    for i in range(len(values)):
        result[i] = numba_math.exponential(values[i])


@njit
def _logarithms(values: Any, result: Any) -> None:
    for i in range(len(values)):
        result[i] = numba_math.logarithm(values[i])


@njit
def _one_less(values: Any, result: Any) -> None:
    for i in range(len(values)):
        result[i] = numba_math.one_less(values[i])


@njit
def _powers(values: Any, exponent: Any, result: Any) -> None:
    for i in range(len(values)):
        result[i] = numba_math.power(values[i], exponent)


@njit
def _round(values: Any, result: Any) -> None:
    for i in range(len(values)):
        result[i] = numba_math.as_stored(values[i], result[0])


@njit
def _widen(values: Any, result: Any) -> None:
    for i in range(len(values)):
        result[i] = numba_math.as_number(values[i])


def errors(found: Any, exact: Any) -> float:
    """The largest relative error, in units of float32's last digit."""
    return float(np.max(np.abs(found.astype(np.float64) - exact) / np.abs(exact)) * 2**23)


@pytest.mark.parametrize(
    ("name", "low", "high", "exact"),
    [
        ("_exponentials", -59.9, 0.0, np.exp),
        ("_logarithms", 1e-37, 1e30, np.log),
        ("_one_less", 1e-20, 60.0, lambda x: -np.expm1(-x)),
    ],
)
def test_functions_are_exact_to_two_units_of_the_last_digit(name: str, low: float, high: float, exact: Any) -> None:
    if low <= 0:
        values = np.linspace(low, high, 100_001).astype(np.float32)
    else:
        values = np.geomspace(low, high, 100_001).astype(np.float32)
    found = np.empty_like(values)
    globals()[name](values, found)
    assert errors(found, exact(values.astype(np.float64))) < 2
    twice = np.empty(len(values))
    globals()[name](values.astype(np.float64), twice)
    np.testing.assert_allclose(twice, exact(values.astype(np.float64)), rtol=1e-15)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_ends_of_the_range_are_kept(kind: Any) -> None:
    values = np.array([0.0, -np.inf, np.nan, -3e38], kind)
    found = np.empty_like(values)
    _exponentials(values, found)
    np.testing.assert_array_equal(found, np.array([1.0, 0.0, np.nan, 0.0], kind))
    _one_less(-values, found)
    np.testing.assert_array_equal(found, np.array([0.0, 1.0, np.nan, 1.0], kind))


@pytest.mark.parametrize("bits", [0xFFFFFFFF, 0x7FFFFFFF, 0x7F800001, 0xFF800001, 0x7FC00000])
def test_every_nan_stays_one(bits: int) -> None:
    values = np.array([bits] * 20, np.uint32).view(np.float32)
    found = np.empty_like(values)
    for function in (_exponentials, _one_less):
        function(values, found)
        assert np.isnan(found).all()


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, 2.0, 3.0])
def test_powers_are_those_of_numpy(kind: Any, exponent: float) -> None:
    values = np.concatenate((np.geomspace(1e-20, 1, 999), [0.0])).astype(kind)
    found = np.empty_like(values)
    _powers(values, kind(exponent), found)
    np.testing.assert_allclose(found, values.astype(np.float64) ** exponent, rtol=2e-5, atol=1e-25)
    _powers(np.array([np.nan], kind), kind(exponent), found)
    assert np.isnan(found[0])


@pytest.mark.parametrize(("dtype", "stored"), [(torch.float16, np.int16), (torch.bfloat16, np.uint16)])
def test_halves_are_read_and_rounded_as_torch_does(dtype: torch.dtype, stored: Any) -> None:
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    wide = np.empty(len(every), np.float32)
    _widen(every.view(torch.int16).numpy().view(stored), wide)
    assert torch.equal(torch.from_numpy(wide).nan_to_num(7e9), every.float().nan_to_num(7e9))
    generator = torch.Generator().manual_seed(0)
    ties = every.float() * (1 + 2.0**-12)
    values = torch.cat((torch.randn(9999, generator=generator), ties, torch.tensor([1e-8, 65519.9, 65520.0, 3e38])))
    rounded = np.empty(len(values), stored)
    _round(values.numpy(), rounded)
    found = torch.from_numpy(rounded.view(np.int16)).view(dtype)
    assert torch.equal(found.float().nan_to_num(7e9), values.to(dtype).float().nan_to_num(7e9))


@pytest.fixture
def module(tmp_path: Path) -> ModuleType:
    """A module on disk whose `build` makes a small kernel."""
    path = tmp_path / "small_kernel.py"
    path.write_text(SOURCE)
    spec = importlib.util.spec_from_file_location("small_kernel", path)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def hits(kernel: numba_compile.Kernel) -> int:
    """Call a kernel; return how often it found its code on the disk."""
    assert kernel(np.arange(4.0)) == 6
    return sum(kernel._compiled.stats.cache_hits.values())


def test_code_is_kept_until_any_source_of_the_kernels_changes(
    module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert hits(numba_compile.Kernel(module.build)) == 0
    assert hits(numba_compile.Kernel(module.build)) == 1
    monkeypatch.setattr(numba_compile, "_sources", lambda: "another text of another file")
    assert hits(numba_compile.Kernel(module.build)) == 0


@pytest.mark.parametrize("name", ["numba_math.py", "numba_pixels.py", "numba_softmax.py", "numba_compile.py"])
def test_sources_are_those_of_all_kernels_for_cpus(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    before, whole = numba_compile._sources.__wrapped__(), Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: whole(path) + (b"#" if path.name == name else b""))
    assert numba_compile._sources.__wrapped__() != before


@pytest.mark.parametrize("content", [b"", b"cut"])
@pytest.mark.parametrize("suffix", [".nbi", ".nbc"])
def test_damage_to_what_is_kept_harms_nothing(module: ModuleType, content: bytes, suffix: str) -> None:
    assert hits(numba_compile.Kernel(module.build)) == 0
    (path,) = (Path(str(module.__file__)).parent / "__pycache__").glob(f"*{suffix}")
    path.write_bytes(path.read_bytes()[:50] if content else b"")
    assert numba_compile.Kernel(module.build)(np.arange(4.0)) == 6


def test_no_kernel_is_made_where_numba_may_not_compile(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numba_compile.config, "DISABLE_JIT", 1)
    with pytest.raises(SegtrainError, match="NUMBA_DISABLE_JIT"):
        numba_compile.Kernel(module.build)


@pytest.mark.parametrize("error", ["compile", "write"])
def test_a_kernel_runs_where_nothing_can_be_written(
    module: ModuleType, monkeypatch: pytest.MonkeyPatch, error: str
) -> None:
    def refuse(*args: Any, **settings: Any) -> Any:
        if error == "compile":
            raise RuntimeError("cannot cache function: no locator available")

        def full(*values: Any) -> Any:
            raise OSError(28, "No space left on device")

        return lambda function: full

    monkeypatch.setattr(numba_compile, "njit", refuse)
    assert numba_compile.Kernel(module.build)(np.arange(4.0)) == 6
