"""What the tests of the Triton kernels in Triton's interpreter share: inputs drawn anew, and the float64 plain sums.

`test_triton_class_sums` starts the files beside this one in a process of its own with TRITON_INTERPRET=1; their names
keep them out of the usual collection. SEGTRAIN_TEST_SEED repeats the inputs of a run that failed. What the kernels
write to is poisoned first. Tolerances come from what float32 makes of scores of a size (`rounding`), so that no draw
decides. Nor does a pixel on the edge of a mining rule, which float64 may rank elsewhere: the reference sums the pixels
that the kernels kept, and which those must be the rule says of the kernels' own losses.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from segtrain.kernels.class_sums import names_of_counts, names_of_sums
from segtrain.kernels.launch import Launch
from segtrain.kernels.mining import HardExamples
from segtrain.kernels.request import SUMS, Inputs, Request, encode_mining
from segtrain.losses.plain_sums import plain_sums

SEED = int(os.environ.get("SEGTRAIN_TEST_SEED") or int.from_bytes(os.urandom(4), "little"))
HERE = Path(__file__).parent
TARGETS = (torch.uint8, torch.int16, torch.int32, torch.int64)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """NumPy warns of the infinities that Triton selects away; of all tests, those of this folder alone may."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("ignore::RuntimeWarning"))


@pytest.fixture
def draw(request: pytest.FixtureRequest) -> torch.Generator:
    """Random numbers of this run and test."""
    sys.stderr.write(f"SEGTRAIN_TEST_SEED={SEED}\n")
    name = sum(ord(letter) * (place + 1) for place, letter in enumerate(request.node.name))
    return torch.Generator().manual_seed(SEED + name)


@pytest.fixture
def oracle(draw: torch.Generator) -> Oracle:
    """Inputs, and what must come of them."""
    return Oracle(draw)


