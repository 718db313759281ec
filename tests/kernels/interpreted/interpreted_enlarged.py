"""The Triton class sums of coarse logits, interpreted: those of what F.interpolate makes, and its gradient."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from segtrain.kernels import launch, triton_coarse, triton_softmax
from segtrain.kernels.mining import HardExamples
from segtrain.kernels.request import SUMS, Inputs, Request
from segtrain.losses.plain_sums import plain_sums

ALL = ("shift", "margin", "weight", "keep", "scale", "gammas", "predictions")
SIZES = (((3, 4), (12, 16), (12, 16)), ((2, 3), (5, 7), (4, 6)), ((4, 3), (3, 2), (3, 2)), ((1, 1), (5, 3), (4, 3)))
LEAST = ((1, 2), (2, 4), (2, 3))


@pytest.fixture(autouse=True)
def _small_coarse_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_coarse, "coarse_tiles", lambda _: launch.Launch(block=4, warps=1, programs=2))


def enlarged(oracle: Any, classes: int, sizes: tuple[Any, ...], **settings: Any) -> tuple[Inputs, Request]:
    """Return a case whose logits are coarse ones."""
    small, _, crop = sizes
    inputs, request = oracle.case(classes=classes, size=crop, **settings)
    logits = 3 * torch.randn((len(inputs.target), classes, *small), generator=oracle.draw)
    return replace(inputs, logits=logits.to(inputs.logits.dtype)), request


def exact(inputs: Inputs, request: Request, sizes: tuple[Any, ...]) -> tuple[dict[str, Tensor], Tensor]:
    """Return the plain sums in float64 of what `interpolate` makes, and the coarse logits."""
    leaf = inputs.logits.double().requires_grad_()
    crop = sizes[2]
    full = interpolate(leaf, size=sizes[1], mode="bilinear", align_corners=False)[..., : crop[0], : crop[1]]
    vectors = {name: getattr(inputs, name) for name in ("shift", "margin", "pixel_weight")}
    doubles = {name: None if value is None else value.double() for name, value in vectors.items()}
    return plain_sums(replace(inputs, logits=full, **doubles), request), leaf


@pytest.mark.parametrize(
    ("classes", "sizes", "dtype"),
    [
        (3, SIZES[1], torch.float32),
        (3, SIZES[2], torch.bfloat16),
        (26, SIZES[3], torch.float32),
        *(
            pytest.param(classes, sizes, dtype, marks=pytest.mark.slow)
            for classes, dtype in ((1, torch.float16), (5, torch.float32), (12, torch.bfloat16), (150, torch.float32))
            for sizes in SIZES
        ),
    ],
)
def test_sums_and_gradients_are_those_of_interpolated_logits(
    classes: int, sizes: tuple[Any, ...], dtype: torch.dtype, oracle: Any
) -> None:
    inputs, request = enlarged(oracle, classes, sizes, options=ALL, dtype=dtype)
    layout = oracle.pick((torch.contiguous_format, torch.channels_last))
    inputs = replace(inputs, logits=inputs.logits.contiguous(memory_format=layout))
    found, leaf = exact(inputs, request, sizes)
    sums, counts = triton_coarse.forward(inputs, request, sizes[1])
    for name, value in zip(("pixels", "kept", "predicted", "correct", *SUMS), (*counts, *sums), strict=True):
        torch.testing.assert_close(
            value, found[name].detach(), rtol=1e-4, atol=1e-3, msg=lambda text, name=name: f"{name}: {text}"
        )
    slopes = torch.randn(sums.shape, generator=oracle.draw, dtype=torch.float64)
    total = sum(((found[name] * row).sum() for name, row in zip(SUMS, slopes, strict=True)), 0.0 * leaf.sum())
    (expected,) = torch.autograd.grad(total, leaf)
    gradient = triton_coarse.backward(slopes, inputs, request, sizes[1])
    assert (gradient.dtype, gradient.stride()) == (dtype, inputs.logits.stride())
    step = {torch.float32: 1e-4, torch.bfloat16: 2**-7, torch.float16: 2**-10}[dtype]
    torch.testing.assert_close(
        gradient.double(), expected, rtol=step, atol=1e-4 * max(1.0, float(expected.abs().max()))
    )


def test_mining_ranks_the_enlarged_pixels(oracle: Any) -> None:
    sizes = SIZES[1]
    inputs, request = enlarged(oracle, 3, sizes, wanted=(), rule=HardExamples(top_k=0.3))
    _, counts, mask = triton_softmax.forward(inputs, request, size=sizes[1])
    valid = inputs.target != request.ignore_index
    assert int(mask.sum()) == int(counts[1].sum()) == max(round(0.3 * int(valid.sum())), 1)
    full = interpolate(inputs.logits, size=sizes[1], mode="bilinear", align_corners=False)[..., :4, :6]
    labels = inputs.target.long().masked_fill(~valid, -1)
    loss = torch.nn.functional.cross_entropy(full, labels, ignore_index=-1, reduction="none")
    assert float(loss[mask].min()) >= float(loss[valid & ~mask].max()) - 1e-5


def test_a_mask_of_ignored_pixels_leaves_coarse_logits_without_gradient(oracle: Any) -> None:
    inputs, request = enlarged(oracle, 3, LEAST, ignored=1.0, images=1)
    sums, counts = triton_coarse.forward(inputs, request, LEAST[1])
    assert not bool(sums.any())
    assert not bool(counts.any())
    assert not bool(triton_coarse.backward(torch.ones_like(sums), inputs, request, LEAST[1]).any())


def test_equal_coarse_logits_give_equal_bits(oracle: Any) -> None:
    inputs, request = enlarged(oracle, 3, LEAST, images=1)
    first, second = (triton_coarse.forward(inputs, request, LEAST[1]) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    slopes = torch.randn(first[0].shape, generator=oracle.draw, dtype=torch.float64)
    assert torch.equal(*(triton_coarse.backward(slopes, inputs, request, LEAST[1]) for _ in range(2)))