@pytest.fixture(autouse=True)
def _poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """NaN, or 77, in all memory that is not asked to be 0."""

    def poisoned(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def made(*args: Any, **options: Any) -> Tensor:
            values = make(*args, **options)
            return values.fill_(float("nan") if values.is_floating_point() else 1 if values.dtype == torch.bool else 77)

        return made

    monkeypatch.setattr(torch, "empty", poisoned(torch.empty))
    monkeypatch.setattr(torch, "empty_like", poisoned(torch.empty_like))
    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned(torch.Tensor.new_empty))


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of a few pixels, so that small images are cut into several, shared by two programs."""
    from segtrain.kernels import triton_ranks, triton_sigmoid, triton_softmax

    small = Launch(block=32, warps=1, programs=4)
    monkeypatch.setattr(triton_softmax, "columns", lambda *_, **__: small)
    monkeypatch.setattr(triton_softmax, "tiles", lambda _: replace(small, block=8))
    monkeypatch.setattr(triton_softmax, "LABELS", small)
    monkeypatch.setattr(triton_softmax, "MINING", replace(small, block=16))
    monkeypatch.setattr(
        triton_sigmoid, "binary", lambda _, *, channels_last: replace(small, block=8 if channels_last else 16)
    )
    monkeypatch.setattr(triton_sigmoid, "BINARY_ELEMENTS", 16)
    monkeypatch.setattr(triton_ranks, "MINING", replace(small, block=64))
    monkeypatch.setattr(triton_ranks, "TIES", replace(small, block=16))
    monkeypatch.setattr(triton_ranks, "TILES_OF_A_RUN", 2)


@dataclass(frozen=True, eq=False)
class Oracle:
    """Draws inputs, and compares what the kernels make of them with the plain sums in float64."""

    draw: torch.Generator

    def pick(self, options: tuple[Any, ...]) -> Any:
        return options[int(torch.randint(len(options), (), generator=self.draw))]

    def case(
        self,
        *,
        classes: int,
        size: tuple[int, int] = (5, 7),
        images: int = 2,
        sigmoid: bool = False,
        options: tuple[str, ...] = (),
        dtype: torch.dtype = torch.float32,
        scale: float = 3.0,
        ignored: float = 0.2,
        rule: HardExamples | None = None,
        wanted: tuple[str, ...] | None = None,
        labels_as: torch.dtype | None = None,
    ) -> tuple[Inputs, Request]:
        draw = self.draw
        target_type = labels_as or self.pick(TARGETS if classes < 255 else TARGETS[1:])
        ignore_index = self.pick((255,) if target_type == torch.uint8 else (255, -1) if classes < 255 else (-1, -100))
        shape = (images, classes, *size)
        logits = (torch.randn(shape, generator=draw, dtype=torch.float64) * scale).to(dtype)
        labels = shape if sigmoid else (images, *size)
        target = torch.randint(0, 2 if sigmoid else classes, labels, generator=draw)
        is_ignored = torch.rand(labels, generator=draw) < ignored
        target = target.masked_fill(is_ignored, ignore_index).to(target_type)
        for spoilt in (float("nan"), float("inf"), float("-inf")):  # what stands under an ignored label must not matter
            under = is_ignored if sigmoid else is_ignored.unsqueeze(1).expand(shape)
            logits = logits.masked_fill(under & (torch.rand(shape, generator=draw) < 0.2), spoilt)

        def vector(name: str) -> Tensor | None:
            return torch.rand(classes, generator=draw) * 2 - 1 if name in options else None

        weight = torch.rand((images, *size), generator=draw) if "weight" in options else None
        keep = torch.rand(labels, generator=draw) < 0.6 if "keep" in options else None
        request = Request(
            wanted=tuple(name for name in SUMS if not (sigmoid and name == "log_mass")) if wanted is None else wanted,
            sigmoid=sigmoid,
            ignore_index=ignore_index,
            gamma=tuple(0.5 * (c % 5) for c in range(classes)) if "gammas" in options and classes > 1 else (2.0,),
            scale=1.5 if "scale" in options else 1.0,
            mining=encode_mining(rule),
            predictions="predictions" in options and not sigmoid,
        )
        return Inputs(logits, target, vector("shift"), vector("margin"), weight, keep), request

    def check(self, inputs: Inputs, request: Request, *, ratios: float | None = None) -> None:
        """Compare sums, counts and the gradient for random gradients of the sums with those in float64.

        `ratios` is by what part an exponential may be off, by default `rounding`; 0 says that no two scores are so
        close that their rounding shows in a probability.
        """
        loss_step = rounding(inputs, request)
        ratios = loss_step if ratios is None else ratios
        sums, counts, mask = self.backend(request).forward(inputs, request)
        if request.mining:
            assert mask.dtype == torch.bool
            inputs, request = replace(inputs, keep=mask), replace(request, mining=())
        names = names_of_sums(request.wanted, sigmoid=request.sigmoid)
        exact, leaf = self.in_double(inputs, request)
        first = names_of_counts(sigmoid=request.sigmoid, predictions=request.predictions)
        for name, value in zip((*first, *names), (*counts, *sums), strict=True):
            assert value.dtype == torch.float64
            is_loss = name.startswith(("cross_entropy", "focal", "log_mass"))  # they hold differences of scores
            torch.testing.assert_close(
                value,
                exact[name].detach(),
                rtol=1e-5 + 4 * ratios,
                atol=1e-5 + (loss_step * inputs.logits[0, 0].numel() if is_loss else 0.0),
                msg=lambda text, name=name: f"{name}: {text}",
            )
        slopes = torch.randn(sums.shape, generator=self.draw, dtype=torch.float64)
        gradient = self.backend(request).backward(slopes, inputs, request)
        assert (gradient.dtype, gradient.stride()) == (inputs.logits.dtype, torch.empty_like(inputs.logits).stride())
        total = sum(((exact[name] * row).sum() for name, row in zip(names, slopes, strict=True)), 0.0 * leaf.sum())
        (expected,) = torch.autograd.grad(total, leaf)
        ignored = inputs.target == request.ignore_index
        assert not bool(gradient.masked_select(ignored if request.sigmoid else ignored.unsqueeze(1)).any())
        step = {torch.float32: 1e-5, torch.bfloat16: 2**-8, torch.float16: 2**-11}[gradient.dtype]
        least = 2.0**-24 if gradient.dtype == torch.float16 else 2e-8  # float16 has nothing between its steps near 0
        steepest = request.scale * max((float(row.abs().max()) for row in slopes), default=0.0)
        atol = 2e-5 * float(expected.abs().max()) + 2 * ratios * steepest + least
        torch.testing.assert_close(gradient.double(), expected, rtol=2 * step, atol=atol)

    def backend(self, request: Request) -> Any:
        """Return the module of the kernels that are launched."""
        from segtrain.kernels import triton_sigmoid, triton_softmax

        return triton_sigmoid if request.sigmoid else triton_softmax

    def in_double(self, inputs: Inputs, request: Request) -> tuple[dict[str, Tensor], Tensor]:
        """Return the plain sums of the same inputs in float64, and the logits they come from."""
        ignored = inputs.target == request.ignore_index
        under = ignored if request.sigmoid else ignored.unsqueeze(1)
        leaf = inputs.logits.double().masked_fill(under, 0.0).requires_grad_()
        vectors = {name: getattr(inputs, name) for name in ("shift", "margin", "pixel_weight")}
        doubles = {name: None if value is None else value.double() for name, value in vectors.items()}
        return plain_sums(replace(inputs, logits=leaf, **doubles), request), leaf


def rounding(inputs: Inputs, request: Request) -> float:
    """Return by how much the difference of two scores may be off in float32.

    Scale, shift and margin round each of the two to 2^-24 of its size, three times at most, and their difference is
    rounded too. (Where a GPU fuses multiplication and addition it is less; the interpreter does not.)
    """
    ignored = inputs.target == request.ignore_index
    largest = inputs.logits.double().masked_fill(ignored if request.sigmoid else ignored.unsqueeze(1), 0.0).abs()
    added = sum(float(vector.abs().max()) for vector in (inputs.shift, inputs.margin) if vector is not None)
    return 8 * 2.0**-24 * request.scale * (float(largest.max()) + added)
